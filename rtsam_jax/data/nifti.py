"""NIfTI in and out: any orientation in, RAS+ arrays inside, scaled integers as real numbers."""

from __future__ import annotations

import gzip
import itertools
import logging
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import nibabel
import numpy as np
from numpy.typing import DTypeLike

from rtsam_jax.data.dicom import refuse_dicom
from rtsam_jax.data.volume import Volume, check_affine, check_shape, closest_ras
from rtsam_jax.errors import MissingFile, NonFiniteVoxels, UnreadableFile, VolumeError

__all__ = [
    "Volume",
    "file_affine",
    "label_of",
    "placed",
    "read_header",
    "read_label",
    "read_volume",
    "write_placed",
    "write_volume",
]

_MM_PER_UNIT = (1.0, 1000.0, 1.0, 0.001)  # by NIfTI code: unknown, metre, mm, micrometre
_APART_MM = 1.0  # corners by qform and by sform; half a voxel where that is more
_HEADER_BYTES = 544  # of NIfTI-2 with its extension flags; NIfTI-1's is shorter
_MOST_BEFORE_VOXELS = 2**26  # bytes of header and extensions
_MOST_AFTER_VOXELS = 2**20  # bytes of padding that some writers leave
_NAMED = 5  # values of a label that a message lists

_NOT_NIFTI = (
    EOFError,
    ValueError,
    KeyError,
    OverflowError,
    MemoryError,
    zlib.error,
    gzip.BadGzipFile,
    nibabel.filebasedimages.ImageFileError,
    nibabel.spatialimages.HeaderDataError,
    nibabel.wrapstruct.WrapStructError,
)


def read_volume(path: str | Path, *, what: str = "image") -> Volume:
    """Reads a scalar volume as float32 in the closest RAS+ axes.

    Args:
      path: a single-file NIfTI-1 or -2, gzipped or not.
      what: the volume's part in its case, for messages.

    Raises:
      MissingFile: nothing there.
      UnreadableFile: truncated, corrupt, another format (see `refuse_dicom`), or refused by the
        system.
      VolumeError: not one 3-D frame, no voxels, no real numbers, above 2048 voxels along an axis or
        2**30 in all, an unusable affine or unit, or a qform and an sform that disagree. Told from
        the header, before the voxels are decompressed.
      NonFiniteVoxels: NaN or infinite voxels.
    """
    path = Path(path)
    image = _decode(path, what)
    affine = file_affine(image.header)
    try:
        array = image.get_fdata(dtype=np.float32, caching="unchanged")  # applies slope and inter
    except (OSError, EOFError, ValueError, TypeError, OverflowError, MemoryError) as cause:
        raise _unreadable(path, what, cause) from cause
    return closest_ras(array.reshape(array.shape[:3]), affine, path, what)


def read_header(path: Path) -> nibabel.Nifti1Header:
    """The header of a file that `read_volume` accepts, NIfTI-1 or -2."""
    with path.open("rb") as raw:
        gzipped = raw.read(2) == b"\x1f\x8b"
    with gzip.open(path) if gzipped else path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    kind = _kind(head).header_class
    return kind(head[: kind.template_dtype.itemsize], check=False)


def file_affine(header: nibabel.Nifti1Header) -> np.ndarray:
    """Voxel index -> world mm, [4, 4] float64; the sform where there are both."""
    affine = np.array(header.get_best_affine(), np.float64)
    affine[:3] *= _MM_PER_UNIT[_length_unit(header)]
    return affine


def read_label(
    path: str | Path,
    value: int | None = None,
    *,
    what: str = "label",
    field: str = "label_value",
) -> Volume:
    """Reads a mask: bool.

    Args:
      path: as of `read_volume`.
      value: what is inside in a map of several structures; none of it is an empty mask. None: the
        file holds one structure, and inside is what is not zero.
      what: the volume's part in its case, for messages.
      field: of the case, where `value` is named, for messages.

    Raises:
      VolumeError: without `value`, several values other than zero; with it, or with several, any
        that is no whole number. Otherwise as `read_volume`.
    """
    path = Path(path)
    mend = f"name the one that is inside as the case's {field}, or store a mask of one structure"
    return label_of(read_volume(path, what=what), path, value, what=what, mend=mend)


def label_of(
    volume: Volume, path: Path, value: int | None = None, *, what: str, mend: str
) -> Volume:
    """The mask that a volume of a file holds, as `read_label` has it.

    Args:
      mend: what to do about several values, for the message.
    """
    marked = volume.array[volume.array != 0]
    if value is None and (marked == marked[:1]).all():
        return Volume(volume.array != 0, volume.affine)
    broken = marked[marked != np.rint(marked)]
    if broken.size:
        raise VolumeError(
            f"The {what} {path} holds {broken[0]:g}, but values in a map are whole numbers; store "
            "it as integers (a probability cut at one half)."
        )
    if value is None:
        values = np.unique(marked)
        named = ", ".join(f"{v:.0f}" for v in values[:_NAMED])
        rest = f" and {values.size - _NAMED} more" if values.size > _NAMED else ""
        raise VolumeError(f"The {what} {path} holds the values {named}{rest}; {mend}.")
    return Volume(volume.array == value, volume.affine)


def write_volume(path: str | Path, volume: Volume, dtype: DTypeLike) -> None:
    """Writes a NIfTI-1 file whole or not at all: written beside, then renamed.

    Args:
      path: ends in `.nii.gz` or `.nii`; missing folders are made.
      volume: what to write; its values are stored as they are, without slope and intercept.
      dtype: on disk; for an integer type the values are rounded.

    Raises:
      VolumeError: a value does not fit into an integer `dtype`, or is not finite.
    """
    write_placed(path, volume.array, placed(volume.affine), dtype)


def placed(affine: np.ndarray) -> nibabel.Nifti1Header:
    """A header that says no more than where voxels lie: `affine`, [4, 4], index -> world mm."""
    header = nibabel.Nifti1Header()
    header.set_xyzt_units("mm")
    header.set_sform(affine, code=1)
    # Readers that prefer the qform must see the same place; it cannot express a shear.
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    orthogonal = np.allclose(directions.T @ directions, np.eye(3), atol=1e-5)
    header.set_qform(affine, code=1 if orthogonal else 0)
    return header


def write_placed(
    path: str | Path, array: np.ndarray, place: nibabel.Nifti1Header, dtype: DTypeLike
) -> None:
    """Writes voxels where a header says, whole or not at all; see `write_volume`.

    Args:
      array: [i, j, k], along the axes of `place`.
      place: its qform, sform, their codes and the unit of length are kept.
    """
    path = Path(path)
    suffix = next((s for s in (".nii.gz", ".nii") if path.name.endswith(s)), None)
    if suffix is None:
        raise VolumeError(f"{path} does not end in .nii.gz or .nii; choose such a name.")
    header = place.copy()
    header.set_data_shape(array.shape)
    header.set_data_dtype(np.dtype(dtype))
    stored = _as_stored(array, np.dtype(dtype), path)
    image = nibabel.Nifti1Image(stored, header.get_best_affine(), header)
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
    """Judges the header first, then reads the whole stream, so that its checksum is verified."""
    try:
        refuse_dicom(path, what=what)
        if not path.is_file():  # a loop of symbolic links is none either
            raise MissingFile(f"There is no {what} file {path}; check the path.")
        with path.open("rb") as file:
            gzipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if gzipped:
                with gzip.open(file) as stream, _quiet():
                    return _parse(stream, path, what)
            with _quiet():
                return _parse(file, path, what)
    except _NOT_NIFTI as cause:
        raise _unreadable(path, what, cause) from cause
    except OSError as cause:
        raise UnreadableFile(
            f"The {what} {path} cannot be read ({cause.strerror or cause}); mend its permissions "
            "or its disk, or copy it again."
        ) from cause


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what nibabel prints of a header before it raises the same as an error."""
    logger = logging.getLogger("nibabel.global")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _parse(stream: BinaryIO | gzip.GzipFile, path: Path, what: str) -> nibabel.Nifti1Image:
    head = stream.read(_HEADER_BYTES)
    kind = _kind(head)
    header = kind.header_class(head[: kind.header_class.template_dtype.itemsize])
    _check_header(header, path, what)
    start = float(header["vox_offset"])
    if not 0 <= start <= _MOST_BEFORE_VOXELS:
        raise ValueError(f"its voxels start at byte {start:g}")
    voxels = int(np.prod(header.get_data_shape(), dtype=np.int64))
    size = voxels * header.get_data_dtype().itemsize
    # A few compressed bytes may inflate to a full memory: no more is taken than the header says.
    most = max(int(start), _HEADER_BYTES) + size + _MOST_AFTER_VOXELS
    stream.seek(0)
    content = stream.read(most + 1)
    if len(content) < start + size:
        raise ValueError("it ends before its last voxel")
    if len(content) > most:
        raise ValueError("it goes on after the voxels that its header declares")
    return kind.from_bytes(content)


def _kind(head: bytes) -> type[nibabel.Nifti1Image]:
    second = 540 in (int.from_bytes(head[:4], order) for order in ("little", "big"))
    return nibabel.Nifti2Image if second else nibabel.Nifti1Image


def _unreadable(path: Path, what: str, cause: BaseException) -> UnreadableFile:
    reason = " ".join(str(cause).split()).rstrip(".") or type(cause).__name__
    return UnreadableFile(
        f"The {what} {path} cannot be read as NIfTI ({reason}); it is truncated, corrupt or of "
        "another format: copy or convert it again."
    )


def _length_unit(header: nibabel.Nifti1Header) -> int:
    # Not `get_xyzt_units`, which stumbles over a strange unit of time too; that is of no interest.
    return int(header["xyzt_units"]) & 7


def _check_header(header: nibabel.Nifti1Header, path: Path, what: str) -> None:
    shape = header.get_data_shape()
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise VolumeError(
            f"The {what} {path} has shape {shape}, but one 3-D frame is needed; "
            "extract the frame to use into its own file."
        )
    check_shape(shape, path, what)
    dtype = header.get_data_dtype()
    if dtype.kind not in "iufb":
        raise VolumeError(
            f"The {what} {path} stores {dtype} voxels, but real numbers are needed; convert it to "
            "a scalar type."
        )
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        raise VolumeError(
            f"The {what} {path} has neither an sform nor a qform, so left and right are unknown; "
            "convert it again from its source."
        )
    if _length_unit(header) >= len(_MM_PER_UNIT):
        raise VolumeError(
            f"The {what} {path} gives its lengths in unit {_length_unit(header)}, which NIfTI does "
            "not have; set its xyzt_units to 2 (mm) if that is what they are."
        )
    edges = check_affine(file_affine(header), path, what, "write a valid sform or qform")
    if header["sform_code"] > 0 and header["qform_code"] > 0:
        _check_agreement(header, edges, path, what)


def _check_agreement(
    header: nibabel.Nifti1Header, edges: np.ndarray, path: Path, what: str
) -> None:
    try:
        difference = header.get_sform() - header.get_qform()
    except (ValueError, nibabel.spatialimages.HeaderDataError) as cause:
        raise VolumeError(
            f"The {what} {path} has a qform that is no rotation beside its sform; set qform_code "
            "to 0 if the sform is right."
        ) from cause
    sides = [(-0.5, n - 0.5) for n in header.get_data_shape()[:3]]
    corners = np.array([*itertools.product(*sides)])
    apart = np.linalg.norm(corners @ difference[:3, :3].T + difference[:3, 3], axis=1).max()
    apart *= _MM_PER_UNIT[_length_unit(header)]
    if not apart <= max(_APART_MM, 0.5 * edges.min()):
        raise VolumeError(
            f"The {what} {path} has a qform and an sform that place its corners {apart:.3g} mm "
            "apart; keep the right one and set the code of the other to 0."
        )
