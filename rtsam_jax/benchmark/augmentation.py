"""Both sides of the augmentation's bench: ours under `jit`, and MONAI's transforms on the CPU.

The same changes on the same volume, every one certain: flip, rotation and scale, blur, gamma,
noise. MONAI gets as many threads as there are CPUs, keeps its sampling grid, and both masks as one
array; it resamples once as well, since its flip only reorders.
"""

from __future__ import annotations

import functools
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rtsam_jax.benchmark.ours import compile_timed, described, synthetic_batch
from rtsam_jax.benchmark.timing import Contender
from rtsam_jax.config import AugmentConfig
from rtsam_jax.data.augment import augment, margin
from rtsam_jax.data.sample import Sample
from rtsam_jax.errors import ExtraMissing

CONFIG = AugmentConfig(flip_axes=(0,), flip=1.0, affine=1.0, blur=1.0, gamma=1.0, noise=1.0)


def source_volume(size: int) -> Sample:
    """A batch of one, with the margin that a crop of `size` needs."""
    return synthetic_batch(size + 2 * margin(CONFIG, size), 1)


def our_augment(batch: Sample, size: int) -> Contender:
    """`data.augment`, with a new key every time."""
    samples = jax.tree.map(jnp.asarray, batch)
    rows = len(batch.weight)
    function = jax.jit(functools.partial(augment, cfg=CONFIG, size=size))
    keys = jax.random.key(0)
    compiled, seconds = compile_timed(function, samples, jax.random.split(keys, rows))

    def run() -> None:
        nonlocal keys
        keys, key = jax.random.split(keys)
        jax.block_until_ready(compiled(samples, jax.random.split(key, rows)))

    return described(run, seconds, None, compiled)


def monai_augment(batch: Sample, size: int) -> Contender:
    """MONAI's dictionary transforms on the first volume of a batch.

    Raises:
        ExtraMissing: torch or monai is not installed.
    """
    transforms = monai_transforms(size)
    import torch  # there, since MONAI is

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    image = torch.from_numpy(np.moveaxis(batch.image[0], -1, 0).copy())
    masks = torch.from_numpy(np.stack([batch.label[0], batch.roi[0]]))
    return Contender("monai", lambda: transforms({"image": image, "masks": masks}))


def monai_transforms(size: int) -> Any:
    """From `image` [1, P, P, P] and `masks` [2, P, P, P] to the same of side `size`."""
    try:
        from monai import transforms
    except ImportError as error:
        raise ExtraMissing(
            f"MONAI cannot be loaded ({error}); install it with pip install -e '.[test]', or time "
            f"this project alone with --rival none."
        ) from error
    both, cfg = ["image", "masks"], CONFIG
    affine = transforms.RandAffined(
        both,
        spatial_size=(size,) * 3,
        prob=cfg.affine,
        rotate_range=(math.radians(cfg.rotation_deg),) * 3,
        scale_range=(cfg.scale,) * 3,
        mode=("bilinear", "nearest"),
        padding_mode="border",
        cache_grid=True,
    )
    sigma, exponent = (0.25, cfg.blur_sigma), 1 + cfg.gamma_range
    return transforms.Compose(
        [
            affine,
            transforms.RandFlipd(both, prob=cfg.flip, spatial_axis=cfg.flip_axes),
            transforms.RandGaussianSmoothd(
                ["image"], prob=cfg.blur, sigma_x=sigma, sigma_y=sigma, sigma_z=sigma
            ),
            transforms.RandAdjustContrastd(
                ["image"], prob=cfg.gamma, gamma=(1 / exponent, exponent)
            ),
            transforms.RandGaussianNoised(["image"], prob=cfg.noise, std=cfg.noise_std),
        ]
    )
