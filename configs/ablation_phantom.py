"""The ablation on synthetic head phantoms (three planted injuries), on two CPU cores.

    python -m rtsam_jax.ablate --config configs/ablation_phantom.py --pretrain-steps 1200

The quickstart's dataset and preset; makes the phantoms in datasets/phantom the first time. A longer
one, each variant from scratch: leave out --pretrain-steps, and --config.steps=900 or more. What
only a record can tell is measured with --config.data.builder=phantom_twins
--config.data.dataset=datasets/phantom_twins.
"""

from rtsam_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    """The quickstart's crop of 64 mm: with a larger one a few hundred steps teach too little."""
    cfg = ExperimentConfig(name="ablation_phantom")
    cfg.data.dataset = "datasets/phantom"
    cfg.data.builder = "phantom"
    cfg.data.builder_cases = 240
    cfg.data.spacing_mm = 8 / 3
    cfg.data.jitter = 2
    cfg.dose.tau = 0.8
    cfg.augment.flip_axes = (0, 1, 2)
    cfg.augment.intensity_scale = cfg.augment.intensity_shift = 0.1
    cfg.prompt.language_model = "weights/minilm"
    cfg.model.preset = "cpu_xs"
    cfg.model.freeze_encoder = False
    cfg.click.iterations = 3
    cfg.click.per_iteration = 4
    cfg.loss.dice, cfg.loss.focal_tversky, cfg.loss.dice_ce = 0.7, 0.3, 1.0
    cfg.optim.lr = 6e-4
    cfg.optim.b2 = 0.98  # few steps: second moments have to settle sooner
    cfg.optim.warmup_steps = 20
    cfg.optim.milestones = (0.6, 0.75, 0.9)
    cfg.optim.decay = 0.3
    cfg.steps = 300  # a variant's, with an encoder that is pretrained
    cfg.log_every = 50
    cfg.checkpoint_every = 150
    cfg.figures = 0  # of each run; the studies' own are drawn
    return cfg
