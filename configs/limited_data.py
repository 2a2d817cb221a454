"""Tens of cases: configs/rt_injury.py on fixed views, each encoded once and kept on disk.

    python -m rtsam_jax.train --config configs/limited_data.py \
        --config.data.dataset=FOLDER --config.model.checkpoint=WEIGHTS

FOLDER and WEIGHTS as in configs/rt_injury.py. Once the views are there, an epoch costs the decoder
alone. One is 8^3 * 384 * 2 bytes of embedding, 0.39 MB, and two masks of about 0.01 MB: 16 views of
40 cases take 0.26 GB. What that gives up is augmentation without end (docs/embedding_cache.md).
"""

from rtsam_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    """What differs from rt_injury comes first."""
    cfg = ExperimentConfig(name="limited_data")
    cfg.views.per_case = 16
    cfg.views.cache = "bfloat16"
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
