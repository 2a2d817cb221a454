"""Bare MR images, without dose or label, brought to the model grid and looked at.

    python -m rtsam_jax.prepare --config configs/mr_images.py --config.data.source=FOLDER --report

FOLDER holds NIfTI files. Nothing can be trained on them: rtsam_jax.train says that labels lack.
"""

from rtsam_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    """Without dose there is no box: the whole image is kept."""
    cfg = ExperimentConfig(name="mr_images")
    cfg.data.dataset = "datasets/mr_images"
    cfg.data.builder = "images_mr"
    cfg.data.spacing_mm = 1.0
    cfg.dose.source = "none"
    cfg.prompt.box = False
    cfg.evaluate = False
    return cfg
