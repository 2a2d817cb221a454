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
    hit = p * truth  # every product of volumes is made once: they are what a loss costs

    def dice_loss(hits: Any, sizes: Any) -> Any:
        return 1 - (2 * hits + cfg.epsilon) / (sizes + cfg.epsilon)

    inside = roi.float()
    hits, predicted = (hit * inside).sum(axes), (p * inside).sum(axes)
    true = (truth * inside).sum(axes)
    error = cfg.alpha * (predicted - hits) + cfg.beta * (true - hits)
    tversky = (error / (hits + error + cfg.epsilon)) ** cfg.gamma
    focus = cfg.dice * dice_loss(hits, predicted + true) + cfg.focal_tversky * tversky

    crop = dice_loss(hit.sum(axes), p.sum(axes) + truth.sum(axes))
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
    return focus.mean() + cfg.dice_ce * (crop.mean() + entropy)
