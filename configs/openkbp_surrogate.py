"""Real head-and-neck CT and dose of OpenKBP, with surrogate tasks: whole structures, no injuries.

    python -m rtsam_jax.train --config configs/openkbp_surrogate.py --config.data.source=OPENKBP

One image and one box have three answers (mandible, right and left parotid), so the model has to
listen to the task. Trained from scratch with a small preset on two CPU cores.
"""

from rtsam_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    """At tau 0.5 the ROI holds about half of each structure in the median patient."""
    cfg = ExperimentConfig(name="openkbp_surrogate")
    cfg.data.dataset = "datasets/openkbp_surrogate"
    cfg.data.builder = "openkbp"
    cfg.data.eval_split = "val"
    cfg.data.spacing_mm = 3.0
    cfg.data.jitter = 8
    cfg.dose.tau = 0.5
    cfg.prompt.language_model = "weights/minilm"
    cfg.prompt.task_texts = (  # all records say the same, so these words alone tell cases apart
        "mandible=the mandible, the bone of the lower jaw",
        "parotid_right=the right parotid gland",
        "parotid_left=the left parotid gland",
    )
    cfg.model.preset = "cpu_s"
    cfg.model.freeze_encoder = False
    cfg.click.iterations = 1
    cfg.optim.lr = 1e-3
    cfg.optim.b2 = 0.98  # few steps: second moments have to settle sooner
    cfg.optim.warmup_steps = 50
    cfg.optim.clip_norm = 1.0
    cfg.optim.milestones = (0.6, 0.75, 0.9)
    cfg.optim.decay = 0.3
    cfg.steps = 2000
    cfg.log_every = 50
    cfg.checkpoint_every = 250
    return cfg
