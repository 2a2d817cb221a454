"""What a case is given as: files of any format, a record, clicks and a box in a user's own frames.

`read_inputs` is where files become volumes; `rtsam_jax.data.dicom` names all that knows formats.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rtsam_jax.data.cases import check_case_record
from rtsam_jax.data.dicom import refuse_dicom
from rtsam_jax.data.file_grid import FileGrid, file_grid
from rtsam_jax.data.grid import Grid
from rtsam_jax.data.itk import is_itk, read_itk
from rtsam_jax.data.json_file import read_json
from rtsam_jax.data.nifti import Volume, label_of, read_volume
from rtsam_jax.data.preprocess import voxels_reached
from rtsam_jax.errors import ConfigError, MissingFile, PromptOutside, RecordError
from rtsam_jax.prediction.session import Source
from rtsam_jax.prompts.record import FIELDS, Flag, Number, Scalar, Term, check_names

FRAMES = ("voxel", "world")
_ROUNDING = 1e-3  # voxels; headers are float32
_SIGNS = {"+": True, "-": False}

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class GivenClick:
    """A click as a user gives it."""

    at: Triple  # indices of the image file's own array, or world RAS+ mm
    positive: bool
    frame: str  # "voxel" | "world"


@dataclass(frozen=True)
class GivenBox:
    """A box as a user gives it: its first and last voxel, or opposite corners in world RAS+ mm."""

    corners: tuple[Triple, Triple]
    frame: str  # "voxel" | "world"


@dataclass(frozen=True)
class Request:
    """What is to be predicted, and from which files."""

    case: str
    tasks: tuple[str, ...]  # those of them that the image's modality suits
    image: Path
    dose: Path | None = None
    mask: Path | None = None  # an initial mask
    record: Mapping[str, Scalar] | Path | None = None
    clicks: tuple[GivenClick, ...] = ()
    box: GivenBox | None = None

    def contents(self) -> dict[str, Any]:
        """SHA-256 of the files' bytes by part, and the prompts: JSON that a result depends on.

        Raises:
            MissingFile, UnreadableFile, VolumeError: of a file; see `files_behind` and
                `refuse_dicom`.
        """
        record: Any = self.record or None
        if isinstance(record, Path):
            record = Source.of(record, what="record").sha256
        dose, mask = self.dose, self.mask
        return {
            "image": _digest(self.image, "image"),
            "dose": dose and _digest(dose, "dose"),
            "mask": mask and _digest(mask, "initial mask"),
            "record": record,
            "clicks": [[*click.at, click.positive, click.frame] for click in self.clicks],
            "box": self.box and [*self.box.corners, self.box.frame],
        }


@dataclass(frozen=True, eq=False)
class Inputs:
    """A request's files, read."""

    image: Volume
    grid: FileGrid  # of the image's file
    dose: Volume | None
    mask: Volume | None  # bool
    record: dict[str, Scalar]


def read_inputs(request: Request, *, free_text: bool = False) -> Inputs:
    """Reads image, dose, initial mask and record of a case.

    Args:
        free_text: whether the record may hold free text.

    Raises:
        MissingFile, UnreadableFile, VolumeError, NonFiniteVoxels, ExtraMissing: of a volume.
        DatasetSchemaError, RecordError: the record is no JSON, or says what a prompt must not say.
    """
    dose, mask = request.dose, request.mask
    record, where = {} if request.record is None else request.record, f"case {request.case!r}"
    if isinstance(record, Path):
        record, where = read_record(record), str(record)
    record = check_case_record(record, where, free_text=free_text)
    image = read_any(request.image, what="image")
    return Inputs(
        image=image,
        grid=file_grid(request.image),
        dose=None if dose is None else read_any(dose, what="dose"),
        mask=None if mask is None else read_mask(mask),
        record=record,
    )


def _digest(path: Path, what: str) -> str:
    refuse_dicom(path, what=what)  # a folder has no digest, and its own sentence
    return Source.of(path, what=what).sha256


def read_any(path: Path, *, what: str) -> Volume:
    """`read_volume` or, by the file's ending, `read_itk`."""
    return read_itk(path, what=what) if is_itk(path) else read_volume(path, what=what)


def read_mask(path: Path) -> Volume:
    """An initial mask from the file of one structure: bool.

    Raises:
        MissingFile, UnreadableFile, VolumeError, NonFiniteVoxels, ExtraMissing: of a volume.
        VolumeError: a map of several structures, or a probability.
    """
    what = "initial mask"
    volume = read_any(path, what=what)
    return label_of(volume, path, what=what, mend="store a mask of one structure")


def read_record(path: Path) -> dict[str, Scalar]:
    """A record from a JSON file: one object of fields.

    Raises:
        MissingFile, DatasetSchemaError, RecordError: no such file, no JSON, no such object.
    """
    if not path.is_file():
        raise MissingFile(f"There is no record {path}; write one, as docs/predict.md shows.")
    record = read_json(path)
    if not isinstance(record, dict):
        raise RecordError(f"{path} must hold one JSON object of fields and values.")
    check_names(record, str(path))
    for name, value in record.items():
        if not isinstance(value, str | int | float):
            raise RecordError(f"{path}: record field {name!r} must be a text or a number.")
    return record


def parse_record(texts: Iterable[str]) -> dict[str, Scalar]:
    """`FIELD=VALUE` each, with values of the field's type where they can be read as one.

    Raises:
        RecordError: without "=", twice the same field, or a field that records do not have.
    """
    record: dict[str, Scalar] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or name in record:
            raise RecordError(f"--record {text!r} must be FIELD=VALUE, each field once.")
        check_names([name], "--record")
        record[name] = _typed(value, FIELDS[name].kind)
    return record


def _typed(text: str, kind: object) -> Scalar:
    if isinstance(kind, Flag) or (isinstance(kind, Term) and kind.flag):
        return {"true": True, "false": False}.get(text.lower(), text)
    if isinstance(kind, Number):
        try:
            number = float(text)
        except ValueError:
            return text  # `check_record` says what it must be
        if not math.isfinite(number):
            return text
        return int(number) if number.is_integer() else number
    return text


def parse_click(text: str, frame: str) -> GivenClick:
    """`x,y,z,+` or `x,y,z,-`; `ConfigError` for anything else."""
    *numbers, sign = text.split(",")
    at = _numbers(numbers)
    if len(at) != 3 or sign.strip() not in _SIGNS:
        raise ConfigError(
            f"--click {text!r} must be x,y,z,+ (inside) or x,y,z,- (outside), with three numbers."
        )
    return GivenClick((at[0], at[1], at[2]), _SIGNS[sign.strip()], frame)


def parse_box(text: str, frame: str) -> GivenBox:
    """`x0,y0,z0,x1,y1,z1`; `ConfigError` for anything else."""
    at = _numbers(text.split(","))
    if len(at) != 6 or any(low > high for low, high in zip(at[:3], at[3:], strict=True)):
        raise ConfigError(
            f"--box {text!r} must be x0,y0,z0,x1,y1,z1, six numbers of which the first three are "
            "not above the last three."
        )
    return GivenBox(((at[0], at[1], at[2]), (at[3], at[4], at[5])), frame)


def _numbers(texts: Iterable[str]) -> list[float]:
    """None at all where one of the texts is no finite number."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def click_in_world(click: GivenClick, image: FileGrid, *, name: str) -> Triple:
    """A click in world RAS+ mm.

    Args:
        image: the grid that indices are of.
        name: of the case, for errors.

    Raises:
        PromptOutside: it lies outside the image's field of view.
    """
    world = np.array(click.at) if click.frame == "world" else image.to_world(np.array(click.at))
    if _beyond(image.to_index(world), image) > _ROUNDING:
        raise PromptOutside(
            f"The click {said_of(click)} lies outside the image of {name}, "
            f"{_extent(image, click.frame)}; give one inside it."
        )
    x, y, z = world.tolist()
    return x, y, z


def said_of(click: GivenClick) -> str:
    """A click's numbers as they were given, with their frame."""
    return f"{_said(click.at)} ({_unit(click.frame)})"


def box_on_grid(box: GivenBox, image: FileGrid, grid: Grid, *, name: str) -> np.ndarray:
    """The voxels of the model grid that a box reaches into: (2, 3) int64, inclusive.

    A box of world mm is one along the world's axes; on a tilted image all that it touches counts.

    Args:
        image: the grid that indices are of.
        grid: the model grid of the image.
        name: of the case, for errors.

    Raises:
        PromptOutside: a part of it lies outside the image's field of view.
    """
    low, high = np.array(box.corners)
    if box.frame == "voxel":
        low, high = low - 0.5, high + 0.5  # from the first voxel's outer face to the last one's
    corners = np.array([*itertools.product(*zip(low, high, strict=True))])
    world = corners if box.frame == "world" else image.to_world(corners)
    beyond = _beyond(image.to_index(world), image)
    if beyond > _ROUNDING:
        raise PromptOutside(
            f"The box from {_said(box.corners[0])} to {_said(box.corners[1])} ({_unit(box.frame)}) "
            f"reaches {beyond:.3g} voxels beyond the image of {name}, "
            f"{_extent(image, box.frame)}; give one that lies in it."
        )
    return voxels_reached(grid.to_index(world), grid.shape)


def _beyond(index: np.ndarray, image: FileGrid) -> float:
    """Voxels by which the furthest of some indices lies outside of an image's outer faces."""
    return float(np.maximum(-0.5 - index, index - (np.array(image.shape) - 0.5)).max())


def _extent(image: FileGrid, frame: str) -> str:
    if frame == "voxel":
        return f"which has {' x '.join(map(str, image.shape))} voxels"
    sides = [(-0.5, n - 0.5) for n in image.shape]
    world = image.to_world(np.array([*itertools.product(*sides)]))
    return f"which lies between {_said(world.min(0))} and {_said(world.max(0))} mm"


def _unit(frame: str) -> str:
    return "world mm" if frame == "world" else "voxel"


def _said(values: Iterable[float]) -> str:
    return f"({', '.join(f'{value:.5g}' for value in values)})"
