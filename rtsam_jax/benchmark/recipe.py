"""Our training recipe in PyTorch, for the rival: the loss of one prediction, and new clicks."""

from __future__ import annotations

from typing import Any

from rtsam_jax.config import LossConfig


def draw_clicks(torch: Any, predicted: Any, label: Any, n: int) -> tuple[Any, Any]:
    """`n` voxels per case, uniform over FN and FP with replacement, and their signs."""
    points, signs = [], []
    for wrong, truth in zip(predicted != label, label, strict=True):
        voxels = torch.nonzero(wrong)
        if len(voxels) == 0:
            points.append(torch.zeros((n, 3), device=label.device))
            signs.append(torch.full((n,), -1, device=label.device))
            continue
        chosen = voxels[torch.randint(len(voxels), (n,), device=label.device)]
        points.append(chosen.float())
        signs.append(truth[chosen[:, 0], chosen[:, 1], chosen[:, 2]].long())
    return torch.stack(points), torch.stack(signs)


def loss(torch: Any, logits: Any, label: Any, roi: Any, cfg: LossConfig) -> Any:
    """The sum of `rtsam_jax.losses.segmentation_loss`, mean over the batch."""
    axes, truth = (1, 2, 3), label.float()
    p = torch.sigmoid(logits)

    def overlap_loss(inside: Any, alpha: float, beta: float) -> Any:
        hit = (p * truth * inside).sum(axes)
        excess = (p * (1 - truth) * inside).sum(axes)
        missed = ((1 - p) * truth * inside).sum(axes)
        error = alpha * excess + beta * missed
        return error / (hit + error + cfg.epsilon)

    def dice_loss(inside: Any) -> Any:
        hit = (p * truth * inside).sum(axes)
        sizes = ((p + truth) * inside).sum(axes)
        return 1 - (2 * hit + cfg.epsilon) / (sizes + cfg.epsilon)

    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
    inside = roi.float()
    tversky = overlap_loss(inside, cfg.alpha, cfg.beta) ** cfg.gamma
    focus = cfg.dice * dice_loss(inside) + cfg.focal_tversky * tversky
    return focus.mean() + cfg.dice_ce * (dice_loss(torch.ones_like(inside)).mean() + entropy)
