"""The longest diameter of a mask, exactly: the largest distance between two voxel centres."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist

_ROWS = 1024  # of the matrix of distances that is held at a time


def longest_diameter(mask: np.ndarray, affine: np.ndarray) -> float:
    """The largest distance between the centres of two voxels of a mask, in mm.

    Over all of its components together, in any direction. A single voxel has none: 0; so has an
    empty mask.

    Args:
      mask: bool [X, Y, Z].
      affine: [4, 4], voxel index -> world mm.
    """
    corners = _corners(_ends(mask)) @ np.asarray(affine)[:3, :3].T
    parts = (corners[at : at + _ROWS] for at in range(0, len(corners), _ROWS))
    return max((float(cdist(part, corners).max()) for part in parts), default=0.0)


def _ends(mask: np.ndarray) -> np.ndarray:
    """Indices [n, 3] of the first and the last voxel of every line along the third axis."""
    x, y = np.nonzero(mask.any(-1))
    lines = mask[x, y]
    first, last = lines.argmax(-1), mask.shape[-1] - 1 - lines[:, ::-1].argmax(-1)
    return np.concatenate([np.stack([x, y, end], -1) for end in (first, last)])


def _corners(points: np.ndarray) -> np.ndarray:
    """The corners of the convex hull of points [n, 3], and maybe more of the points.

    Found among whole indices, where points of a line or a plane are told without rounding; a hull
    keeps its corners under any affine map.
    """
    if len(points) < 4:
        return points
    rank = np.linalg.matrix_rank(points - points[0])
    if rank == 0:
        return points[:1]
    # Dropping axes that the others determine is an affine map too, and one that can be undone.
    axes = next(
        list(axes)
        for axes in itertools.combinations(range(3), int(rank))
        if np.linalg.matrix_rank((points - points[0])[:, axes]) == rank
    )
    if rank == 1:
        line = points[:, axes[0]]
        return points[[line.argmin(), line.argmax()]]
    return points[ConvexHull(points[:, axes]).vertices]
