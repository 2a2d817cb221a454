"""`rtsam_jax.losses.segmentation_loss` on PyTorch's tensors, term by term and with its constants.

Shapes: logits, label and ROI are [B, X, Y, Z]; a loss has one value per case, [B], float32.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from rtsam_jax.config import LossConfig

RECIPES = ("dice_ce", "ours")
_VOXELS = (1, 2, 3)


class _Counts(NamedTuple):
    """Soft TP, FP and FN, [B] each, in voxels."""

    hit: Any
    excess: Any
    missed: Any


def recipe(name: str, cfg: LossConfig) -> LossConfig:
    """The weights of a recipe: "dice_ce", over the whole crop, or "ours", the config's own."""
    if name == "ours":
        return cfg
    return dataclasses.replace(cfg, dice=0.0, focal_tversky=0.0, dice_ce=1.0)


def segmentation_loss(logits: Any, label: Any, roi: Any, cfg: LossConfig) -> Any:
    """Eqs. (1)-(4) inside the ROI and Dice-CE over the crop, weighted by `cfg`; no IoU head.

    Args:
        logits: any floating type; the arithmetic is float32.
        label: non-zero = foreground.
        roi: non-zero = inside the high-dose region.
    """
    import torch

    logits, truth, inside = logits.float(), label != 0, roi != 0
    wrong = torch.where(truth, -logits, logits)  # the wrong class's logit
    error = torch.sigmoid(wrong)
    loss = torch.zeros(len(logits), device=logits.device)
    if cfg.dice or cfg.focal_tversky:
        counts = _count(error * inside, truth, (truth & inside).sum(_VOXELS))
        loss = loss + cfg.dice * _dice_loss(counts, cfg.epsilon)
        loss = loss + cfg.focal_tversky * _focal_tversky_loss(torch, counts, cfg)
    if cfg.dice_ce:
        counts = _count(error, truth, truth.sum(_VOXELS))
        entropy = torch.nn.functional.softplus(wrong).mean(_VOXELS)
        loss = loss + cfg.dice_ce * (_dice_loss(counts, cfg.epsilon) + entropy)
    return loss


def _count(error: Any, truth: Any, size: Any) -> _Counts:
    missed = (error * truth).sum(_VOXELS)
    return _Counts(size - missed, (error * ~truth).sum(_VOXELS), missed)


def _dice_loss(counts: _Counts, epsilon: float) -> Any:
    error = counts.excess + counts.missed
    return error / (2 * counts.hit + error + epsilon)


def _focal_tversky_loss(torch: Any, counts: _Counts, cfg: LossConfig) -> Any:
    error = cfg.alpha * counts.excess + cfg.beta * counts.missed
    base = error / (counts.hit + error + cfg.epsilon)
    # The power's slope is infinite at 0 where gamma < 1; there the gradient is 0.
    safe = torch.where(base > 0, base, torch.ones_like(base))
    return torch.where(base > 0, safe**cfg.gamma, torch.zeros_like(base))
