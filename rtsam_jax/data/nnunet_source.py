"""What a raw folder of nnU-Net declares and holds.

Its `dataset.json` is of v1 (`modality`, labels by index) or v2 (`channel_names`, labels by name).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from rtsam_jax.data.import_folder import check_pairs, some, volumes_in
from rtsam_jax.data.json_file import read_json
from rtsam_jax.errors import DatasetSchemaError, MissingFile

DOSES = "dosesTr"
IGNORE = "ignore"  # nnU-Net's name for voxels that nobody labelled
_ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Description:
    """What a `dataset.json` declares.

    Attributes:
      path: of the file.
      channels: index -> name.
      structures: name -> its values in the maps; a region has several. Without the background.
      ignore: the value of voxels that nobody labelled.
      num_training: how many training cases there are, where it says so.
      training: names of the training cases, where they are listed (v1).
      text: its `description`, or "".
    """

    path: Path
    channels: dict[int, str]
    structures: dict[str, tuple[int, ...]]
    ignore: int | None
    num_training: int | None
    training: frozenset[str] | None
    text: str

    @property
    def declared(self) -> set[int]:
        """All values that a map may hold."""
        inside = {value for values in self.structures.values() for value in values}
        return {0, *inside} | (set() if self.ignore is None else {self.ignore})


@dataclass(frozen=True)
class Scan:
    """An image, its map and, where known, its dose, under the source's name of the case."""

    name: str
    side: str  # a key of SIDES
    image: Path
    label: Path
    dose: Path | None


def read_description(source: Path) -> Description:
    """Reads `source/dataset.json`.

    Raises:
      MissingFile: there is none.
      DatasetSchemaError: not JSON, or neither v1 nor v2; the field is named.
    """
    path = source / "dataset.json"
    if not path.is_file():
        raise MissingFile(f"There is no {path}; name a raw folder of nnU-Net, or write the file.")
    document = read_json(path)
    if not isinstance(document, dict):
        raise DatasetSchemaError(f"{path} must hold one JSON object, as nnU-Net's does.")
    if document.get("file_ending", _ENDINGS[0]) not in _ENDINGS:
        _fail(path, "file_ending", f"one of {', '.join(_ENDINGS)}; convert the volumes to NIfTI")
    if "dataset" in document:
        _fail(path, "dataset", "absent; put the files it lists into imagesTr and labelsTr")
    structures, ignore = _structures(document, path)
    first = "channel_names" not in document and "modality" in document
    number = document.get("numTraining")
    if number is not None and (type(number) is not int or number < 0):
        _fail(path, "numTraining", "a number of cases")
    text = document.get("description", "")
    return Description(
        path=path,
        channels=_channels(document, "modality" if first else "channel_names", path),
        structures=structures,
        ignore=ignore,
        num_training=number,
        training=_training(document, path) if first and "training" in document else None,
        text=" ".join(text.split()) if isinstance(text, str) else "",
    )


def find_scans(
    source: Path, sides: list[str], described: Description, channel: int, dose: str
) -> tuple[list[Scan], list[str]]:
    """All scans of some sides, and the names of doses that none of them has.

    Args:
      source: nnU-Net's folder.
      sides: "Tr", "Ts", whose maps are there.
      described: what its `dataset.json` says.
      channel: which one is the image.
      dose: as in `rtsam_jax.data.nnunet.build`.

    Raises:
      MissingFile: a folder, an image of a label, a label of an image, what `dataset.json` counts,
        or the images of all doses.
      UnreadableFile, DatasetSchemaError: as `volumes_in`, or a name without a declared channel.
    """
    doses = {side: _doses(source, dose, side) for side in sides}
    scans = [
        scan for side in sides for scan in _scans(source, side, described, channel, doses[side])
    ]
    return scans, _spare_doses(source, doses, scans)


def _channels(document: dict[str, Any], key: str, path: Path) -> dict[int, str]:
    entries = document.get(key)
    rule = 'an object such as {"0": "CT"}'
    if not isinstance(entries, dict) or not entries:
        _fail(path, key, rule)
    if not all(at.isdecimal() and isinstance(name, str) for at, name in entries.items()):
        _fail(path, key, rule)
    return {int(at): name for at, name in entries.items()}


def _structures(
    document: dict[str, Any], path: Path
) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """Name -> values, and the value to ignore."""
    structures: dict[str, tuple[int, ...]] = {}
    ignore = None
    for name, values in _labels(document, path):
        plain = all(type(value) is int and value >= 0 for value in values)
        if not name.strip() or not plain or not values or (0 in values and values != (0,)):
            _fail(path, f"labels.{name}", "a whole number, or a list of such above 0 for a region")
        if name in structures:
            _fail(path, f"labels.{name}", "the name of one label only")
        if name == IGNORE:
            if len(values) != 1:
                _fail(path, f"labels.{name}", "a single number")
            ignore = values[0]
        elif values != (0,):
            structures[name] = values
    if not structures:
        _fail(path, "labels", "an object with a structure besides the background")
    if any(ignore in values for values in structures.values()):
        _fail(path, f"labels.{IGNORE}", "another number than those of the structures")
    return structures, ignore


def _labels(document: dict[str, Any], path: Path) -> list[tuple[str, tuple[Any, ...]]]:
    """(name, values), whichever way round the file has them."""
    labels = document.get("labels")
    if not isinstance(labels, dict):
        _fail(path, "labels", 'an object such as {"background": 0, "liver": 1}')
    if labels and all(isinstance(name, str) for name in labels.values()):  # v1
        if not all(value.isdecimal() for value in labels):
            _fail(path, "labels", 'an object such as {"0": "background", "1": "liver"}')
        return [(name, (int(value),)) for value, name in labels.items()]
    return [
        (name, tuple(value) if isinstance(value, list) else (value,))
        for name, value in labels.items()
    ]


def _training(document: dict[str, Any], path: Path) -> frozenset[str]:
    entries = document["training"]
    rule = 'a list of {"image": ..., "label": ...}'
    if not isinstance(entries, list):
        _fail(path, "training", rule)
    names = []
    for entry in entries:
        label = entry.get("label") if isinstance(entry, dict) else None
        if not isinstance(label, str):
            _fail(path, "training", rule)
        names.append(PurePosixPath(label).name.removesuffix(".gz").removesuffix(".nii"))
    if len(set(names)) != len(names):
        _fail(path, "training", "a list of distinct cases")
    return frozenset(names)


def _scans(
    source: Path, side: str, described: Description, channel: int, doses: dict[str, Path]
) -> list[Scan]:
    """The scans of one side, in the order of names."""
    folder = source / f"images{side}"
    images: dict[str, Path] = {}
    names: set[str] = set()
    for stem, path in volumes_in(folder).items():
        match = re.fullmatch(r"(.+)_(\d{4})", stem)
        if match is None or int(match[2]) not in described.channels:
            raise DatasetSchemaError(
                f"{path} does not end in a channel that {described.path} declares, such as "
                f"_{channel:04d}; rename it as nnU-Net wants it."
            )
        names.add(match[1])
        if int(match[2]) == channel:
            images[match[1]] = path
    if lacking := sorted(names - set(images)):
        raise MissingFile(
            f"{folder} holds no file _{channel:04d} of {some(lacking)}; add it or choose another "
            "channel."
        )
    labels = volumes_in(source / f"labels{side}")
    check_pairs(images, labels, source, side)
    if side == "Tr":
        _check_training(described, images)
    return [
        Scan(name, side, image, labels[name], doses.get(name)) for name, image in images.items()
    ]


def _check_training(described: Description, images: dict[str, Path]) -> None:
    """Raises `MissingFile` where `imagesTr` is not what `dataset.json` says."""
    if described.training is not None and described.training != set(images):
        differing = sorted(described.training ^ set(images))
        raise MissingFile(
            f"{described.path} and imagesTr beside it differ in {some(differing)}, which only one "
            "of them has; copy the missing files or mend the field 'training'."
        )
    if described.num_training not in (None, len(images)):
        raise MissingFile(
            f"{described.path} says numTraining {described.num_training}, but imagesTr beside it "
            f"holds {len(images)} cases; copy the missing files or mend the number."
        )


def _doses(source: Path, dose: str, side: str) -> dict[str, Path]:
    """The dose maps of one side by case, from one folder for both where that is how it is named."""
    name = dose or DOSES
    folder = source / (name.removesuffix("Tr") + side if name.endswith("Tr") else name)
    if side == "Tr" and dose and not folder.is_dir():
        raise MissingFile(f"There is no folder {folder}; name the one of the doses as --dose.")
    return volumes_in(folder) if folder.is_dir() else {}


def _spare_doses(source: Path, doses: dict[str, dict[str, Path]], scans: list[Scan]) -> list[str]:
    """Names of doses that no scan has; all of them is an error of naming."""
    used = {scan.name for scan in scans if scan.dose is not None}
    spare = sorted({name for side in doses.values() for name in side} - used)
    if spare and not used:
        raise MissingFile(
            f"No dose of {source} is named as a label is (found {some(spare)}); call each "
            "CASE.nii.gz, as its label."
        )
    return spare


def _fail(path: Path, key: str, rule: str) -> NoReturn:
    raise DatasetSchemaError(f"{path}: field {key!r} must be {rule}.")
