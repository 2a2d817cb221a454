"""The named structures of a case, on the grid it is scored on."""

from __future__ import annotations

import numpy as np

from rtsam_jax.data.cases import Case
from rtsam_jax.data.grid import Space, require_overlap
from rtsam_jax.data.nifti import read_label
from rtsam_jax.geometry import HALF, index_map, resample


def read_structures(case: Case, grid: Space) -> dict[str, np.ndarray]:
    """The structures of a case as masks on a grid: name -> bool [*grid.shape].

    One that lies on another grid of the same space is interpolated linearly and cut at one half;
    beyond its own grid nothing belongs to it.

    Raises:
      MissingFile, UnreadableFile, VolumeError: of its file; see `read_label`.
      NoOverlap: it covers no voxel of the grid.
    """
    masks = {}
    for name, structure in case.structures.items():
        what = f"structure {name!r}"
        volume = read_label(
            structure.path, structure.value, what=what, field=f"structures.{name}.value"
        )
        matrix = index_map(volume.affine, grid.affine)
        if volume.shape == grid.shape and np.array_equal(matrix, np.eye(4)):
            masks[name] = volume.array
        else:
            require_overlap(volume, grid, what=what, name=case.id)
            masks[name] = resample(volume.array, matrix, grid.shape) >= HALF
    return masks
