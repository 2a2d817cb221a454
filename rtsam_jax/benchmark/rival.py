"""The other side: the authors' PyTorch SAM-Med3D (`medim`), eager, float32, the same recipe.

Nothing is held back: as many threads as there are CPUs, inference mode for the forward pass, no
gradient through the frozen encoder, no recomputation. It gets clicks and mask, but neither dose box
nor task tokens, which the published model cannot take; that is a few tokens less work than ours.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from rtsam_jax.benchmark.flops import encoder_flop
from rtsam_jax.benchmark.timing import Contender
from rtsam_jax.config import ExperimentConfig, LossConfig
from rtsam_jax.data.sample import Sample
from rtsam_jax.errors import ConfigError, ExtraMissing
from rtsam_jax.models.presets import get_spec

SIDE = "medim"
PRESET = "vit_b_ori"  # what medim calls SAM-Med3D


class RivalSide:
    """One randomly initialised `medim` model, the encoder frozen.

    Raises:
        ExtraMissing: torch or medim is not installed.
        ConfigError: a preset that `medim` does not have.
    """

    def __init__(self, cfg: ExperimentConfig):
        if cfg.model.preset != PRESET:
            raise ConfigError(
                f"medim has no counterpart of preset {cfg.model.preset!r}; use --preset {PRESET} "
                f"or --rival none."
            )
        try:
            import medim
            import torch
        except ImportError as error:
            raise ExtraMissing(
                f"the PyTorch original cannot be loaded ({error}); install it with "
                f"pip install -e '.[test]', or time this project alone with --rival none."
            ) from error
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.manual_seed(cfg.seed)
        self.cfg, self.torch = cfg, torch
        self.model = medim.create_model("SAM-Med3D")
        self.model.image_encoder.requires_grad_(False)

    def encoder(self, batch: Sample) -> Contender:
        """The encoder's forward pass."""
        torch = self.torch
        image = torch.from_numpy(np.moveaxis(batch.image, -1, 1).copy())
        self.model.eval()

        def run() -> None:
            with torch.inference_mode():
                self.model.image_encoder(image)

        flop = encoder_flop(get_spec(PRESET), padded=True) * len(image)
        return Contender(SIDE, run, hand_flop=flop)

    def step(self, batch: Sample) -> Contender:
        """Encode, a click-free pass, passes with clicks, one backward pass, AdamW."""
        torch, cfg = self.torch, self.cfg
        image = torch.from_numpy(np.moveaxis(batch.image, -1, 1).copy())
        label = torch.from_numpy(batch.label.astype(bool))
        roi = torch.from_numpy(batch.roi.astype(bool))
        self.model.train()
        optimizer = torch.optim.AdamW(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=cfg.optim.lr,
            betas=(cfg.optim.b1, cfg.optim.b2),
            weight_decay=cfg.optim.weight_decay,
        )

        def run() -> None:
            with torch.no_grad():
                embedding = self.model.image_encoder(image)
            loss = self._refine(embedding, label, roi)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        return Contender(SIDE, run)

    def _refine(self, embedding: Any, label: Any, roi: Any) -> Any:
        """Mean loss over the first pass and the passes that get clicks on the last one's error."""
        torch, cfg = self.torch, self.cfg
        side = get_spec(PRESET).mask_size
        mask = torch.zeros((len(label), 1, side, side, side))
        points = torch.zeros((len(label), 0, 3))
        signs = torch.zeros((len(label), 0), dtype=torch.int64)
        position = self.model.prompt_encoder.get_dense_pe()
        losses = []
        for iteration in range(1 + cfg.click.iterations):
            clicks = (points, signs) if iteration else None
            sparse, dense = self.model.prompt_encoder(clicks, None, mask)
            low_res, _ = self.model.mask_decoder(embedding, position, sparse, dense)
            logits = torch.nn.functional.interpolate(
                low_res, label.shape[1:], mode="trilinear", align_corners=False
            )[:, 0]
            losses.append(_loss(torch, logits, label, roi, cfg.loss))
            if iteration < cfg.click.iterations:
                drawn = _clicks(torch, logits.detach() >= 0, label, cfg.click.per_iteration)
                points = torch.cat([points, drawn[0]], dim=1)
                signs = torch.cat([signs, drawn[1]], dim=1)
                mask = low_res.detach()
        return torch.stack(losses).mean()


def _clicks(torch: Any, predicted: Any, label: Any, n: int) -> tuple[Any, Any]:
    """`n` voxels per case, uniform over FN and FP with replacement, and their signs."""
    points, signs = [], []
    for wrong, truth in zip(predicted != label, label, strict=True):
        voxels = torch.nonzero(wrong)
        if len(voxels) == 0:
            points.append(torch.zeros((n, 3)))
            signs.append(torch.full((n,), -1))
            continue
        chosen = voxels[torch.randint(len(voxels), (n,))]
        points.append(chosen.float())
        signs.append(truth[chosen[:, 0], chosen[:, 1], chosen[:, 2]].long())
    return torch.stack(points), torch.stack(signs)


def _loss(torch: Any, logits: Any, label: Any, roi: Any, cfg: LossConfig) -> Any:
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
    return focus.mean() + cfg.dice_ce * (dice_loss(torch.ones(())).mean() + entropy)
