"""Click sampling: exact, uniform, on the right side of the error, and cheap."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from rtsam_jax.errors import ConfigError
from rtsam_jax.prompts import clicks
from tests.prompts.jaxprs import largest_random_array

SHAPES = st.sampled_from([(1, 1, 1), (2, 5, 3), (4, 1, 7)])  # few: each is compiled once
WORD = st.integers(0, 2**32 - 1)

_sample = jax.jit(clicks.sample_clicks, static_argnums=(3, 4))
_sample_per_key = jax.jit(
    jax.vmap(clicks.sample_clicks, in_axes=(0, None, None, None, None)), static_argnums=(3, 4)
)


def _draw(
    prediction: np.ndarray, truth: np.ndarray, n: int, sampling: str = "uniform", seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """n clicks as integer points [n, 3] and labels [n]."""
    points, labels = _sample(
        jax.random.key(seed), jnp.array(prediction), jnp.array(truth), n, sampling
    )
    assert points.dtype == jnp.float32 and labels.dtype == jnp.int32
    np.testing.assert_array_equal(points, np.round(points))  # voxel centres
    return np.asarray(points).astype(int), np.asarray(labels)


def _volumes(
    shape: tuple[int, int, int], missed: int, excess: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and truth with exactly so many FN and FP voxels, the rest TP and TN."""
    order = np.random.default_rng(seed).permutation(np.prod(shape))
    prediction, truth = np.zeros(order.size, bool), np.zeros(order.size, bool)
    truth[order[:missed]] = True
    prediction[order[missed : missed + excess]] = True
    both = order[missed + excess :][::2]
    prediction[both] = truth[both] = True
    return prediction.reshape(shape), truth.reshape(shape)


class TestIntegerDraw:
    """Against Python's unlimited integers: no float32 fraction of the count, no lost carry."""

    @settings(deadline=None, max_examples=200)
    @given(high=WORD, low=WORD, count=st.integers(0, 2**31 - 1))
    def test_is_the_64_bit_product(self, high: int, low: int, count: int) -> None:
        words = jnp.array([high, low], jnp.uint32)
        got = clicks._integer_below(words, jnp.array(count, jnp.int32))
        assert int(got) == ((high << 32 | low) * count) >> 64

    def test_at_carries(self) -> None:
        edges = [0, 1, 0xFFFF, 0x10000, 0xFFFF0000, 2**32 - 1]
        counts = [1, 2, 3, 0xFFFF, 0x10001, 2**24 + 1, 2**31 - 1]
        cases = list(itertools.product(edges, edges, counts))
        words = np.array([case[:2] for case in cases], np.uint32)
        count = np.array([case[2] for case in cases], np.int32)
        got = clicks._integer_below(jnp.array(words), jnp.array(count))
        expected = [((high << 32 | low) * count) >> 64 for high, low, count in cases]
        np.testing.assert_array_equal(got, expected)


@settings(deadline=None, max_examples=40)
@given(
    masks=SHAPES.flatmap(lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))),
    sampling=st.sampled_from(["uniform", "balanced"]),
    seed=st.integers(0, 2**31 - 1),
)
def test_positives_on_fn_negatives_on_fp_and_nothing_else(
    masks: tuple[np.ndarray, np.ndarray], sampling: str, seed: int
) -> None:
    prediction, truth = masks
    points, labels = _draw(prediction, truth, 8, sampling, seed)
    if (prediction == truth).all():
        assert (labels == -2).all() and not points.any()
        return
    for point, label in zip(points, labels, strict=True):
        at = tuple(point)
        assert (truth[at], prediction[at]) == {1: (True, False), 0: (False, True)}[int(label)]


@pytest.mark.parametrize(
    ("shape", "missed", "excess"),
    [
        ((3, 4, 5), 5, 3),
        ((3, 4, 5), 0, 7),  # one side empty
        ((7, 5, 11), 60, 43),
        ((64, 48, 40), 20, 13),  # sparse in a large volume
        ((4, 4, 4), 37, 27),  # every voxel is wrong
    ],
)
def test_uniform_over_every_error_voxel(
    shape: tuple[int, int, int], missed: int, excess: int
) -> None:
    prediction, truth = _volumes(shape, missed, excess)
    error = np.flatnonzero(prediction != truth)
    assert error.size == missed + excess
    draws = 200 * error.size
    points, labels = _draw(prediction, truth, draws)
    drawn = np.ravel_multi_index(tuple(points.T), shape)
    counts = np.array([(drawn == voxel).sum() for voxel in error])
    assert counts.sum() == draws
    assert 1e-3 < stats.chisquare(counts).pvalue < 1 - 1e-6  # neither biased nor stratified
    assert abs((labels == 1).mean() - missed / error.size) < 0.03


def test_uniform_over_keys() -> None:
    """Fresh keys, one click each: how training draws them."""
    prediction, truth = _volumes((5, 3, 4), 7, 6)
    keys = jax.random.split(jax.random.key(3), 13 * 200)
    points, labels = _sample_per_key(keys, jnp.array(prediction), jnp.array(truth), 1, "uniform")
    assert points.shape == (2600, 1, 3) and labels.shape == (2600, 1)
    drawn = np.ravel_multi_index(tuple(np.asarray(points[:, 0]).astype(int).T), prediction.shape)
    counts = np.array([(drawn == v).sum() for v in np.flatnonzero(prediction != truth)])
    assert counts.sum() == 2600 and stats.chisquare(counts).pvalue > 1e-3


def test_uniform_over_millions_of_voxels() -> None:
    """All of 2 359 296 voxels are errors: planes, rows and places in a row are each uniform."""
    shape = (96, 128, 192)
    points, _ = _draw(np.zeros(shape, bool), np.ones(shape, bool), 20_000)
    for axis, size in enumerate(shape):
        counts = np.bincount(points[:, axis], minlength=size)
        assert counts.size == size and stats.chisquare(counts).pvalue > 1e-3
    parity = np.bincount(points.sum(1) % 2)
    assert stats.chisquare(parity).pvalue > 1e-3
    assert len(np.unique(points, axis=0)) > 19_800  # 85 repeats expected


class TestBalanced:
    def test_half_from_each_and_uniform_within(self) -> None:
        prediction, truth = _volumes((6, 7, 5), 90, 5)
        points, labels = _draw(prediction, truth, 18_000, "balanced")
        assert (labels == 1).sum() == (labels == 0).sum() == 9_000
        drawn = np.ravel_multi_index(tuple(points.T), truth.shape)
        for label, side in ((1, truth & ~prediction), (0, prediction & ~truth)):
            mine = drawn[labels == label]
            counts = np.array([(mine == voxel).sum() for voxel in np.flatnonzero(side)])
            assert counts.sum() == 9_000 and stats.chisquare(counts).pvalue > 1e-3

    @pytest.mark.parametrize("seed", range(4))
    def test_four_clicks_are_two_and_two(self, seed: int) -> None:
        prediction, truth = _volumes((6, 7, 5), 90, 1)
        _, labels = _draw(prediction, truth, 4, "balanced", seed)
        assert sorted(labels) == [0, 0, 1, 1]

    def test_a_single_click_tosses_a_fair_coin(self) -> None:
        prediction, truth = _volumes((6, 7, 5), 90, 1)
        keys = jax.random.split(jax.random.key(1), 2000)
        _, labels = _sample_per_key(keys, jnp.array(prediction), jnp.array(truth), 1, "balanced")
        assert stats.binomtest(int(labels.sum()), 2000).pvalue > 1e-3

    @pytest.mark.parametrize(("missed", "excess", "label"), [(9, 0, 1), (0, 9, 0)])
    def test_an_empty_side_is_replaced(self, missed: int, excess: int, label: int) -> None:
        prediction, truth = _volumes((4, 3, 5), missed, excess)
        points, labels = _draw(prediction, truth, 900, "balanced")
        assert (labels == label).all()
        assert (prediction[tuple(points.T)] != truth[tuple(points.T)]).all()
        assert len(np.unique(points, axis=0)) == 9


def test_no_click_at_all_has_a_shape_too() -> None:
    points, labels = _draw(np.zeros((2, 2, 2), bool), np.ones((2, 2, 2), bool), 0)
    assert points.shape == (0, 3) and labels.shape == (0,)


def test_no_random_number_per_voxel() -> None:
    shape, key = (16, 12, 20), jax.random.key(0)
    masks = jnp.zeros(shape, bool), jnp.ones(shape, bool)
    for sampling in ("uniform", "balanced"):
        used = largest_random_array(
            lambda key, p, t, s=sampling: clicks.sample_clicks(key, p, t, 4, s), key, *masks
        )
        assert used <= 16

    def naive(key: jax.Array, prediction: jax.Array, truth: jax.Array) -> jax.Array:
        return jnp.argmax(jax.random.uniform(key, shape) * (prediction ^ truth))

    assert largest_random_array(naive, key, *masks) >= np.prod(
        shape
    )  # the measure sees such a sampler


def test_misuse_is_a_typed_error() -> None:
    mask = jnp.zeros((2, 2, 2), bool)
    with pytest.raises(ConfigError, match="'random'"):
        clicks.sample_clicks(jax.random.key(0), mask, ~mask, 1, "random")
    with pytest.raises(ConfigError, match="threshold"):
        clicks.foreground(jnp.zeros(1), 1.0)
