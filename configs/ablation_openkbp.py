"""The ablation on real CT and dose with surrogate tasks (whole structures), on two CPU cores.

    python -m rtsam_jax.ablate --config configs/ablation_openkbp.py --pretrain-steps 1200 \
        --config.data.source=OPENKBP

Mandible and parotid glands from one image and one dose, so that Base cannot know what it is asked
for. In full, from scratch at 3 mm and 96^3: no --pretrain-steps, --config.model.preset=cpu_s
--config.data.spacing_mm=3 --config.data.jitter=8 --config.steps=2000.
"""

from rtsam_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    """The surrogate of configs/openkbp_surrogate.py at twice its voxel."""
    cfg = ExperimentConfig(name="ablation_openkbp")
    cfg.data.dataset = "datasets/openkbp_surrogate"
    cfg.data.builder = "openkbp"
    cfg.data.eval_split = "val"
    cfg.data.spacing_mm = 6.0
    cfg.data.jitter = 4
    cfg.dose.tau = 0.5
    cfg.prompt.language_model = "weights/minilm"
    cfg.prompt.task_texts = (  # all records say the same, so these words alone tell cases apart
        "mandible=the mandible, the bone of the lower jaw",
        "parotid_right=the right parotid gland",
        "parotid_left=the left parotid gland",
    )
    cfg.model.preset = "cpu_s48"
    cfg.model.freeze_encoder = False
    cfg.click.iterations = 3
    cfg.click.per_iteration = 4
    cfg.loss.dice, cfg.loss.focal_tversky, cfg.loss.dice_ce = 0.7, 0.3, 1.0
    cfg.optim.lr = 6e-4
    cfg.optim.b2 = 0.98  # few steps: second moments have to settle sooner
    cfg.optim.warmup_steps = 50
    cfg.optim.clip_norm = 1.0
    cfg.optim.milestones = (0.6, 0.75, 0.9)
    cfg.optim.decay = 0.3
    cfg.steps = 300  # a variant's, with an encoder that is pretrained
    cfg.log_every = 50
    cfg.checkpoint_every = 150
    cfg.figures = 0  # of each run; the studies' own are drawn
    return cfg
