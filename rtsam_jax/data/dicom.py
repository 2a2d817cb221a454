"""DICOM, which is told apart from other formats, and not read yet.

What knows formats, and where a series would enter: `itk.files_behind` (the files that a volume is
made of, whose bytes digests and sessions are of), `file_grid.file_grid` (its grid) and
`rtsam_jax.prediction.inputs.read_any` (its voxels).
"""

from __future__ import annotations

import os
from pathlib import Path

from rtsam_jax.errors import UnreadableFile

_MAGIC, _MAGIC_AT = b"DICM", 128
_MEND = "convert an image series or RTDOSE to NIfTI, and mind DoseGridScaling"


def refuse_dicom(path: Path, *, what: str) -> None:
    """Says of what a user tries first that it is not read; everything else is left to its reader.

    Args:
      what: the volume's part in its case, for messages.

    Raises:
      UnreadableFile: a folder, as that of a series is, or a DICOM file.
    """
    if os.path.isdir(path):
        raise UnreadableFile(
            f"The {what} {path} is a folder, but one file is needed, and DICOM is not read yet; "
            f"{_MEND}."
        )
    if not os.path.isfile(path):
        return
    try:
        with path.open("rb") as file:
            head = file.read(_MAGIC_AT + len(_MAGIC))
    except OSError:  # which the reader says
        return
    if head[_MAGIC_AT:] == _MAGIC:
        raise UnreadableFile(f"The {what} {path} is DICOM, which is not read yet; {_MEND}.")
