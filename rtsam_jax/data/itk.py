"""NRRD and MetaImage (MHA, MHD) in, through SimpleITK: the same `Volume` as from NIfTI.

ITK's world is LPS, ours RAS: the first two world axes change their sign.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from rtsam_jax.data.volume import Volume, check_affine, check_shape, closest_ras
from rtsam_jax.errors import ExtraMissing, MissingFile, UnreadableFile, VolumeError

_READERS = {".nrrd": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO"}
_LPS = "left-posterior-superior"
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MOST_HEADER_BYTES = 2**20  # of a few lines
# The line of a header that says where the voxels are.
_META_VOXELS = re.compile(r"^\s*ElementDataFile\s*=\s*(\S.*?)\s*$", re.MULTILINE)
_NRRD_VOXELS = re.compile(r"^data ?file:[ \t]+(\S.*?)\s*$", re.MULTILINE | re.IGNORECASE)
_MEND = "write a valid origin, spacing and direction"
# MetaImage's names of direction, origin and spacing, with their older synonyms.
_PLACE = (
    *(b"TransformMatrix", b"Rotation", b"Orientation"),
    *(b"Offset", b"Position", b"Origin", b"ElementSpacing", b"ElementSize"),
)


def is_itk(path: Path) -> bool:
    """Whether a file's ending is that of a format that is read here."""
    return path.suffix.lower() in _READERS


def read_itk(path: Path, *, what: str = "image") -> Volume:
    """Reads a scalar volume as float32 in the closest RAS+ axes; limits are `read_volume`'s.

    Args:
      path: `.nrrd`, `.mha` or `.mhd`.
      what: the volume's part in its case, for messages.

    Raises:
      ExtraMissing: SimpleITK is not installed.
      MissingFile, UnreadableFile: nothing there; truncated, corrupt or of another format.
      VolumeError: not one 3-D frame of real numbers, no place in the patient, or too large.
      NonFiniteVoxels: NaN or infinite voxels.
    """
    sitk = _sitk(path, what)
    files_behind(path, what=what)
    reader = _reader(sitk, path, what)
    _, affine = _grid(reader, path, what)
    reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        image = reader.Execute()
    except RuntimeError as cause:
        raise _unreadable(path, what, cause) from cause
    array = sitk.GetArrayViewFromImage(image).transpose()  # ITK's arrays are [k, j, i]
    return closest_ras(array, affine, path, what)


def itk_grid(path: Path, *, what: str = "image") -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine [4, 4] (index -> world RAS+ mm) in the file's own order of axes.

    Raises:
      ExtraMissing, MissingFile, UnreadableFile, VolumeError: as `read_itk`, from the header alone.
    """
    return _grid(_reader(_sitk(path, what), path, what), path, what)


def files_behind(path: Path, *, what: str = "image") -> tuple[Path, ...]:
    """The file itself and, where an ITK header names another one for its voxels, that one.

    Raises:
      VolumeError: a header whose voxels lie in several files.
      MissingFile, UnreadableFile: a header that is not there, or does not say where they lie.
    """
    if not is_itk(path):
        return (path,)
    try:
        with path.open("rb") as file:
            header = file.read(_MOST_HEADER_BYTES).decode("latin-1")
    except FileNotFoundError as cause:
        raise _missing(path, what) from cause
    except OSError as cause:
        raise _unreadable(path, what, cause) from cause
    if path.suffix.lower() == ".nrrd":
        named = _NRRD_VOXELS.search(re.split(r"\r?\n\r?\n", header, maxsplit=1)[0])
        place, one = named[1] if named else None, ".nrrd"  # else they follow the header
    else:
        named = _META_VOXELS.search(header)
        if named is None:
            raise _unreadable(path, what, ValueError("it has no ElementDataFile"))
        place, one = None if named[1].upper() == "LOCAL" else named[1], ".mha"
    if place is None:
        return (path,)
    if place.split()[0].upper() == "LIST" or "%" in place:
        raise VolumeError(
            f"The {what} {path} spreads its voxels over several files; write it as one {one} file."
        )
    return path, path.parent / place


def _sitk(path: Path, what: str) -> Any:
    try:
        import SimpleITK
    except ImportError as cause:
        raise ExtraMissing(
            f"The {what} {path} is read by SimpleITK, which is not installed; run "
            "pip install 'rtsam-jax[dicom]', or convert the file to NIfTI."
        ) from cause
    return SimpleITK


def _reader(sitk: Any, path: Path, what: str) -> Any:
    """A reader that has read the header."""
    if not path.is_file():
        raise _missing(path, what)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(_READERS[path.suffix.lower()])
    try:
        reader.ReadImageInformation()
    except RuntimeError as cause:
        raise _unreadable(path, what, cause) from cause
    return reader


def _grid(reader: Any, path: Path, what: str) -> tuple[tuple[int, int, int], np.ndarray]:
    shape = reader.GetSize()
    if len(shape) != 3:
        raise VolumeError(
            f"The {what} {path} has shape {shape}, but one 3-D frame is needed; "
            "extract the frame to use into its own file."
        )
    check_shape(shape, path, what)
    if reader.GetNumberOfComponents() != 1:
        raise VolumeError(
            f"The {what} {path} holds {reader.GetNumberOfComponents()} numbers per voxel, but one "
            "is needed; extract the component to use into its own file."
        )
    if path.suffix.lower() == ".nrrd" and _nrrd_space(reader) != _LPS:
        raise VolumeError(
            f"The {what} {path} does not name its space by the patient's directions, so left and "
            "right are unknown; convert it again from its source."
        )
    if _READERS[path.suffix.lower()] == "MetaImageIO" and not _has_place(path):
        raise VolumeError(
            f"The {what} {path} has neither a direction nor an origin nor a spacing, so its voxels "
            "have no place in the patient; convert it again from its source."
        )
    affine = np.eye(4)
    direction = np.reshape(reader.GetDirection(), (3, 3))
    affine[:3, :3] = direction * np.array(reader.GetSpacing())
    affine[:3, 3] = reader.GetOrigin()
    affine = _LPS_TO_RAS @ affine
    check_affine(affine, path, what, _MEND)
    return tuple(shape), affine


def _nrrd_space(reader: Any) -> str:
    """What ITK has brought the file's world to: LPS from all spaces that are the patient's."""
    key = "NRRD_space"
    return reader.GetMetaData(key) if reader.HasMetaDataKey(key) else ""


def _has_place(path: Path) -> bool:
    """Whether a MetaImage's header, which ITK has read, says anything of where its voxels lie."""
    with path.open("rb") as file:
        header, _, _ = file.read(_MOST_HEADER_BYTES).partition(b"ElementDataFile")
    names = {line.partition(b"=")[0].strip() for line in header.splitlines()}
    return not names.isdisjoint(_PLACE)


def _missing(path: Path, what: str) -> MissingFile:
    return MissingFile(f"There is no {what} file {path}; check the path.")


def _unreadable(path: Path, what: str, cause: BaseException) -> UnreadableFile:
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    reason = lines[-1].rstrip(".") if lines else type(cause).__name__
    return UnreadableFile(
        f"The {what} {path} cannot be read as {path.suffix[1:].upper()} ({reason}); it is "
        "truncated, corrupt or of another format: copy or convert it again."
    )
