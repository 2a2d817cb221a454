"""The model grid, and whether dose and label cover it.

Voxel i's centre is at index i; a grid's extent reaches half a voxel beyond its outermost centres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rtsam_jax.errors import LabelNotCovering, NoOverlap, VolumeError
from rtsam_jax.geometry import index_map, inside_extent

_LARGEST = 2048  # voxels along an axis, or along a voxel of the other grid: else a unit is wrong
_MOST = 2**30  # voxels of a grid, as of a file: 4 GiB of float32
_ROUNDING = 1e-3  # voxels


class Space(Protocol):
    """Anything with a voxel grid: a `Volume` or a `Grid`."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def affine(self) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Grid:
    """A voxel grid, the model's mostly: [4, 4] float64 affine, voxel index -> world RAS+ mm."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        """Length of a voxel's edges in mm: (3,) float64."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def to_world(self, index: np.ndarray) -> np.ndarray:
        """Voxel indices [..., 3] -> world mm [..., 3]."""
        return np.asarray(index) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, world: np.ndarray) -> np.ndarray:
        """World mm [..., 3] -> voxel indices [..., 3], not rounded."""
        offset = np.asarray(world) - self.affine[:3, 3]
        return np.linalg.solve(self.affine[:3, :3], offset[..., None])[..., 0]


def model_grid(image: Space, spacing_mm: float, *, name: str = "this case") -> Grid:
    """The isotropic grid along the image's axes that covers its field of view and its centre.

    Raises:
      VolumeError: an axis, or a model voxel along it, would have over 2048 voxels, or the grid
        over 2**30; `name` says whose.
    """
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    extent = np.array(image.shape) * spacing
    # A thousandth of a voxel is rounding, not field of view.
    count = np.maximum(1, np.ceil(extent / spacing_mm - _ROUNDING))
    scale = spacing_mm / spacing
    if not (np.maximum(count, scale) <= _LARGEST).all() or count.prod() > _MOST:
        raise VolumeError(
            f"The image of {name} extends over {' x '.join(f'{mm:g}' for mm in extent)} mm, which "
            f"is too {'small' if (scale > _LARGEST).any() else 'large'} for a model grid of "
            f"{spacing_mm:g} mm; check its file's affine and unit of length, or set "
            "config.data.spacing_mm to suit."
        )
    size = count.astype(int)
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag(scale)
    matrix[:3, 3] = (np.array(image.shape) - 1) / 2 - scale * (size - 1) / 2
    x, y, z = size.tolist()
    return Grid((x, y, z), image.affine @ matrix)


def require_overlap(volume: Space, grid: Space, *, what: str, name: str) -> np.ndarray:
    """Which voxels of the grid lie inside a volume, `what` of case `name`: bool `[X, Y, Z]`.

    Raises:
      NoOverlap: none does.
    """
    covered = inside_extent(volume.shape, index_map(volume.affine, grid.affine), grid.shape)
    if not covered.any():
        raise NoOverlap(
            f"The {what} of {name} covers no voxel of its image; check that both belong together, "
            f"or register the {what} to the image."
        )
    return covered


def require_coverage(label: Space, grid: Space, *, name: str) -> None:
    """Sees that a label says something about all of its image's field of view.

    Up to a voxel may be lacking, the coarser of both grids' along the label's axis.

    Args:
      label: of case `name`.
      grid: the model grid, or the image.

    Raises:
      NoOverlap: it says nothing about any of it.
      LabelNotCovering: it ends inside it.
    """
    require_overlap(label, grid, what="label", name=name)
    sides = [(-0.5, n - 0.5) for n in grid.shape]
    corners = np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 3)
    matrix = index_map(label.affine, grid.affine)
    corners = corners @ matrix[:3, :3].T + matrix[:3, 3]  # indices of the label
    beyond = np.maximum(-0.5 - corners, corners - (np.array(label.shape) - 0.5)).max(0)
    edges, coarsest = (np.linalg.norm(g.affine[:3, :3], axis=0) for g in (label, grid))
    lacking = beyond * edges  # mm
    if (lacking > np.maximum(edges, coarsest.max()) + _ROUNDING * edges).any():
        raise LabelNotCovering(
            f"The label of {name} ends {lacking.max():.3g} mm inside its image's field of view, "
            "and beyond its end nothing is known; pad it with zeros if nothing is there, or "
            "crop the image to it."
        )
