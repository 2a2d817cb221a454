"""The training loss: Eqs. (1)-(4) inside the high-dose ROI, Dice-CE over the whole crop.

Shapes: logits, label and ROI are [B, X, Y, Z]; losses and counts have one value per case, [B].
Logits may be bfloat16 or float32; all arithmetic is float32.

Both overlap losses are written as error / (overlap + error), which equals the paper's
1 - overlap / (overlap + error) without its cancellation, and a voxel's error is computed from the
logit: so a nearly perfect prediction still has an exact loss and gradient. With epsilon > 0 no
denominator vanishes: an empty ROI gives loss 0 and gradient 0.

A crop has millions of voxels, and the loss is taken of every pass: what a voxel contributes to all
terms is computed once, with one exponential, and so is its derivative.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rtsam_jax.config import LossConfig
from rtsam_jax.errors import ConfigError

_VOXELS = (-3, -2, -1)


class Target(NamedTuple):
    """What all predictions of a batch are scored against.

    Attributes:
        truth: [B, X, Y, Z] bool.
        inside: [B, X, Y, Z] bool, the high-dose ROI.
        size: [B] float32, voxels of truth.
        size_inside: [B] float32, those of them inside the ROI.
    """

    truth: jax.Array
    inside: jax.Array
    size: jax.Array
    size_inside: jax.Array


def make_target(label: jax.Array, roi: jax.Array) -> Target:
    """A target from `label` and `roi` [B, X, Y, Z]; a voxel counts where it is not 0."""
    truth, inside = label != 0, roi != 0
    sizes = (x.sum(_VOXELS, dtype=jnp.int32) for x in (truth, truth & inside))
    return Target(truth, inside, *(size.astype(jnp.float32) for size in sizes))


class SoftCounts(NamedTuple):
    """Soft TP, FP and FN of Eq. (4), in voxels, [B] each."""

    hit: jax.Array
    excess: jax.Array
    missed: jax.Array


class VoxelErrors(NamedTuple):
    """Of every voxel, [B, X, Y, Z] float32: the probability of the wrong class, cross-entropy."""

    error: jax.Array
    entropy: jax.Array


@jax.custom_jvp
def _errors_of(wrong_logit: jax.Array) -> VoxelErrors:
    """Sigmoid and softplus of the wrong class's logit."""
    small = jnp.exp(-jnp.abs(wrong_logit))
    error = jnp.where(wrong_logit >= 0, 1.0, small) / (1 + small)
    return VoxelErrors(error, jnp.maximum(wrong_logit, 0) + jnp.log1p(small))


@_errors_of.defjvp
def _errors_and_their_change(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[VoxelErrors, VoxelErrors]:
    (wrong_logit,), (change,) = primals, tangents
    found = _errors_of(wrong_logit)
    small = jnp.exp(-jnp.abs(wrong_logit))
    # Both slopes hold at 0 too, where |x| has none.
    slope = small / (1 + small) ** 2
    return found, VoxelErrors(slope * change, found.error * change)


def voxel_errors(logits: jax.Array, target: Target) -> VoxelErrors:
    """What every voxel of a prediction contributes to the terms of the loss."""
    logits = logits.astype(jnp.float32)
    return _errors_of(jnp.where(target.truth, -logits, logits))


def count_crop(errors: VoxelErrors, target: Target) -> SoftCounts:
    """Soft counts over all voxels."""
    return _count(errors.error, target.truth, ~target.truth, target.size)


def count_roi(errors: VoxelErrors, target: Target) -> SoftCounts:
    """Soft counts inside the ROI."""
    truth, other = target.truth & target.inside, ~target.truth & target.inside
    return _count(errors.error, truth, other, target.size_inside)


def _count(error: jax.Array, truth: jax.Array, other: jax.Array, size: jax.Array) -> SoftCounts:
    missed = (error * truth).sum(_VOXELS)
    return SoftCounts(size - missed, (error * other).sum(_VOXELS), missed)


def dice_loss(counts: SoftCounts, epsilon: float) -> jax.Array:
    """1 - (2 sum(p y) + epsilon) / (sum(p) + sum(y) + epsilon), Eq. (2); in [0, 1).

    Args:
        counts: inside the ROI, or over the crop.
        epsilon: positive, in voxels.
    """
    error = counts.excess + counts.missed
    return error / (2 * counts.hit + error + epsilon)


def focal_tversky_loss(
    counts: SoftCounts, *, alpha: float, beta: float, gamma: float, epsilon: float
) -> jax.Array:
    """(1 - (TP + epsilon) / (TP + alpha FP + beta FN + epsilon)) ** gamma, Eq. (3); in [0, 1).

    For gamma < 1 the power's slope is infinite at 0, which a saturated, perfect prediction reaches
    exactly; there the gradient is set to 0, its limit along the sigmoid.

    Args:
        counts: inside the ROI.
        alpha: weight of false positives.
        beta: weight of false negatives.
        gamma: positive exponent.
        epsilon: positive, in voxels.
    """
    error = alpha * counts.excess + beta * counts.missed
    base = error / (counts.hit + error + epsilon)
    # Both branches need a finite derivative: `where` multiplies the unused one by 0, not away.
    return jnp.where(base > 0, jnp.where(base > 0, base, 1.0) ** gamma, 0.0)


def dice_ce(errors: VoxelErrors, target: Target, epsilon: float) -> jax.Array:
    """Dice loss plus mean binary cross-entropy over the whole crop, weighted equally.

    The Dice term has the plain denominator sum(p) + sum(y) of Eq. (2), with the same epsilon in
    numerator and denominator, not the squared prediction of SAM-Med3D's training loop. It equals
    MONAI's `DiceCELoss(sigmoid=True, smooth_nr=epsilon, smooth_dr=epsilon)` case by case.
    """
    return dice_loss(count_crop(errors, target), epsilon) + errors.entropy.mean(_VOXELS)


def _predicted(logits: jax.Array, threshold: float) -> jax.Array:
    """Voxels whose probability is at least `threshold`; compared as logits, in float32."""
    if not 0 < threshold < 1:
        raise ConfigError(f"A prediction threshold is {threshold!r}, but must be between 0 and 1.")
    return logits.astype(jnp.float32) >= math.log(threshold / (1 - threshold))


def _share(part: jax.Array, whole: jax.Array) -> jax.Array:
    """Quotient in float32, and 1 where the whole is empty: nothing was there to get wrong."""
    return jnp.where(whole > 0, part / jnp.maximum(whole, 1), 1.0).astype(jnp.float32)


def iou_head_loss(
    iou_pred: jax.Array, logits: jax.Array, label: jax.Array, threshold: float = 0.5
) -> jax.Array:
    """Squared error of the predicted IoU against the thresholded mask's IoU over the crop.

    The target carries no gradient. Two empty masks have IoU 1.

    Args:
        iou_pred: [B], the IoU head's output.
        logits: [B, X, Y, Z].
        label: [B, X, Y, Z], non-zero = foreground.
        threshold: probability at which a voxel counts as foreground.

    Returns:
        [B] float32.
    """
    predicted, truth = _predicted(jax.lax.stop_gradient(logits), threshold), label != 0
    actual = _share((predicted & truth).sum(_VOXELS), (predicted | truth).sum(_VOXELS))
    return (iou_pred.astype(jnp.float32) - actual) ** 2


def segmentation_loss(
    logits: jax.Array, target: Target, iou_pred: jax.Array | None, cfg: LossConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The whole loss of one prediction, per case; the caller takes the mean over the batch.

    `cfg.dice` * Eq. (2) + `cfg.focal_tversky` * Eq. (3), both inside the ROI, are the small target
    focus loss of Eq. (1); Dice-CE over the crop and the IoU head's loss are added. A term of
    weight 0 is neither computed nor reported.

    Args:
        logits: [B, X, Y, Z].
        target: of `make_target`.
        iou_pred: [B], the IoU head's output; may be None where `cfg.iou_head` is 0.
        cfg: weights and constants.

    Returns:
        The weighted sum, [B] float32, and its unweighted parts, [B] float32 each, under the names
        of their weights in `cfg`, beside `truth_outside_roi`: 1 for a case that has truth in the
        crop but none of it in the ROI, so that such cases can be counted, else 0.

    Raises:
        ConfigError: `cfg.iou_head` has a weight but there is no `iou_pred`.
    """
    errors = voxel_errors(logits, target)
    inside = count_roi(errors, target)
    parts = {}
    if cfg.dice:
        parts["dice"] = dice_loss(inside, cfg.epsilon)
    if cfg.focal_tversky:
        parts["focal_tversky"] = focal_tversky_loss(
            inside, alpha=cfg.alpha, beta=cfg.beta, gamma=cfg.gamma, epsilon=cfg.epsilon
        )
    if cfg.dice_ce:
        parts["dice_ce"] = dice_ce(errors, target, cfg.epsilon)
    if cfg.iou_head:
        if iou_pred is None:
            raise ConfigError(
                "config.loss.iou_head needs a model that predicts an IoU; set it to 0."
            )
        parts["iou_head"] = iou_head_loss(iou_pred, logits, target.truth)
    loss = jnp.zeros(logits.shape[0], jnp.float32)
    for name, value in parts.items():
        loss += getattr(cfg, name) * value

    lost = (target.size > 0) & (target.size_inside == 0)
    return loss, parts | {"truth_outside_roi": lost.astype(jnp.float32)}


def weigh_passes(losses: jax.Array, cfg: LossConfig) -> jax.Array:
    """Weighted mean over the first prediction and its refinements: [P, B] -> [B].

    Weights are `cfg.pass_weights` divided by their sum; none given means equal ones.

    Raises:
        ConfigError: the number of weights is not the number of passes.
    """
    passes = losses.shape[0]
    weights = cfg.pass_weights or (1.0,) * passes
    if len(weights) != passes:
        raise ConfigError(
            f"config.loss.pass_weights has {len(weights)} numbers, but there are {passes} passes."
        )
    total = sum(weights)
    return jnp.einsum("p,pb->b", jnp.array([w / total for w in weights], jnp.float32), losses)


def dice_score(size: jax.Array, missed: jax.Array, excess: jax.Array) -> jax.Array:
    """Dice of a mask with so many wrong voxels, for progress lines; two empty masks score 1.

    Args:
        size: voxels of truth.
        missed: of them, not predicted.
        excess: predicted voxels that are not of the truth.
    """
    hit = 2 * (size - missed)
    return _share(hit, hit + missed + excess)
