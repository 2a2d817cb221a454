"""The paper's numbers (Sec. 4.1), on a dataset of your own.

    python -m rtsam_jax.train --config configs/rt_injury.py \
        --config.data.dataset=FOLDER --config.model.checkpoint=WEIGHTS

FOLDER holds a dataset.json (docs/dataset.md); WEIGHTS is written by converters.sam_med3d from a
published SAM-Med3D checkpoint, weights/clinical_bert by converters.clinical_bert from
Bio_ClinicalBERT (docs/text.md).
"""

from rtsam_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    """Most are the defaults, spelled out for who wants to change them."""
    cfg = ExperimentConfig(name="rt_injury")
    cfg.data.dataset = "datasets/rt_injury"
    cfg.data.spacing_mm = 1.0
    cfg.dose.tau = 0.8
    # The kinds are the paper's, the strengths are ours.
    cfg.augment.flip_axes = (0,)
    cfg.augment.affine, cfg.augment.rotation_deg, cfg.augment.scale = 0.5, 15.0, 0.1
    cfg.augment.noise, cfg.augment.noise_std = 0.2, 0.1
    cfg.augment.blur, cfg.augment.blur_sigma = 0.2, 1.0
    cfg.augment.gamma, cfg.augment.gamma_range = 0.3, 0.3
    cfg.model.preset = "vit_b_ori"
    cfg.model.freeze_encoder = True
    cfg.prompt.language_model = "weights/clinical_bert"
    cfg.prompt.pooling = "sentences"  # ours; "cls" or "mean" is one feature for the whole text
    cfg.click.iterations = 3
    cfg.click.per_iteration = 4
    cfg.loss.dice, cfg.loss.focal_tversky = 0.7, 0.3
    cfg.optim.lr = 3e-4
    cfg.optim.weight_decay = 0.01
    cfg.epochs = 100
    cfg.batch_size = 4
    return cfg
