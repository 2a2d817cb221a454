"""Simulated clicks (Sec. 3.2.3) and the whole refinement as one `lax.scan`.

A click is a voxel index (float32 [3], the centre of voxel i is at index i) and a label: 1 on a
false negative ("expand here"), 0 on a false positive ("suppress here"), -2 for an unused slot of
a fixed-size buffer, which the decoder masks.

Nothing here knows a model: `refine` takes the decoder, the upsampling and the loss as callables.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rtsam_jax.config import ClickConfig
from rtsam_jax.errors import ConfigError

POSITIVE, NEGATIVE, UNUSED = 1, 0, -2

Decode = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
Upsample = Callable[[jax.Array], jax.Array]
Score = Callable[[jax.Array, jax.Array], Any]


class Refinement(NamedTuple):
    """What a refinement leaves behind.

    Attributes:
        pass_scores: what `score` returned, stacked: every leaf is [1 + iterations, ...].
        wrong: [1 + iterations, B, 2] int32, missed and excess voxels of every pass.
        points: [B, N, 3] float32, the click buffer of the last pass.
        labels: [B, N] int32, 1 / 0 / -2.
        low_res_logits: [B, a, b, c, 1] float32, the last pass's prediction; without a gradient if
            `cfg.detach_mask`.
    """

    pass_scores: Any
    wrong: jax.Array
    points: jax.Array
    labels: jax.Array
    low_res_logits: jax.Array


def _high_word(a: jax.Array, b: jax.Array) -> jax.Array:
    """Upper 32 bits of the 64-bit product of two uint32; JAX has no 64-bit integers by default."""
    a_high, a_low, b_high, b_low = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    middle = a_high * b_low + ((a_low * b_low) >> 16)
    other = a_low * b_high + (middle & 0xFFFF)
    return a_high * b_high + (middle >> 16) + (other >> 16)


def _integer_below(words: jax.Array, count: jax.Array) -> jax.Array:
    """An integer in [0, count) from 64 random bits: floor(r * count / 2^64), exactly.

    Each result owns floor or ceil of 2^64 / count of the equally likely r, so probabilities differ
    from 1 / count by a relative count / 2^64 at most: below 1e-12 for every count under 2^24, and
    below 2^-33 for any count an int32 holds. (`jax.random.randint` has 32 bits and a modulo.)

    Args:
        words: [..., 2] uint32 random bits, the more significant word first.
        count: integer below 2^31, broadcast against [...]; 0 gives 0.

    Returns:
        [...] int32.
    """
    count = count.astype(jnp.uint32)
    low = words[..., 0] * count  # modulo 2^32
    with_carry = low + _high_word(words[..., 1], count)
    carry = (with_carry < low).astype(jnp.uint32)
    return (_high_word(words[..., 0], count) + carry).astype(jnp.int32)


def _find(counts: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The bin that holds item k (from 0) when bins are filled in order, and its rank in there."""
    before = jnp.cumsum(counts) <= k
    return before.sum(dtype=jnp.int32), k - (counts * before).sum(dtype=jnp.int32)


_BASE = 4096  # two counts of a row in one float32: exact, since _BASE ** 2 = 2 ** 24


def count_rows(prediction: jax.Array, truth: jax.Array) -> jax.Array:
    """Wrong voxels of masks [..., X, Y, Z] by row: int32 [..., 2, X, Y], missed before excess.

    Both are counted in one go over the volume, as digits of one number.

    Raises:
        ValueError: a row has more voxels than a digit holds.
    """
    if truth.shape[-1] >= _BASE:
        raise ValueError(f"rows of {truth.shape[-1]} voxels; clicks count up to {_BASE - 1}")
    digit = jnp.where(truth, 1.0, float(_BASE))
    both = jnp.where(prediction != truth, digit, 0.0).sum(-1).astype(jnp.int32)
    return jnp.stack([both % _BASE, both // _BASE], axis=-3)


def sample_clicks(
    key: jax.Array, prediction: jax.Array, truth: jax.Array, n: int, sampling: str
) -> tuple[jax.Array, jax.Array]:
    """Draws n clicks on the error of one prediction, with replacement.

    "uniform" (Sec. 3.2.3) takes every voxel of FN union FP with the same probability. "balanced"
    (Sec. 5.3) alternates between FN and FP from a random start: half from each for an even n, a
    fair coin for the odd one; an empty side is replaced by the other.

    A click costs two random words and three short searches, never a number per voxel: errors are
    counted per row once, then the k-th one is found by plane, by row and within the row.

    Args:
        key: a PRNG key.
        prediction: [X, Y, Z] bool.
        truth: [X, Y, Z] bool.
        n: number of clicks, static.
        sampling: "uniform" | "balanced".

    Returns:
        points [n, 3] float32 and labels [n] int32; without any error voxel all points are 0 and
        all labels -2.

    Raises:
        ConfigError: unknown `sampling`.
    """
    return _draw(key, count_rows(prediction, truth), prediction, truth, n, sampling)


def _draw(
    key: jax.Array,
    rows: jax.Array,
    prediction: jax.Array,
    truth: jax.Array,
    n: int,
    sampling: str,
) -> tuple[jax.Array, jax.Array]:
    """`sample_clicks` with the errors counted already; axis 0 of `rows` is the side, FN or FP."""
    if sampling not in ("uniform", "balanced"):
        raise ConfigError(f"config.click.sampling is {sampling!r}; use 'uniform' or 'balanced'.")
    if n == 0:
        return jnp.zeros((0, 3), jnp.float32), jnp.zeros((0,), jnp.int32)
    planes = rows.sum(-1, dtype=jnp.int32)  # [2, X]
    totals = planes.sum(-1, dtype=jnp.int32)  # [2]

    words = jax.random.bits(key, (2 * n + 1,), jnp.uint32)
    pairs = words[: 2 * n].reshape(n, 2)
    if sampling == "uniform":
        k = _integer_below(pairs, totals.sum(dtype=jnp.int32))
        sides = (k >= totals[0]).astype(jnp.int32)
        k = k - sides * totals[0]
    else:
        wanted = (jnp.arange(n, dtype=jnp.int32) + (words[2 * n] & 1).astype(jnp.int32)) % 2
        sides = jnp.where(totals[wanted] > 0, wanted, 1 - wanted)
        k = _integer_below(pairs, totals[sides])

    def locate(side: jax.Array, k: jax.Array) -> jax.Array:
        x, k = _find(planes[side], k)
        y, k = _find(rows[side, x], k)
        # One row of voxels is compared again, so no volume of either side is ever kept.
        row = (truth[x, y] != prediction[x, y]) & (truth[x, y] == (side == 0))
        z, _ = _find(row.astype(jnp.int32), k)
        return jnp.stack([x, y, z])

    points = jax.vmap(locate)(sides, k).astype(jnp.float32)
    found = totals.sum(dtype=jnp.int32) > 0
    labels = jnp.where(found, jnp.where(sides == 0, POSITIVE, NEGATIVE), UNUSED)
    return jnp.where(found, points, 0.0), labels.astype(jnp.int32)


def foreground(logits: jax.Array, threshold: float) -> jax.Array:
    """Voxels whose probability is at least `threshold`, bool; p = 0.5 is logit 0 (trap 11)."""
    if not 0 < threshold < 1:
        raise ConfigError(f"config.click.threshold is {threshold!r}; it must be between 0 and 1.")
    return logits.astype(jnp.float32) >= math.log(threshold / (1 - threshold))


def click_keys(key: jax.Array, batch: int, cfg: ClickConfig) -> jax.Array:
    """Keys [B, 1 + iterations] of the clicks drawn after each pass: key, folded with pass and case.

    Neither the number of passes nor the batch's size changes what a case draws.
    """
    of_pass = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(1 + cfg.iterations))
    return jax.vmap(lambda case: jax.vmap(partial(jax.random.fold_in, data=case))(of_pass))(
        jnp.arange(batch)
    )


class _Carry(NamedTuple):
    points: jax.Array  # [B, N, 3] float32, the buffer given to the last pass
    labels: jax.Array  # [B, N] int32
    mask_logits: jax.Array  # [B, a, b, c, 1] float32
    new_points: jax.Array  # [B, n, 3] float32, drawn from the last pass's error, not yet written
    new_labels: jax.Array  # [B, n] int32


def refine(
    decode: Decode,
    upsample: Upsample,
    score: Score,
    label: jax.Array,
    keys: jax.Array,
    cfg: ClickConfig,
    mask_shape: tuple[int, int, int],
    *,
    slots: int = 0,
) -> Refinement:
    """A first prediction from the fixed prompts, then clicks on its error, in one `lax.scan`.

    Pass 0 gets no click and a mask of zeros (trap 9); it is the test mode. Pass i > 0 gets the
    clicks drawn from the error of pass i - 1, with the earlier ones if `cfg.accumulate`, and the
    low-resolution logits of pass i - 1. All passes are the same scan step, so `decode` is traced
    once. Only low-resolution logits and clicks travel between steps, and only scores are stacked.

    Gradients reach `decode` through `score` of every pass, and from a later pass into an earlier
    one through the fed-back mask unless `cfg.detach_mask`. Clicks carry none.

    Args:
        decode: (points [B, N, 3] float32, labels [B, N] int32, mask logits [B, a, b, c, 1]
            float32) -> (low-resolution logits [B, a, b, c, 1], predicted IoU [B]). It closes over
            image embedding, box and text, and must ignore slots of label -2.
        upsample: low-resolution logits [B, a, b, c, 1] float32 -> logits [B, X, Y, Z].
        score: (logits, predicted IoU) -> pytree of small arrays: losses and metrics.
        label: [B, X, Y, Z], non-zero = foreground.
        keys: [B, 1 + iterations], of `click_keys`.
        cfg: number of clicks, how they are drawn and kept.
        mask_shape: (a, b, c).
        slots: N; 0 takes as many as `cfg` fills, which may be none.

    Raises:
        ConfigError: `slots` is too small.
        TypeError: from `lax.scan`, if `decode` does not return logits of `mask_shape`.
    """
    n = cfg.per_iteration if cfg.iterations else 0
    needed = n * (cfg.iterations if cfg.accumulate else 1)
    if 0 < slots < needed:
        raise ConfigError(
            f"The click buffer has {slots} slots, but config.click fills {needed}; "
            "give it at least that many, or 0 for exactly as many."
        )
    slots = slots or needed
    truth = label != 0
    batch, passes = truth.shape[0], 1 + cfg.iterations

    def unused(count: int) -> tuple[jax.Array, jax.Array]:
        points = jnp.zeros((batch, count, 3), jnp.float32)
        return points, jnp.full((batch, count), UNUSED, jnp.int32)

    def look(low_res: jax.Array, iou_prediction: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        """All that a pass does at full resolution: scores, prediction, wrong voxels by row."""
        logits = upsample(low_res)
        prediction = foreground(lax.stop_gradient(logits), cfg.threshold)
        return score(logits, iou_prediction), prediction, count_rows(prediction, truth)

    def body(carry: _Carry, inputs: tuple[jax.Array, jax.Array]) -> tuple[_Carry, Any]:
        step, keys = inputs
        points, labels = carry.points, carry.labels
        if n:
            # Pass 0 writes its unused clicks where pass 1 then writes the first real ones.
            start = jnp.maximum(step - 1, 0) * n if cfg.accumulate else 0
            points = lax.dynamic_update_slice_in_dim(points, carry.new_points, start, axis=1)
            labels = lax.dynamic_update_slice_in_dim(labels, carry.new_labels, start, axis=1)

        low_res, iou_prediction = decode(points, labels, carry.mask_logits)
        low_res = low_res.astype(jnp.float32)
        scores, prediction, rows = look(low_res, iou_prediction)

        draw = partial(_draw, n=n, sampling=cfg.sampling)
        # The last pass draws as well, for nobody: one pass over a mask, against a second trace.
        new_points, new_labels = jax.vmap(draw)(keys, rows, prediction, truth)
        mask = lax.stop_gradient(low_res) if cfg.detach_mask else low_res
        carry = _Carry(points, labels, mask, new_points, new_labels)
        return carry, (scores, rows.sum((-2, -1), dtype=jnp.int32))

    steps = jnp.arange(passes, dtype=jnp.int32)
    first = _Carry(*unused(slots), jnp.zeros((batch, *mask_shape, 1), jnp.float32), *unused(n))
    # A scan step is its own fence against common-subexpression elimination.
    checkpoint = partial(jax.checkpoint, prevent_cse=False)
    if cfg.remat == "elementwise":
        look = checkpoint(look)  # even its products: a volume of full resolution is never kept
        body = checkpoint(body, policy=jax.checkpoint_policies.dots_saveable)
    elif cfg.remat == "all":
        body = checkpoint(body)
    last, (pass_scores, wrong) = lax.scan(body, first, (steps, keys.swapaxes(0, 1)))
    return Refinement(pass_scores, wrong, last.points, last.labels, last.mask_logits)
