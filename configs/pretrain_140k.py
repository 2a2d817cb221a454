"""SAM-Med3D's pretraining on a dataset of its kind: all parameters, clicks alone, no dose, no text.

    python -m rtsam_jax.data.sam_med3d_folder SOURCE datasets/sam_med3d_140k
    python -m rtsam_jax.plan --config configs/pretrain_140k.py --mesh 8x1x1 64x1x1 --rows 4
    python -m rtsam_jax.train --config configs/pretrain_140k.py --multihost

docs/scaling.md says what it takes. Rate, warm-up and epochs are ours and untried: the data is not
public as a whole.
"""

from rtsam_jax.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    """The published size; ViT-H is model.preset=vit_h with a mesh that divides it."""
    cfg = ExperimentConfig(name="pretrain_140k")
    cfg.data.dataset = "datasets/sam_med3d_140k"
    cfg.data.spacing_mm = 1.5
    cfg.data.cache_dtype = "float16"
    cfg.data.read_threads = 16
    cfg.dose.source = "none"
    cfg.prompt.task, cfg.prompt.box = "none", False
    cfg.evaluate = False
    cfg.augment.flip_axes = (0, 1, 2)
    cfg.model.preset = "vit_b_ori"
    cfg.model.compute_dtype = "bfloat16"
    cfg.model.freeze_encoder = False
    cfg.model.remat = "blocks"
    cfg.optim.lr, cfg.optim.warmup_steps, cfg.optim.clip_norm = 3e-4, 1000, 1.0
    cfg.epochs = 100  # each meets every mask once
    cfg.batch_size = 256
    cfg.checkpoint_every = 1000
    return cfg
