"""Crops: where they lie, cutting them out, and blending their predictions together again.

A crop's origin is the model grid's index of its first voxel; it may be negative or lie beyond the
volume. Boxes are inclusive voxel indices, (2, 3).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from rtsam_jax.errors import ConfigError, VolumeError

_SIGMA = 1 / 8  # of the crop's edge; at the faces' centres the weight is exp(-8)


def crop_origins(box: np.ndarray, size: int, overlap: float = 0.5) -> np.ndarray:
    """Origins of crops that cover a box: int64 [n, 3].

    Along an axis on which the box fits, one crop is centred on it (an odd remainder puts the extra
    voxel on the lower side). Along any other, evenly spaced crops reach from the box's first voxel
    to its last and share at least `overlap` of their edge.

    Args:
      box: (2, 3) int, inclusive corners.
      size: the crop's edge in voxels.
      overlap: share of the edge, from 0 up to but not including 1.

    Raises:
      ConfigError: `size` or `overlap` out of range.
      VolumeError: the box's corners are not in order.
    """
    if size < 1:
        raise ConfigError(f"The crop's edge is {size}, but it must be at least 1 voxel.")
    if not 0 <= overlap < 1:
        raise ConfigError(f"The crops' overlap is {overlap}, but it must be from 0 to below 1.")
    low, high = np.asarray(box, np.int64)
    if (high < low).any():
        raise VolumeError(f"The box from {low} to {high} is empty; check the ROI it was made of.")
    stride = max(1, int(size * (1 - overlap)))
    axes = []
    for first, extent in zip(low.tolist(), (high - low + 1).tolist(), strict=True):
        slack = extent - size
        if slack <= 0:
            axes.append([first + slack // 2])
        else:
            steps = -(-slack // stride)
            axes.append([first + step * slack // steps for step in range(steps + 1)])
    return np.array(list(itertools.product(*axes)), np.int64)


def extract(
    array: np.ndarray,
    origin: Sequence[int] | np.ndarray,
    size: int,
    fill: float,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Cuts [size, size, size] out of [X, Y, Z]; voxels outside the volume get `fill`.

    Args:
      array: any real type.
      origin: of the crop.
      size: its edge.
      fill: where the volume has ended.
      out: where to write the crop, of any real type; a new array of `array`'s if None.
    """
    crop = np.empty((size,) * 3, array.dtype) if out is None else out
    inside, outside = _overlap(origin, size, array.shape)
    if any(part.stop - part.start < size for part in inside):
        crop[...] = fill
    crop[inside] = array[outside]
    return crop


def insert(
    crop: np.ndarray, origin: Sequence[int] | np.ndarray, shape: Sequence[int]
) -> np.ndarray:
    """A crop where `extract` would cut it out: float32 [*shape], 0 around it."""
    inside, outside = _overlap(origin, len(crop), shape)
    volume = np.zeros(tuple(shape), np.float32)
    volume[outside] = crop[inside]
    return volume


class Blending:
    """An average of overlapping crops under Gaussian weights, taken in one by one.

    However many there are, it holds two float64 volumes, 16 bytes per voxel, and a float32 one
    besides when the average is asked for: float64, so that a constant comes back bit-equal.

    Args:
      shape: of the volume.
      size: a crop's edge in voxels.
    """

    def __init__(self, shape: Sequence[int], size: int):
        distance = (np.arange(size) - (size - 1) / 2) / (size * _SIGMA)
        line = np.exp(-0.5 * distance**2)
        self._weight = line[:, None, None] * line[None, :, None] * line[None, None, :]
        self._total = np.zeros(tuple(shape), np.float64)
        self._weights = np.zeros(tuple(shape), np.float64)

    def add(self, crop: np.ndarray, origin: Sequence[int] | np.ndarray) -> None:
        """Takes in a crop [size, size, size] of any real type; what lies outside is left out."""
        inside, outside = _overlap(origin, len(self._weight), self._total.shape)
        weight = self._weight[inside]
        self._total[outside] += weight * crop[inside]
        self._weights[outside] += weight

    def average(self) -> np.ndarray:
        """Float32 [*shape], 0 where no crop reached; nothing can be added to it afterwards."""
        # The smallest weight there can be, exp(-24), is far above the smallest float64.
        np.maximum(self._weights, np.finfo(np.float64).tiny, out=self._weights)
        self._total /= self._weights
        return self._total.astype(np.float32)


def blend(crops: np.ndarray, origins: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Averages overlapping crops, see `Blending`: float32 [*shape], 0 where none reaches.

    Args:
      crops: [n, s, s, s], any real type.
      origins: int [n, 3].
      shape: of the volume.
    """
    blending = Blending(shape, crops.shape[1])
    for crop, origin in zip(crops, origins, strict=True):
        blending.add(crop, origin)
    return blending.average()


def _overlap(
    origin: Sequence[int] | np.ndarray, size: int, shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The shared voxels as slices of the crop and of the volume; empty where they share none."""
    inside, outside = [], []
    for start, extent in zip(np.asarray(origin).tolist(), shape, strict=True):
        low = min(max(start, 0), extent)
        high = max(min(start + size, extent), low)
        outside.append(slice(low, high))
        inside.append(slice(low - start, high - start) if high > low else slice(0, 0))
    return tuple(inside), tuple(outside)
