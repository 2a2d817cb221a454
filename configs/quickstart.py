"""Trains, evaluates and draws on synthetic head phantoms, from scratch, on two CPU cores.

    python -m rtsam_jax.train --config configs/quickstart.py

Makes the phantoms in datasets/phantom the first time.
"""

from rtsam_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    """A small preset whose encoder is trained: there are no published weights of this size."""
    cfg = ExperimentConfig(name="quickstart")
    cfg.data.dataset = "datasets/phantom"
    cfg.data.builder = "phantom"
    cfg.data.spacing_mm = 2.0  # 48 voxels: a crop of 96 mm
    cfg.data.jitter = 4
    cfg.model.preset = "cpu_xs"
    cfg.model.freeze_encoder = False
    cfg.click.iterations = 1
    cfg.optim.lr = 1e-3
    cfg.optim.warmup_steps = 20
    cfg.optim.clip_norm = 1.0
    cfg.steps = 400
    cfg.checkpoint_every = 100
    return cfg
