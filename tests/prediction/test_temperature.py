"""A temperature is found again, makes probabilities honest and leaves every mask as it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special

from rtsam_jax.metrics.overlap import dice
from rtsam_jax.prediction.temperature import (
    Spectrum,
    Voxels,
    fit_temperature,
    reliability_at,
    tempered,
)

BELOW = float(np.nextafter(np.float32(0.5), np.float32(0)))
probabilities = arrays(
    np.float32, (40,), elements=st.floats(0, 1, width=32) | st.just(0.5) | st.just(BELOW)
)


def drawn(temperature: float, count: int, seed: int) -> Voxels:
    """Voxels whose honest probability is sigmoid(logit / temperature)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 3, count)
    return Voxels.of(special.expit(logits), rng.random(count) < special.expit(logits / temperature))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_drew_the_truth_is_found(temperature: float) -> None:
    cases = [drawn(temperature, 30_000, seed) for seed in range(2)]
    found = fit_temperature(cases)
    assert found == pytest.approx(temperature, rel=0.04)
    before = reliability_at(cases, [1.0, 1.0]).ece
    after = reliability_at(cases, [found, found]).ece
    assert after < 0.012 and (temperature == 1 or after < before / 4)


def test_cases_weigh_alike_however_many_voxels_they_have() -> None:
    one, other = drawn(1.0, 300, 0), drawn(4.0, 300, 1)
    many = Voxels(*(np.tile(leaf, 50) for leaf in other))
    assert fit_temperature([one, many]) == pytest.approx(fit_temperature([one, other]), rel=1e-3)
    assert fit_temperature([one, Voxels(*(leaf[:0] for leaf in other))]) == pytest.approx(
        fit_temperature([one])
    )


def test_without_a_voxel_nothing_is_changed() -> None:
    assert fit_temperature([]) == 1.0


@settings(max_examples=30, deadline=None)
@example(np.array([0.5, BELOW, 0, 1], np.float32), 20.0)
@given(probabilities, st.floats(0.05, 20))
def test_no_temperature_changes_a_mask_or_the_order(
    probability: np.ndarray, temperature: float
) -> None:
    found = tempered(probability, temperature)
    assert found.dtype == np.float32 and ((found >= 0) & (found <= 1)).all()
    np.testing.assert_array_equal(found >= 0.5, probability >= 0.5)
    assert (np.diff(found[np.argsort(probability)]) >= -1e-6).all()
    for kept in (0.0, 0.5):
        assert (found[probability == kept] == kept).all()


def test_the_temperature_divides_the_logit() -> None:
    found = tempered(np.array([[0.2, 0.9]]), 2.0)
    np.testing.assert_allclose(found, special.expit(special.logit([[0.2, 0.9]]) / 2), rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.3, 20.0])
def test_what_float32_rounded_to_one_has_no_hole_below_it(temperature: float) -> None:
    logits = np.linspace(12, 30, 200, dtype=np.float32)  # from about 17 on all are 1.0
    found = tempered(special.expit(logits), temperature)
    of = Voxels.of(special.expit(logits), np.ones(200, bool))
    np.testing.assert_allclose(found, special.expit(of.logits / temperature), rtol=1e-6)
    assert (np.diff(found) >= 0).all() and (found[-1] < 1 or temperature == 1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.3, 10.0, 20.0])
@pytest.mark.parametrize("background", [-30, -75, -100])
def test_a_spectrum_adds_nothing_to_what_the_background_says(
    background: float, temperature: float
) -> None:
    logits = np.concatenate([np.linspace(-5, 8, 400), np.full(300_000, background)])
    probability = special.expit(logits).astype(np.float32)  # exactly 0 in none
    exact = special.expit(special.logit(probability.astype(float)) / temperature)
    mask = probability >= 0.5
    expected = 2 * exact[mask].sum() / (mask.sum() + exact.sum())
    found = Spectrum.of(probability).expected_dice(temperature)
    assert found == pytest.approx(expected, rel=2 * np.expm1(1 / 128 / temperature))


@settings(max_examples=30, deadline=None)
@given(probabilities, st.floats(0.3, 5))
def test_a_spectrum_holds_what_a_temperature_needs(
    probability: np.ndarray, temperature: float
) -> None:
    of = Spectrum.of(probability)
    mask = probability >= 0.5
    assert of.foreground == mask.sum()
    logits = special.logit(probability[probability > 0].astype(float))
    exact = special.expit(np.minimum(logits, 20) / temperature)
    inside = exact[probability[probability > 0] >= 0.5]
    if not mask.any():
        assert of.expected_dice(temperature) == 0 and np.isnan(of.mean_probability(temperature))
        return
    off = np.expm1(1 / 128 / temperature)  # by half a bin, where all voxels lie on one side
    assert of.mean_probability(temperature) == pytest.approx(inside.mean(), rel=off)
    expected = 2 * inside.sum() / (mask.sum() + exact.sum())
    assert of.expected_dice(temperature) == pytest.approx(expected, rel=2 * off)


def test_expected_dice_is_the_mean_dice_of_truths_drawn_from_the_probability() -> None:
    index = np.stack(np.meshgrid(*[np.arange(28)] * 3, indexing="ij"), -1)
    distance = np.linalg.norm(index - 13.5, axis=-1)
    probability = special.expit((8 - distance) / 1.5).astype(np.float32)
    rng = np.random.default_rng(0)
    scores = [
        dice(probability >= 0.5, rng.random(probability.shape) < probability) for _ in "x" * 20
    ]
    assert Spectrum.of(probability).expected_dice(1.0) == pytest.approx(np.mean(scores), abs=0.005)
    # An honest probability at another temperature foretells the Dice only with that temperature.
    sharp = tempered(probability, 0.4)
    assert Spectrum.of(sharp).expected_dice(2.5) == pytest.approx(np.mean(scores), abs=0.005)
    assert Spectrum.of(sharp).expected_dice(1.0) > np.mean(scores) + 0.03
