"""Resampling between voxel grids, in index space and along (i, j, k) only.

An affine is a [4, 4] float64 matrix from voxel index (centre of voxel i at index i) to world mm.
A grid's extent reaches half a voxel beyond its outermost centres: up to there a value is that of
the nearest edge voxel, beyond it the fill value.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

# Affines travel through float32 headers. Without the snap two copies of one grid would differ in
# the last digit and linear interpolation would no longer be exact; 1e-6 over 512 voxels is 5e-4.
_SNAP_MATRIX = 1e-6
_SNAP_OFFSET = 1e-4  # voxels
# Where an interpolated mask is cut: weights of thirds miss one half by rounding.
HALF = 0.5 - 1e-5
_EDGE = 1e-3  # voxels; keeps rounding from cutting off an edge voxel


def index_map(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Maps indices of the target grid to indices of the source grid: [4, 4] float64."""
    matrix = np.linalg.solve(np.asarray(source, np.float64), np.asarray(target, np.float64))
    nearest = np.round(matrix)
    tolerance = np.full((4, 4), _SNAP_MATRIX)
    tolerance[:3, 3] = _SNAP_OFFSET
    return np.where(np.abs(matrix - nearest) < tolerance, nearest, matrix)


def inside_extent(shape: Sequence[int], matrix: np.ndarray, target: Sequence[int]) -> np.ndarray:
    """Bool [*target]: which target voxels have their centre inside the source grid's extent.

    Args:
      shape: of the source grid.
      matrix: `index_map(source, target)`.
      target: shape of the target grid.
    """
    axes = np.ogrid[tuple(slice(0, int(n)) for n in target)]
    inside = np.ones((1, 1, 1), bool)
    for row, size in zip(matrix[:3], shape, strict=True):
        position = np.full((1, 1, 1), row[3])
        for weight, index in zip(row[:3], axes, strict=True):
            if weight != 0:  # leaves parallel grids separable: three lines, not three volumes
                position = position + weight * index
        inside = inside & (position >= -0.5 - _EDGE) & (position <= size - 0.5 + _EDGE)
    return np.ascontiguousarray(np.broadcast_to(inside, tuple(target)))


def resample(
    array: np.ndarray,
    matrix: np.ndarray,
    target: Sequence[int],
    *,
    order: int = 1,
    fill: float = 0.0,
) -> np.ndarray:
    """Interpolation onto a target grid: float32 [*target], `fill` outside the extent.

    Args:
      array: [X, Y, Z], any real type.
      matrix: `index_map(source, target)`.
      target: shape of the target grid.
      order: of the B-spline: 0, nearest voxel; 1, linear; 3, cubic. A cubic rings at edges; what
        leaves the array's range there is clipped to it, so that no HU is below air and no signal
        negative.
      fill: value outside the source grid's extent.
    """
    values = ndimage.affine_transform(
        np.asarray(array, np.float32),
        matrix[:3, :3],
        offset=matrix[:3, 3],
        output_shape=tuple(int(n) for n in target),
        output=np.float32,
        order=order,
        mode="nearest",
    )
    if order > 1:
        np.clip(values, array.min(), array.max(), out=values)
    values[~inside_extent(array.shape, matrix, target)] = fill
    return values
