"""A file's own voxel grid, so that results come back to it: order and flips of axes and all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import DTypeLike

from rtsam_jax.data.grid import Grid
from rtsam_jax.data.itk import is_itk, itk_grid
from rtsam_jax.data.nifti import file_affine, placed, read_header, write_placed

_RAS = nibabel.orientations.axcodes2ornt("RAS")
_PLACE = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z"),
)


@dataclass(frozen=True, eq=False)
class FileGrid(Grid):
    """Where a file's voxels lie, by the indices under which it stores them.

    Attributes:
      shape: [i, j, k].
      affine: [4, 4] float64, index -> world RAS+ mm.
      header: what a NIfTI file says of the same place.
    """

    header: nibabel.Nifti1Header

    @property
    def axes(self) -> str:
        """Where the axes lead: "RAS", "LPS" ..."""
        return "".join(nibabel.aff2axcodes(self.affine))

    def stored(self, array: np.ndarray) -> np.ndarray:
        """Voxels [X, Y, Z] in the closest RAS+ axes, as readers give them, in the file's order."""
        turn = nibabel.orientations.ornt_transform(_RAS, nibabel.io_orientation(self.affine))
        return nibabel.apply_orientation(array, turn)

    def write(self, path: Path, array: np.ndarray, dtype: DTypeLike) -> None:
        """Writes voxels [X, Y, Z] as a NIfTI-1 file on this grid; see `write_volume`."""
        write_placed(path, self.stored(array), self.header, dtype)


def file_grid(path: Path, *, what: str = "image") -> FileGrid:
    """The grid of a file that its reader accepts; from its header alone.

    Raises:
      ExtraMissing, MissingFile, UnreadableFile, VolumeError: as `read_itk`.
    """
    if is_itk(path):
        shape, affine = itk_grid(path, what=what)
        return FileGrid(shape, affine, placed(affine))
    header = read_header(path)
    x, y, z = header.get_data_shape()[:3]
    return FileGrid((x, y, z), file_affine(header), _place_of(header))


def _place_of(header: nibabel.Nifti1Header) -> nibabel.Nifti1Header:
    """A header with another's place and unit of length, and nothing else of it: no names."""
    place = nibabel.Nifti1Header()
    for field in _PLACE:
        place[field] = header[field]
    place["pixdim"][:4] = header["pixdim"][:4]
    place["xyzt_units"] = int(header["xyzt_units"]) & 7
    return place
