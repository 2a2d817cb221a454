"""What a caller gives as an image, a dose or a mask: a file, or a volume in memory."""

from __future__ import annotations

from pathlib import Path

from rtsam_jax.data.nifti import Volume
from rtsam_jax.errors import ConfigError
from rtsam_jax.prediction.inputs import read_any, read_mask
from rtsam_jax.prediction.predicted import VolumeOrFile
from rtsam_jax.prediction.session import Source


def read_given(place: VolumeOrFile, what: str) -> tuple[Volume, Source | None]:
    """A volume, and its file if it is given as one."""
    if isinstance(place, Volume):
        return place, None
    path = _path(place, what)
    return read_any(path, what=what), Source.of(path, what=what)


def read_given_mask(mask: VolumeOrFile) -> tuple[Volume, Source | None]:
    """An initial mask, and its file if it is given as one."""
    if isinstance(mask, Volume):
        return mask, None
    path = _path(mask, "initial mask")
    return read_mask(path), Source.of(path, what="initial mask")


def _path(place: str | Path, what: str) -> Path:
    if not isinstance(place, (str, Path)):
        raise ConfigError(
            f"the {what} is of type {type(place).__name__}; give a path, or a Volume of an array "
            "and its affine."
        )
    return Path(place)
