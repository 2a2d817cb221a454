"""The training loss: Eqs. (1)-(4) inside the high-dose ROI, Dice-CE over the whole crop.

Shapes: `logits`, `label`, `roi` are [B, X, Y, Z]; every function returns one value per case, [B].
Logits may be bfloat16 or float32; all arithmetic is float32. A label or ROI voxel counts where it
is non-zero.

Both overlap losses are written as error / (overlap + error), which equals the paper's
1 - overlap / (overlap + error) without its cancellation, and 1 - p is computed as sigmoid(-logit):
so a nearly perfect prediction still has an exact loss and gradient. With epsilon > 0 no
denominator vanishes: an empty ROI gives loss 0 and gradient 0.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from rtsam_jax.config import LossConfig
from rtsam_jax.errors import ConfigError

_VOXELS = (-3, -2, -1)


def _soft_counts(
    logits: jax.Array, label: jax.Array, roi: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Soft (TP, FP, FN) of Eq. (4), in voxels, [B] each; over all voxels where `roi` is None."""
    logits = logits.astype(jnp.float32)
    truth = label != 0
    inside = jnp.ones_like(truth) if roi is None else roi != 0
    foreground = jax.nn.sigmoid(logits)
    background = jax.nn.sigmoid(-logits)
    true_positive = (foreground * (truth & inside)).sum(_VOXELS)
    false_positive = (foreground * (~truth & inside)).sum(_VOXELS)
    false_negative = (background * (truth & inside)).sum(_VOXELS)
    return true_positive, false_positive, false_negative


def roi_dice_loss(
    logits: jax.Array, label: jax.Array, roi: jax.Array | None, epsilon: float
) -> jax.Array:
    """1 - (2 sum(p y) + epsilon) / (sum(p) + sum(y) + epsilon) over the ROI, Eq. (2).

    Args:
        logits: [B, X, Y, Z].
        label: [B, X, Y, Z], non-zero = foreground.
        roi: [B, X, Y, Z], non-zero = inside; None = the whole crop.
        epsilon: positive, in voxels.

    Returns:
        [B] float32 in [0, 1).
    """
    overlap, false_positive, false_negative = _soft_counts(logits, label, roi)
    error = false_positive + false_negative
    return error / (2 * overlap + error + epsilon)


def focal_tversky_loss(
    logits: jax.Array,
    label: jax.Array,
    roi: jax.Array,
    *,
    alpha: float,
    beta: float,
    gamma: float,
    epsilon: float,
) -> jax.Array:
    """(1 - (TP + epsilon) / (TP + alpha FP + beta FN + epsilon)) ** gamma, Eqs. (3), (4).

    For gamma < 1 the power's slope is infinite at 0, which a saturated, perfect prediction reaches
    exactly; there the gradient is set to 0, its limit along the sigmoid.

    Args:
        logits: [B, X, Y, Z].
        label: [B, X, Y, Z], non-zero = foreground.
        roi: [B, X, Y, Z], non-zero = inside.
        alpha: weight of false positives.
        beta: weight of false negatives.
        gamma: positive exponent.
        epsilon: positive, in voxels.

    Returns:
        [B] float32 in [0, 1).
    """
    overlap, false_positive, false_negative = _soft_counts(logits, label, roi)
    error = alpha * false_positive + beta * false_negative
    base = error / (overlap + error + epsilon)
    # Both branches need a finite derivative: `where` multiplies the unused one by 0, not away.
    return jnp.where(base > 0, jnp.where(base > 0, base, 1.0) ** gamma, 0.0)


def dice_ce(logits: jax.Array, label: jax.Array, epsilon: float) -> jax.Array:
    """Dice loss plus mean binary cross-entropy over the whole crop, weighted equally.

    The Dice term has the plain denominator sum(p) + sum(y) of Eq. (2), with the same epsilon in
    numerator and denominator, not the squared prediction of SAM-Med3D's training loop. It equals
    MONAI's `DiceCELoss(sigmoid=True, smooth_nr=epsilon, smooth_dr=epsilon)` case by case.

    Returns:
        [B] float32.
    """
    signed = jnp.where(label != 0, -1.0, 1.0) * logits.astype(jnp.float32)
    cross_entropy = jax.nn.softplus(signed).mean(_VOXELS)
    return roi_dice_loss(logits, label, None, epsilon) + cross_entropy


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
    logits: jax.Array,
    label: jax.Array,
    roi: jax.Array,
    iou_pred: jax.Array | None,
    cfg: LossConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The whole loss of one prediction, per case; the caller takes the mean over the batch.

    `cfg.dice` * Eq. (2) + `cfg.focal_tversky` * Eq. (3), both inside the ROI, are the small target
    focus loss of Eq. (1); Dice-CE over the crop and the IoU head's loss are added. A term of
    weight 0 is neither computed nor reported.

    Args:
        logits: [B, X, Y, Z].
        label: [B, X, Y, Z], non-zero = foreground.
        roi: [B, X, Y, Z], non-zero = inside the high-dose ROI.
        iou_pred: [B], the IoU head's output; may be None where `cfg.iou_head` is 0.
        cfg: weights and constants.

    Returns:
        The weighted sum, [B] float32, and its unweighted parts, [B] float32 each, under the names
        of their weights in `cfg`, beside `truth_outside_roi`: 1 for a case that has truth in the
        crop but none of it in the ROI, so that such cases can be counted, else 0.

    Raises:
        ConfigError: `cfg.iou_head` has a weight but there is no `iou_pred`.
    """
    parts = {}
    if cfg.dice:
        parts["dice"] = roi_dice_loss(logits, label, roi, cfg.epsilon)
    if cfg.focal_tversky:
        parts["focal_tversky"] = focal_tversky_loss(
            logits,
            label,
            roi,
            alpha=cfg.alpha,
            beta=cfg.beta,
            gamma=cfg.gamma,
            epsilon=cfg.epsilon,
        )
    if cfg.dice_ce:
        parts["dice_ce"] = dice_ce(logits, label, cfg.epsilon)
    if cfg.iou_head:
        if iou_pred is None:
            raise ConfigError(
                "config.loss.iou_head needs a model that predicts an IoU; set it to 0."
            )
        parts["iou_head"] = iou_head_loss(iou_pred, logits, label)
    loss = jnp.zeros(logits.shape[0], jnp.float32)
    for name, value in parts.items():
        loss += getattr(cfg, name) * value

    truth = label != 0
    lost = truth.any(_VOXELS) & ~(truth & (roi != 0)).any(_VOXELS)
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


def dice_score(logits: jax.Array, label: jax.Array, threshold: float | None = 0.5) -> jax.Array:
    """Dice over the crop for progress lines, [B] float32; two empty masks score 1.

    Args:
        logits: [B, X, Y, Z].
        label: [B, X, Y, Z], non-zero = foreground.
        threshold: probability at which a voxel counts as foreground; None scores the
            probabilities themselves (soft Dice).
    """
    if threshold is None:
        overlap, false_positive, false_negative = _soft_counts(logits, label, None)
        sizes = 2 * overlap + false_positive + false_negative
        return jnp.where(sizes > 0, 2 * overlap / jnp.where(sizes > 0, sizes, 1.0), 1.0)
    predicted, truth = _predicted(logits, threshold), label != 0
    sizes = predicted.sum(_VOXELS) + truth.sum(_VOXELS)
    return _share(2 * (predicted & truth).sum(_VOXELS), sizes)
