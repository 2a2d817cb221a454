"""Masks that surface measures stumble over, and balls, whose surfaces are known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

SHAPE = (11, 12, 9)
ISOTROPIC, THICK_SLICES, UNEQUAL = (1.0, 1.0, 1.0), (1.0, 1.0, 5.0), (3.0, 0.7, 1.3)
SPACINGS = (ISOTROPIC, THICK_SLICES, UNEQUAL)

Pair = tuple[np.ndarray, np.ndarray]


def awkward() -> dict[str, np.ndarray]:
    """One mask of each kind; none is empty."""
    names = (
        "voxel", "corner", "slab", "one slice", "full", "shell", "core", "diagonal", "edge",
        "checkers", "rod", "plate", "hole", "far island",
    )  # fmt: skip
    masks = {name: np.zeros(SHAPE, bool) for name in names}
    masks["voxel"][4, 5, 6] = True
    masks["corner"][0, 0, 0] = True
    masks["slab"][:, :, :2] = True
    masks["one slice"][3:8, 2:7, 4] = True
    masks["full"][:] = True
    masks["shell"][1:9, 1:9, 1:8] = True
    masks["shell"][3:7, 3:7, 3:6] = False
    masks["core"][4:6, 4:6, 4:5] = True
    masks["diagonal"][1:4, 1:4, 1:4] = masks["diagonal"][4:7, 4:7, 4:7] = True
    masks["edge"][1:4, 1:4, 2:6] = masks["edge"][4:7, 4:7, 2:6] = True
    masks["checkers"][np.indices(SHAPE).sum(axis=0) % 2 == 0] = True
    masks["rod"][:, 6, 4] = True
    masks["plate"][5] = True
    masks["hole"][2:9, 2:9, 1:8] = True
    masks["hole"][5, 5, :] = False
    masks["far island"][2:5, 2:5, 2:5] = masks["far island"][10, 11, 8] = True
    return masks


def blob(seed: int, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """A random smooth mask, often in several pieces and cut by the border."""
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, 1.5, mode="wrap")
    return smooth > np.quantile(smooth, 0.75)


def pairs() -> dict[str, Pair]:
    """Hundreds of (prediction, truth): every two awkward masks, blobs, and noise of any density."""
    kinds = itertools.combinations_with_replacement(awkward().items(), 2)
    found = {f"{a} against {b}": (one, other) for (a, one), (b, other) in kinds}
    for seed in range(40):
        found[f"blobs {seed}"] = blob(2 * seed), blob(2 * seed + 1)
        rng = np.random.default_rng(seed)
        noise = rng.random((2, *SHAPE)) < rng.uniform(0.02, 0.9)
        found[f"noise {seed}"] = noise[0], noise[1]
    return found


def ball(
    radius: float,
    spacing: Sequence[float],
    *,
    extent: float = 36.0,
    shift: Sequence[float] = (0, 0, 0),
) -> np.ndarray:
    """A ball in a volume of `extent` mm, `shift` mm off its centre."""
    axes = [np.arange(round(extent / s)) * s for s in spacing]
    grid = np.meshgrid(*[axis - axis.mean() for axis in axes], indexing="ij")
    return sum((g - by) ** 2 for g, by in zip(grid, shift, strict=True)) <= radius**2


def ball_distances(radius: float, shift: float) -> np.ndarray:
    """From evenly spread points of a sphere to an equal one, `shift` away: exact, in mm.

    By Archimedes, the points' heights along the shift are evenly spread too.
    """
    heights = np.linspace(-1, 1, 20_001)
    return np.abs(np.sqrt(radius**2 + shift**2 - 2 * radius * shift * heights) - radius)
