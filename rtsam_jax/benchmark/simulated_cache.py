"""Prepared cases made of noise, for measuring how they are read. Nothing clinical."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rtsam_jax.data.neighbourhood import encode
from rtsam_jax.data.preprocess import Grid, Preprocessed
from rtsam_jax.data.scans import CacheSettings


def noise_records(settings: CacheSettings, count: int, labels: int = 1) -> Iterator[bytes]:
    """Records as large as real ones, with a ball in the middle as label and high-dose region.

    Args:
        count: of scans.
        labels: on each of them.
    """
    side = settings.size + 2 * settings.reach
    axes = np.ogrid[:side, :side, :side]
    distance = np.sqrt(sum((axis - side / 2) ** 2 for axis in axes))
    ball, roi = ((distance < side / part).astype(np.uint8) for part in (8, 4))
    centre = [(side - settings.size) // 2, (side + settings.size) // 2 - 1]
    for seed in range(count):
        rng = np.random.default_rng(seed)
        scan = Preprocessed(
            image=rng.standard_normal((side, side, side), np.float32),
            roi=roi,
            box=np.array(centre)[:, None].repeat(3, axis=1),
            dmax=70.0,
            threshold_gy=35.0,
            grid=Grid((side, side, side), np.eye(4)),
            modality="CT",
            fraction_outside_dose=0.0,
            mean=0.0,
            std=1.0,
            background=-3.0,
            diagonal_mm=3**0.5 * side,
        )
        yield encode(
            scan,
            [ball] * labels,
            size=settings.size,
            reach=settings.reach,
            dtype=settings.dtype,
        )
