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
    cfg.data.builder_cases = 180
    cfg.data.spacing_mm = 2.0  # 32 voxels: a crop of 64 mm around the dose box
    cfg.data.jitter = 3
    cfg.data.flip_axes = (0, 1, 2)
    cfg.data.intensity_jitter = 0.1
    cfg.model.preset = "cpu_xs"
    cfg.model.freeze_encoder = False
    cfg.click.iterations = 1
    cfg.loss.dice_ce = 0.5
    cfg.optim.lr = 1e-3
    cfg.optim.b2 = 0.98  # few steps: second moments have to settle sooner
    cfg.optim.warmup_steps = 20
    cfg.optim.milestones = (0.6, 0.75, 0.9)
    cfg.optim.decay = 0.3
    cfg.mesh.cpu_devices = 2  # one model of this size does not keep two cores busy
    cfg.steps = 4500
    cfg.log_every = 50
    cfg.checkpoint_every = 500
    return cfg
