"""A 3-D array with its place in the patient, and what a file of any format has to hold for one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from rtsam_jax.errors import NonFiniteVoxels, VolumeError

_MOST_PER_AXIS = 2048  # voxels; no scanner's matrix is finer, and a body is no longer
_MOST_VOXELS = 2**30  # 4 GiB as float32


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3-D array with its place in the patient.

    Attributes:
      array: [X, Y, Z], axes along R, A, S.
      affine: [4, 4] float64, voxel index (centre of voxel i at i) -> world RAS+ in mm.
    """

    array: np.ndarray
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        x, y, z = self.array.shape
        return x, y, z

    @property
    def spacing(self) -> np.ndarray:
        """Length of a voxel's edges in mm: (3,) float64."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def check_shape(shape: Sequence[int], path: Path, what: str) -> None:
    """Raises `VolumeError` for a file without voxels, or with more than are read."""
    if min(shape) < 1:
        raise VolumeError(f"The {what} {path} has shape {shape}, no voxels; export it again.")
    if max(shape) > _MOST_PER_AXIS or np.prod(shape, dtype=np.int64) > _MOST_VOXELS:
        raise VolumeError(
            f"The {what} {path} has shape {shape}, but at most {_MOST_PER_AXIS} voxels along an "
            f"axis and {_MOST_VOXELS} in all are read; crop or resample it."
        )


def check_affine(affine: np.ndarray, path: Path, what: str, mend: str) -> np.ndarray:
    """The lengths of a voxel's edges: (3,).

    Args:
      affine: [4, 4], of the file.
      mend: what to do about one that cannot be used, for the message.

    Raises:
      VolumeError: it is singular or not finite.
    """
    edges = np.linalg.norm(affine[:3, :3], axis=0) if np.isfinite(affine).all() else np.zeros(3)
    volume = abs(np.linalg.det(affine[:3, :3])) if edges.all() else 0.0
    # Relative to the edges' product, so that small voxels are not mistaken for flat ones.
    if not volume > 1e-4 * edges.prod():
        raise VolumeError(
            f"The {what} {path} has a singular or non-finite affine, so its voxels have no place "
            f"in the patient; {mend}."
        )
    return edges


def closest_ras(array: np.ndarray, affine: np.ndarray, path: Path, what: str) -> Volume:
    """Voxels as a file stores them, as float32 in the closest RAS+ axes.

    Raises:
      NonFiniteVoxels: NaN or infinite voxels.
    """
    finite = np.isfinite(array)
    if not finite.all():
        bad = int(array.size - finite.sum())
        raise NonFiniteVoxels(
            f"The {what} {path} has {bad} NaN or infinite voxels; "
            "replace them with real values (such as the background's) before using it."
        )
    orientation = nibabel.io_orientation(affine)
    turned = nibabel.apply_orientation(array, orientation)
    affine = affine @ nibabel.orientations.inv_ornt_aff(orientation, array.shape)
    return Volume(np.ascontiguousarray(turned, np.float32), affine)
