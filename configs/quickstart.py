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
    cfg.data.builder_cases = 240
    cfg.data.spacing_mm = 8 / 3  # 24 voxels: a crop of 64 mm around the dose box
    cfg.data.jitter = 2
    cfg.augment.flip_axes = (0, 1, 2)
    cfg.augment.intensity_scale = cfg.augment.intensity_shift = 0.1
    cfg.prompt.language_model = "weights/minilm"
    cfg.model.preset = "cpu_xs"
    cfg.model.freeze_encoder = False
    cfg.click.iterations = 1
    cfg.loss.dice_ce = 0.5
    cfg.loss.pass_weights = (0.7, 0.3)  # the first pass, without clicks, is the one that is scored
    cfg.optim.lr = 6e-4
    cfg.optim.b2 = 0.98  # few steps: second moments have to settle sooner
    cfg.optim.warmup_steps = 20
    cfg.optim.milestones = (0.6, 0.75, 0.9)
    cfg.optim.decay = 0.3
    cfg.steps = 1800
    cfg.log_every = 50
    cfg.checkpoint_every = 300
    return cfg
