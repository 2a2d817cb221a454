"""What a caller gives: image, dose and mask as files or in memory, a record, a box."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.nifti import Volume, label_of
from rtsam_jax.data.preprocess import Preprocessed, PreprocessSpec, preprocess
from rtsam_jax.data.volume import check_affine, check_shape, closest_ras
from rtsam_jax.errors import ConfigError, IncompleteCase, RecordError, VolumeError
from rtsam_jax.prediction.inputs import read_any, read_mask
from rtsam_jax.prediction.predicted import VolumeOrFile
from rtsam_jax.prediction.session import Source
from rtsam_jax.prompts.record import Scalar, check_record

_MEMORY = Path("in memory")  # what messages name in a file's place
_MASK = "initial mask"
_FAR = 2**31  # voxels; no index is as large, and all below are exact


def read_given(place: VolumeOrFile, what: str) -> tuple[Volume, Source | None]:
    """A volume in the closest RAS+ axes, as float32, and its file if it is given as one."""
    if isinstance(place, Volume):
        return _in_memory(place, what), None
    path = _path(place, what)
    return read_any(path, what=what), Source.of(path, what=what)


def prepare_given(
    image: VolumeOrFile,
    dose: VolumeOrFile | None,
    modality: str,
    record: Mapping[str, Scalar],
    cfg: ExperimentConfig,
    *,
    name: str,
    boxed: bool,
) -> tuple[Preprocessed, Volume, tuple[Source, Source | None] | None]:
    """A case on the model grid, its image on its own, and its files if it has them all.

    As in training the dose makes no region where the box comes from elsewhere: with a box that is
    given, and with a model whose config.dose.source is another.

    Args:
        modality: "CT" or "MR".
        record: of the case, for a threshold by prescription.
        cfg: of the run.
        name: of the case, for errors.
        boxed: whether a box is given.

    Raises:
        IncompleteCase: the model was trained with boxes around labels, and none is given.
        RTSamError: of the files; see `read_any` and `preprocess`.
    """
    if cfg.dose.source == "label" and not boxed:
        raise IncompleteCase(
            f"Case {name} has no box, and the model was trained with boxes around labels, which no "
            "dose replaces; give a box around where to look."
        )
    volume, image_file = read_given(image, "image")
    given, dose_file = (None, None) if dose is None else read_given(dose, "dose")
    spec = PreprocessSpec.from_config(cfg)
    scan = preprocess(
        volume,
        given,
        modality,
        spec,
        name=name,
        prescription_gy=spec.prescription_gy(record),
        with_roi=cfg.dose.source == "dose" and not boxed,
    )
    named = image_file and (dose is None or dose_file)
    files = (image_file, dose_file) if image_file and named else None
    return scan, volume, files


def read_given_mask(mask: VolumeOrFile) -> tuple[Volume, Source | None]:
    """An initial mask of one structure: bool, and its file if it is given as one."""
    if isinstance(mask, Volume):
        volume = _checked(mask, _MASK)
        if volume.array.dtype != bool:
            volume = _in_memory(mask, _MASK)
            volume = label_of(volume, _MEMORY, what=_MASK, mend="mark one structure alone")
        return volume, None
    path = _path(mask, _MASK)
    return read_mask(path), Source.of(path, what=_MASK)


def read_given_record(
    record: Mapping[str, Scalar] | None, name: str, *, free_text: bool
) -> dict[str, Scalar]:
    """A record of Python's own scalars, which a session's file can hold; numpy's become such.

    Args:
        record: None is an empty one.
        name: of the case, for errors.
        free_text: see `check_record`.

    Raises:
        RecordError: it is no mapping, or says what a prompt must not say.
    """
    if record is None:
        return {}
    if not isinstance(record, Mapping):
        raise RecordError(
            f"the record of case {name!r} is of type {type(record).__name__}; give a mapping of "
            "fields to values."
        )
    plain = {
        field: value.item() if isinstance(value, np.generic) else value
        for field, value in record.items()
    }
    check_record(plain, f"case {name!r}", free_text=free_text)
    return plain


def read_given_box(box: object, name: str) -> np.ndarray:
    """Two corners of a box: int64 (2, 3); `ConfigError` if they are not whole numbers."""
    try:
        corners = np.asarray(box, np.float64)
    except (TypeError, ValueError, OverflowError):
        corners = np.empty(0)
    near = corners.shape == (2, 3) and bool((np.abs(corners) < _FAR).all())  # NaN is not
    if not near or (corners != np.rint(corners)).any():
        raise ConfigError(
            f"the box of case {name!r} is not two corners of three whole numbers; give the "
            "first and the last voxel of the model grid, as box_on_grid makes them."
        )
    return corners.astype(np.int64)


def _in_memory(volume: Volume, what: str) -> Volume:
    """A caller's volume as one from a file."""
    volume = _checked(volume, what)
    return closest_ras(volume.array, volume.affine, _MEMORY, what)


def _checked(volume: Volume, what: str) -> Volume:
    try:
        array, affine = np.asarray(volume.array), np.asarray(volume.affine, np.float64)
    except (TypeError, ValueError) as cause:
        raise VolumeError(
            f"The {what} {_MEMORY} has an array or an affine that is none of numbers; give numpy "
            "arrays [X, Y, Z] and [4, 4]."
        ) from cause
    if array.ndim != 3 or array.dtype.kind not in "iufb" or affine.shape != (4, 4):
        raise VolumeError(
            f"The {what} {_MEMORY} has an array of {array.dtype} {array.shape} and an affine "
            f"{affine.shape}; give real numbers [X, Y, Z] and an affine [4, 4]."
        )
    check_shape(array.shape, _MEMORY, what)
    check_affine(affine, _MEMORY, what, "give the one that leads from its voxels to world mm")
    return Volume(array, affine)


def _path(place: str | Path, what: str) -> Path:
    if not isinstance(place, (str, Path)):
        raise ConfigError(
            f"the {what} is of type {type(place).__name__}; give a path, or a Volume of an array "
            "and its affine."
        )
    return Path(place)
