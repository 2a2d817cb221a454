"""The refinement: one scan equals the plain loop, compiled once.

The decoder is a toy that ignores unused slots, as the real one does by masking them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

from rtsam_jax.config import ClickConfig
from rtsam_jax.errors import ConfigError
from rtsam_jax.prompts import clicks
from tests.prompts.jaxprs import equations, largest_random_array

MASK_SHAPE = (4, 6, 5)
CROP_SHAPE = (8, 12, 10)
BATCH = 2
CFG = ClickConfig(iterations=3, per_iteration=4)


@cache
def _toy(seed: int = 0) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    """Parameters, image features [B, a, b, c] and label [B, X, Y, Z]."""
    keys = jax.random.split(jax.random.key(seed), 2)
    parameters = {name: jnp.array(v) for name, v in (("image", 0.7), ("mask", 0.4), ("click", 1.3))}
    features = jax.random.normal(keys[0], (BATCH, *MASK_SHAPE))
    return parameters, features, jax.random.bernoulli(keys[1], 0.4, (BATCH, *CROP_SHAPE))


def _toy_decode(
    parameters: dict[str, jax.Array], features: jax.Array
) -> Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    ratio = jnp.array(CROP_SHAPE) / jnp.array(MASK_SHAPE)
    grid = jnp.stack(jnp.meshgrid(*(jnp.arange(s) for s in MASK_SHAPE), indexing="ij"), -1)
    centres = (grid + 0.5) * ratio - 0.5

    def decode(
        points: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        sign = jnp.where(labels == -2, 0.0, 2.0 * labels - 1)  # [B, N]
        square = ((centres[:, :, :, None] - points[:, None, None, None]) ** 2).sum(-1)
        push = (sign[:, None, None, None] * jnp.exp(-square / 4)).sum(-1)
        logits = (
            parameters["image"] * features
            + parameters["click"] * push
            + parameters["mask"] * jnp.sin(mask[..., 0])
        )
        return logits[..., None], jax.nn.sigmoid(logits.mean((1, 2, 3)))

    return decode


def _upsample(low_res: jax.Array) -> jax.Array:
    """Doubles every axis by repetition: quick to compile, and the scan does not care."""
    for axis in (1, 2, 3):
        low_res = jnp.repeat(low_res, 2, axis)
    return low_res[..., 0]


def _score(label: jax.Array) -> Callable[[jax.Array, jax.Array], dict[str, jax.Array]]:
    def score(logits: jax.Array, iou: jax.Array) -> dict[str, jax.Array]:
        entropy = jax.nn.softplus(jnp.where(label, -logits, logits)).mean((1, 2, 3))
        return {"loss": entropy + 0.1 * iou, "size": (logits >= 0).mean((1, 2, 3))}

    return score


def _refine(
    parameters: dict[str, jax.Array],
    features: jax.Array,
    label: jax.Array,
    key: jax.Array,
    cfg: ClickConfig,
    **options: Any,
) -> clicks.Refinement:
    decode = _toy_decode(parameters, features)
    keys = clicks.click_keys(key, len(label), cfg)
    return clicks.refine(decode, _upsample, _score(label), label, keys, cfg, MASK_SHAPE, **options)


def refine_unrolled(
    parameters: dict[str, jax.Array],
    features: jax.Array,
    label: jax.Array,
    key: jax.Array,
    cfg: ClickConfig,
) -> clicks.Refinement:
    """The oracle: a plain loop over passes and cases, lists of clicks that grow, no buffer."""
    decode, score = _toy_decode(parameters, features), _score(label)
    points = jnp.zeros((BATCH, 0, 3))
    labels = jnp.zeros((BATCH, 0), jnp.int32)
    mask = jnp.zeros((BATCH, *MASK_SHAPE, 1))
    scores, wrong = [], []
    for step in range(1 + cfg.iterations):
        if step > 0:
            prediction = jax.nn.sigmoid(jax.lax.stop_gradient(_upsample(mask))) >= cfg.threshold
            drawn = [
                clicks.sample_clicks(
                    jax.random.fold_in(jax.random.fold_in(key, step - 1), case),
                    prediction[case],
                    label[case],
                    cfg.per_iteration,
                    cfg.sampling,
                )
                for case in range(BATCH)
            ]
            new_points = jnp.stack([p for p, _ in drawn])
            new_labels = jnp.stack([q for _, q in drawn])
            keep = cfg.accumulate
            points = jnp.concatenate([points, new_points], 1) if keep else new_points
            labels = jnp.concatenate([labels, new_labels], 1) if keep else new_labels
        fed = jax.lax.stop_gradient(mask) if cfg.detach_mask else mask
        mask, iou = decode(points, labels, fed)
        logits = _upsample(mask)
        scores.append(score(logits, iou))
        predicted, truth = jax.nn.sigmoid(logits) >= cfg.threshold, label != 0
        sides = (truth & ~predicted, predicted & ~truth)
        wrong.append(jnp.stack([side.sum((1, 2, 3)) for side in sides], axis=1))
    stacked = {name: jnp.stack([s[name] for s in scores]) for name in scores[0]}
    return clicks.Refinement(stacked, jnp.stack(wrong), points, labels, mask)


def _loss(cfg: ClickConfig, run: Callable[..., clicks.Refinement] = _refine, **options: Any) -> Any:
    """(sum of the pass losses, refinement) and the gradient by parameters and features."""
    parameters, features, label = _toy()
    key = jax.random.key(7)

    def total(parameters: dict[str, jax.Array], features: jax.Array) -> tuple[jax.Array, Any]:
        result = run(parameters, features, label, key, cfg, **options)
        return result.pass_scores["loss"].sum(), result

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(parameters, features)


@cache
def _loss_with_accumulation(accumulate: bool) -> Any:
    """What several tests compare with, compiled once."""
    return _loss(replace(CFG, accumulate=accumulate))


def _assert_close(got: Any, expected: Any, rtol: float = 1e-5) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), got, expected)


@pytest.mark.parametrize(
    "cfg",
    [
        CFG,
        replace(CFG, iterations=2, sampling="balanced", detach_mask=False),
        replace(CFG, iterations=2, per_iteration=3, accumulate=False, threshold=0.6),
        replace(CFG, iterations=0),
    ],
    ids=["default", "balanced-attached", "newest-only", "no-clicks"],
)
def test_scan_equals_the_unrolled_loop(cfg: ClickConfig) -> None:
    (loss, result), gradient = _loss_with_accumulation(True) if cfg is CFG else _loss(cfg)
    (expected_loss, expected), expected_gradient = _loss(cfg, refine_unrolled)
    _assert_close(loss, expected_loss)
    _assert_close(result, expected)
    _assert_close(gradient, expected_gradient, rtol=1e-4)
    assert result.pass_scores["loss"].shape == (1 + cfg.iterations, BATCH)
    slots = cfg.per_iteration * (cfg.iterations if cfg.accumulate else min(cfg.iterations, 1))
    assert result.points.shape == (BATCH, slots, 3)
    assert (result.labels >= 0).all()  # the toy never solves its task: every slot is filled


def test_remat_changes_memory_not_numbers() -> None:
    """With it, no stack of full-resolution arrays is kept for the backward pass."""
    parameters, features, label = _toy()
    key = jax.random.key(7)
    for remat in ("all", "none"):
        _assert_close(_loss(replace(CFG, remat=remat)), _loss_with_accumulation(True))

    def largest_stack(remat: str) -> int:
        cfg = replace(CFG, remat=remat)

        def total(parameters: dict[str, jax.Array]) -> jax.Array:
            result = _refine(parameters, features, label, key, cfg)
            return result.pass_scores["loss"].sum()

        jaxpr = jax.make_jaxpr(jax.grad(total))(parameters).jaxpr
        scans = [e for e in equations(jaxpr) if e.primitive.name == "scan"]
        assert len(scans) == 2  # forward and backward
        return max(out.aval.size for e in scans for out in e.outvars)

    one_volume = BATCH * int(np.prod(CROP_SHAPE))
    passes = 1 + CFG.iterations
    assert largest_stack("all") <= largest_stack("elementwise") < one_volume
    assert passes * one_volume <= largest_stack("none")


@pytest.mark.parametrize("accumulate", [True, False])
def test_output_does_not_depend_on_the_buffers_length(accumulate: bool) -> None:
    (loss, result), gradient = _loss_with_accumulation(accumulate)
    used = result.labels.shape[1]
    assert used == (12 if accumulate else 4)
    cfg = replace(CFG, accumulate=accumulate)
    (padded_loss, padded), padded_gradient = _loss(cfg, slots=used + 9)
    _assert_close((padded_loss, padded_gradient), (loss, gradient))
    _assert_close(padded.pass_scores, result.pass_scores)
    np.testing.assert_array_equal(padded.points[:, :used], result.points)
    np.testing.assert_array_equal(padded.labels[:, :used], result.labels)
    assert padded.labels.shape == (BATCH, used + 9) and (padded.labels[:, used:] == -2).all()


def test_a_buffer_too_short_is_a_typed_error() -> None:
    parameters, features, label = _toy()
    with pytest.raises(ConfigError, match="11 slots.*12"):
        _refine(parameters, features, label, jax.random.key(0), CFG, slots=11)


def test_an_unknown_sampling_is_a_typed_error() -> None:
    parameters, features, label = _toy()
    with pytest.raises(ConfigError, match="'nearest'; use 'uniform' or 'balanced'"):
        _refine(parameters, features, label, jax.random.key(0), replace(CFG, sampling="nearest"))


def test_compiles_exactly_once() -> None:
    parameters, features, _ = _toy()
    traced = compiled = 0
    counting = False

    def listener(event: str, _seconds: float, **_: Any) -> None:
        nonlocal compiled
        compiled += counting and event == "/jax/core/compile/backend_compile_duration"

    monitoring.register_event_duration_secs_listener(listener)

    @jax.jit
    def step(parameters: Any, features: jax.Array, label: jax.Array, key: jax.Array) -> Any:
        def total(parameters: dict[str, jax.Array]) -> jax.Array:
            toy = _toy_decode(parameters, features)

            def decode(*prompts: jax.Array) -> tuple[jax.Array, jax.Array]:
                nonlocal traced
                traced += 1
                return toy(*prompts)

            score = _score(label)
            keys = clicks.click_keys(key, len(label), CFG)
            result = clicks.refine(decode, _upsample, score, label, keys, CFG, MASK_SHAPE)
            return result.pass_scores["loss"].mean()

        return jax.value_and_grad(total)(parameters)

    labels = [_toy(seed)[2] for seed in range(4)] + [jnp.zeros((BATCH, *CROP_SHAPE), bool)]
    keys = list(jax.random.split(jax.random.key(1), 5))
    jax.block_until_ready((labels, keys))
    counting = True
    outputs = [
        step(parameters, features, label, key) for label, key in zip(labels, keys, strict=True)
    ]
    jax.block_until_ready(outputs)
    counting = False
    assert traced == 1  # all four passes, forward and backward, share one trace of the decoder
    assert compiled == 1
    assert len({float(loss) for loss, _ in outputs}) == 5  # new labels and keys did arrive


def test_the_scan_draws_no_random_number_per_voxel() -> None:
    parameters, features, label = _toy()
    used = largest_random_array(
        lambda key: _refine(parameters, features, label, key, CFG), jax.random.key(0)
    )
    assert used < 100 < label[0].size


class TestDetachMask:
    """y_1 depends on the mask parameter through its own pass and, attached, through pass 0."""

    def _last_pass_gradient(self, detach: bool) -> tuple[np.ndarray, dict[str, jax.Array]]:
        parameters, features, label = _toy()
        cfg = ClickConfig(iterations=1, per_iteration=2, detach_mask=detach)

        def last(features: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            # Pass 1 may not look at the features itself: what reaches them came by the mask.
            def decode(points: jax.Array, labels: jax.Array, mask: jax.Array) -> Any:
                first = (labels == -2).all()
                seen = jnp.where(first, features, 0.0)
                return _toy_decode(parameters, seen)(points, labels, mask)

            keys = clicks.click_keys(jax.random.key(2), BATCH, cfg)
            scores = clicks.refine(
                decode, _upsample, _score(label), label, keys, cfg, MASK_SHAPE
            ).pass_scores
            return scores["loss"][1].sum(), scores

        gradient, scores = jax.jit(jax.grad(last, has_aux=True))(features)
        return np.asarray(gradient), scores

    def test_attached_mask_carries_a_gradient_detached_none(self) -> None:
        detached, scores = self._last_pass_gradient(detach=True)
        attached, same_scores = self._last_pass_gradient(detach=False)
        _assert_close(scores, same_scores)
        assert not detached.any()
        assert (attached != 0).mean() > 0.9


def test_first_pass_has_no_clicks_and_a_zero_mask() -> None:
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    parameters, features, label = _toy()
    toy = _toy_decode(parameters, features)

    def decode(points: jax.Array, labels: jax.Array, mask: jax.Array) -> Any:
        jax.debug.callback(
            lambda q, m: seen.append((np.asarray(q), np.asarray(m))), labels, mask, ordered=True
        )
        return toy(points, labels, mask)

    keys = clicks.click_keys(jax.random.key(0), BATCH, CFG)
    cfg = replace(CFG, remat="none")
    result = clicks.refine(decode, _upsample, _score(label), label, keys, cfg, MASK_SHAPE)
    jax.block_until_ready(result)
    jax.effects_barrier()
    assert [int((labels[0] != -2).sum()) for labels, _ in seen] == [0, 4, 8, 12]
    assert not seen[0][1].any()
    assert all(mask.any() for _, mask in seen[1:])
    first, _ = toy(result.points, jnp.full_like(result.labels, -2), jnp.zeros_like(seen[0][1]))
    np.testing.assert_allclose(seen[1][1], first, rtol=1e-6)


def test_nothing_left_to_correct_leaves_slots_unused() -> None:
    parameters, features, _ = _toy()
    decode = _toy_decode(parameters | {"mask": jnp.array(0.0)}, features)
    low_res, _ = decode(
        jnp.zeros((BATCH, 0, 3)),
        jnp.zeros((BATCH, 0), jnp.int32),
        jnp.zeros((BATCH, *MASK_SHAPE, 1)),
    )
    label = _upsample(low_res) >= 0  # the first prediction is the truth ...
    label = label.at[1].set(~label[1])  # ... except in case 1
    keys = clicks.click_keys(jax.random.key(0), BATCH, CFG)
    result = clicks.refine(decode, _upsample, _score(label), label, keys, CFG, MASK_SHAPE)
    assert (result.labels[0] == -2).all() and not result.points[0].any()
    assert (result.labels[1] >= 0).all()


def test_cases_of_a_batch_are_independent() -> None:
    parameters, features, label = _toy()
    run = jax.jit(lambda f, y: _refine(parameters, f, y, jax.random.key(4), CFG))
    before = run(features, label)
    after = run(features.at[1].add(1.0), label.at[1].set(~label[1]))
    for case, changed in ((0, False), (1, True)):
        same = [
            np.array_equal(a[:, case], b[:, case])
            for a, b in zip(jax.tree.leaves(before[:2]), jax.tree.leaves(after[:2]), strict=True)
        ] + [np.array_equal(a[case], b[case]) for a, b in zip(before[2:], after[2:], strict=True)]
        assert not any(same) if changed else all(same)
    # Nor does the batch's size change what a case draws.
    fewer = run(features[:1], label[:1])
    np.testing.assert_array_equal(fewer.points, before.points[:1])
    # Two equal cases still get clicks of their own.
    twins = run(features.at[1].set(features[0]), label.at[1].set(label[0]))
    assert not np.array_equal(twins.points[0], twins.points[1])
