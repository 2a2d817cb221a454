"""What a record is worth: synthetic heads with two look-alike lesions, of which it names the side.

    python -m rtsam_jax.train --config configs/phantom_twins.py
    python -m rtsam_jax.evaluate --run runs/phantom_twins --probe task text record no-record

Makes the phantoms in datasets/phantom_twins the first time. Without the record the best mask covers
both lesions; with --config.prompt.task=embedding or none the same is trained without it.
"""

from rtsam_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    """The quickstart's model at 3 mm: a crop of 72 mm holds the dose across the midline."""
    cfg = ExperimentConfig(name="phantom_twins")
    cfg.data.dataset = "datasets/phantom_twins"
    cfg.data.builder = "phantom_twins"
    cfg.data.builder_cases = 240
    cfg.data.spacing_mm = 3.0
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
