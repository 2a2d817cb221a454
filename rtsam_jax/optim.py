"""AdamW with MultiStepLR, the paper's optimiser (Sec. 4.1)."""

from __future__ import annotations

import optax

from rtsam_jax.config import OptimConfig


def learning_rate(cfg: OptimConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then `lr`, multiplied by `decay` at each milestone (a share of `steps`)."""
    drops = {round(share * steps): cfg.decay for share in cfg.milestones}
    multistep = optax.piecewise_constant_schedule(cfg.lr, drops)
    if not cfg.warmup_steps:
        return multistep
    # Warm-up scales the schedule instead of shifting it, so milestones stay where they are.
    ramp = optax.linear_schedule(1.0 / cfg.warmup_steps, 1.0, cfg.warmup_steps - 1)
    return lambda step: ramp(step) * multistep(step)


def make_optimizer(cfg: OptimConfig, steps: int) -> optax.GradientTransformation:
    """The transformation over the trainable parameters; frozen ones never reach it."""
    adamw = optax.adamw(
        learning_rate(cfg, steps), b1=cfg.b1, b2=cfg.b2, weight_decay=cfg.weight_decay
    )
    if cfg.clip_norm > 0:
        return optax.chain(optax.clip_by_global_norm(cfg.clip_norm), adamw)
    return adamw
