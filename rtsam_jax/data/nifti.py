"""NIfTI in and out: any orientation in, RAS+ arrays inside, scaled integers as real numbers."""

from __future__ import annotations

import gzip
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import DTypeLike

from rtsam_jax.errors import MissingFile, NonFiniteVoxels, UnreadableFile, VolumeError

_MM_PER_UNIT = (1.0, 1000.0, 1.0, 0.001)  # by NIfTI code: unknown, metre, mm, micrometre


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


def read_volume(path: str | Path, *, what: str = "image") -> Volume:
    """Reads a scalar volume as float32 in the closest RAS+ axes.

    Args:
      path: a single-file NIfTI-1 or -2, gzipped or not.
      what: the volume's part in its case, for messages.

    Raises:
      MissingFile: nothing there.
      UnreadableFile: truncated, corrupt, or another format.
      VolumeError: not one 3-D frame, no voxels, no real numbers, or an unusable affine or unit.
      NonFiniteVoxels: NaN or infinite voxels.
    """
    path = Path(path)
    image = _decode(path, what)
    _check_header(image, path, what)
    affine = np.array(image.affine, np.float64)
    affine[:3] *= _MM_PER_UNIT[_length_unit(image)]
    try:
        array = image.get_fdata(dtype=np.float32, caching="unchanged")  # applies slope and inter
    except (OSError, EOFError, ValueError, TypeError, OverflowError, MemoryError) as cause:
        raise _unreadable(path, what, cause) from cause
    array = array.reshape(array.shape[:3])
    finite = np.isfinite(array)
    if not finite.all():
        bad = int(array.size - finite.sum())
        raise NonFiniteVoxels(
            f"The {what} {path} has {bad} NaN or infinite voxels; "
            "replace them with real values (such as the background's) before using it."
        )
    orientation = nibabel.io_orientation(affine)
    array = nibabel.apply_orientation(array, orientation)
    affine = affine @ nibabel.orientations.inv_ornt_aff(orientation, image.shape[:3])
    return Volume(np.ascontiguousarray(array, np.float32), affine)


def read_label(path: str | Path) -> Volume:
    """Reads a mask: bool, true where the file is not zero. Raises as `read_volume` does."""
    volume = read_volume(path, what="label")
    return Volume(volume.array != 0, volume.affine)


def write_volume(path: str | Path, volume: Volume, dtype: DTypeLike) -> None:
    """Writes a NIfTI-1 file whole or not at all: written beside, then renamed.

    Args:
      path: ends in `.nii.gz` or `.nii`; missing folders are made.
      volume: what to write; its values are stored as they are, without slope and intercept.
      dtype: on disk; for an integer type the values are rounded.

    Raises:
      VolumeError: a value does not fit into an integer `dtype`, or is not finite.
    """
    path = Path(path)
    suffix = next((s for s in (".nii.gz", ".nii") if path.name.endswith(s)), None)
    if suffix is None:
        raise VolumeError(f"{path} does not end in .nii.gz or .nii; choose such a name.")
    image = nibabel.Nifti1Image(_as_stored(volume.array, np.dtype(dtype), path), volume.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(volume.affine, code=1)
    # Readers that prefer the qform must see the same place; it cannot express a shear.
    directions = volume.affine[:3, :3] / volume.spacing
    orthogonal = np.allclose(directions.T @ directions, np.eye(3), atol=1e-5)
    image.set_qform(volume.affine if orthogonal else None, code=1 if orthogonal else 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}{suffix}")
    try:
        nibabel.save(image, beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _as_stored(array: np.ndarray, dtype: np.dtype, path: Path) -> np.ndarray:
    if not np.isfinite(array).all():
        raise NonFiniteVoxels(f"The volume for {path} has NaN or infinite voxels; mend it first.")
    if dtype.kind not in "iu" or array.dtype.kind not in "f":
        stored = array.astype(dtype)
        exact = dtype.kind == "f" or np.array_equal(stored, array)
        if not exact:
            raise VolumeError(f"The values for {path} do not fit into {dtype}; use a wider type.")
        return stored
    rounded = np.rint(array)
    limits = np.iinfo(dtype)
    if array.size and (rounded.min() < limits.min or rounded.max() > limits.max):
        raise VolumeError(
            f"Values from {rounded.min():g} to {rounded.max():g} for {path} do not fit into "
            f"{dtype}; use a wider type."
        )
    return rounded.astype(dtype)


def _decode(path: Path, what: str) -> nibabel.Nifti1Image:
    """Decompresses the whole stream, so that its checksum is verified, and parses the header."""
    if not path.is_file():
        raise MissingFile(f"There is no {what} file {path}; check the path in the dataset.")
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        size = content[:4]
        second = 540 in (int.from_bytes(size, "little"), int.from_bytes(size, "big"))
        kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
        return kind.from_bytes(content)
    except (
        OSError,
        EOFError,
        ValueError,
        OverflowError,
        zlib.error,
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
        nibabel.wrapstruct.WrapStructError,
    ) as cause:
        raise _unreadable(path, what, cause) from cause


def _unreadable(path: Path, what: str, cause: BaseException) -> UnreadableFile:
    reason = " ".join(str(cause).split()).rstrip(".") or type(cause).__name__
    return UnreadableFile(
        f"The {what} {path} cannot be read as NIfTI ({reason}); it is truncated, corrupt or of "
        "another format: copy or convert it again."
    )


def _length_unit(image: nibabel.Nifti1Image) -> int:
    # Not `get_xyzt_units`, which stumbles over a strange unit of time too; that is of no interest.
    return int(image.header["xyzt_units"]) & 7


def _check_header(image: nibabel.Nifti1Image, path: Path, what: str) -> None:
    shape = image.shape
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise VolumeError(
            f"The {what} {path} has shape {shape}, but one 3-D frame is needed; "
            "extract the frame to use into its own file."
        )
    if 0 in shape:
        raise VolumeError(f"The {what} {path} has shape {shape}, no voxels; export it again.")
    if image.get_data_dtype().kind not in "iufb":
        raise VolumeError(
            f"The {what} {path} stores {image.get_data_dtype()} voxels, but real numbers are "
            "needed; convert it to a scalar type."
        )
    if image.header["sform_code"] == 0 and image.header["qform_code"] == 0:
        raise VolumeError(
            f"The {what} {path} has neither an sform nor a qform, so left and right are unknown; "
            "convert it again from its source."
        )
    if _length_unit(image) >= len(_MM_PER_UNIT):
        raise VolumeError(
            f"The {what} {path} gives its lengths in unit {_length_unit(image)}, which NIfTI does "
            "not have; set its xyzt_units to 2 (mm) if that is what they are."
        )
    affine = np.asarray(image.affine, np.float64)
    edges = np.linalg.norm(affine[:3, :3], axis=0) if np.isfinite(affine).all() else np.zeros(3)
    volume = abs(np.linalg.det(affine[:3, :3])) if edges.all() else 0.0
    # Relative to the edges' product, so that small voxels are not mistaken for flat ones.
    if not volume > 1e-4 * edges.prod():
        raise VolumeError(
            f"The {what} {path} has a singular or non-finite affine, so its voxels have no place "
            "in the patient; write a valid sform or qform."
        )
