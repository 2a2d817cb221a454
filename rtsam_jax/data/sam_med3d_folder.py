"""A dataset from SAM-Med3D's folders (Wang et al., arXiv 2310.15161), for training without dose.

python -m rtsam_jax.data.sam_med3d_folder SOURCE OUT [--modality PREFIX=CT|MR] [--patient REGEX] ...

SOURCE is `CLASS/MODALITY_DATASET/{imagesTr,labelsTr}/NAME.nii.gz`, such as
`adrenal/ct_WORD/imagesTr/word_0001.nii.gz`: one binary mask per file, and the image beside each
class anew. A task is a class in one modality. Of the images with one MODALITY_DATASET and NAME one
is linked, if all are the same, so that a scan is prepared once for all its masks. No voxel is read.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtsam_jax.data.cases import MODALITIES, TaskInfo
from rtsam_jax.data.import_folder import (
    SIDES,
    check_pairs,
    command_line,
    ending_of,
    entries_in,
    labelled_sides,
    name_of,
    patient_rule,
    place,
    progress,
    unique_names,
    volumes_in,
    write_import,
)
from rtsam_jax.data.new_folder import new_folder
from rtsam_jax.errors import ConfigError, DatasetSchemaError, MissingFile, run_command

PREFIXES = {"ct": "CT", "mr": "MR", "mri": "MR"}  # of MODALITY_DATASET, in lower case
_TAIL = 64  # bytes


@dataclass(frozen=True)
class _Mask:
    """One mask and its image, with the source's names."""

    title: str  # CLASS
    dataset: str  # MODALITY_DATASET
    modality: str
    side: str  # a key of SIDES
    name: str
    image: Path
    label: Path


def build(
    source: Path,
    root: Path,
    *,
    modality: Mapping[str, str] | None = None,
    patient: str = "",
    kind: str = "surrogate",
    copy: bool = False,
) -> None:
    """Writes the dataset; it appears complete or not at all. Prints how many cases a task has.

    Args:
      source: the folder of the classes.
      root: the folder to make; it must not exist, or be empty.
      modality: "CT" or "MR" by prefix of MODALITY_DATASET, besides `PREFIXES`.
      patient: regular expression for the patient in a file's name; "": the whole name. Patients of
        two MODALITY_DATASETs are never the same.
      kind: as in the schema.
      copy: copy the volumes instead of linking them.

    Raises:
      MissingFile: a folder, an image of a label, or a label of an image.
      UnreadableFile: a file of another format.
      DatasetSchemaError: names that are not distinct, or two images of one name.
      ConfigError: an argument does not fit, or a prefix of no known modality.
      SplitError: a patient on both sides.
      OutputExists: `root` holds something.
    """
    source = Path(source)
    prefixes = {**PREFIXES, **{key.lower(): value for key, value in (modality or {}).items()}}
    patient_of = patient_rule(patient)
    masks, unlabelled = _find_masks(source, prefixes)
    titles = unique_names(dict.fromkeys(mask.title for mask in masks), "class")
    sets = unique_names(dict.fromkeys(mask.dataset for mask in masks), "folder")
    split = any(mask.side == "Ts" for mask in masks)
    tasks: dict[str, TaskInfo] = {}
    cases: list[dict[str, Any]] = []
    with new_folder(root) as beside:
        images = _Images(beside, copy)
        for mask in progress(masks, len(masks), "sam_med3d_folder", every=5000):
            task = name_of(f"{titles[mask.title]}_{mask.modality.lower()}", "class")
            title = mask.title.replace("_", " ").strip()
            tasks.setdefault(task, TaskInfo(task, mask.modality, title))
            folder, name = sets[mask.dataset], name_of(mask.name, "image")
            label = f"labels/{titles[mask.title]}/{folder}/{name}{ending_of(mask.label)}"
            cases.append(
                {
                    "id": name_of(f"{titles[mask.title]}_{folder}_{name}", "case"),
                    "patient": f"{folder}/{patient_of(mask.name)}",
                    "task": task,
                    "image": images.add(folder, name, mask.image),
                    "label": label,
                    "split": SIDES[mask.side] if split else None,
                }
            )
            place(mask.label, beside / label, copy=copy)
        write_import(
            beside,
            source=source,
            kind=kind,
            description=f"SAM-Med3D folder {source.resolve().name}, without dose.",
            tasks=list(tasks.values()),
            cases=cases,
        )
    print(f"SAM-Med3D {source}: {len(images)} images, {len(cases)} cases, no dose")
    for task, count in sorted(Counter(case["task"] for case in cases).items()):
        print(f"  {task}: {count} cases")
    if unlabelled:
        print(f"  imagesTs without labelsTs, left out: {unlabelled} files")


class _Images:
    """The dataset's images, each there once, whichever classes it was found under.

    Args:
      root: the dataset's folder.
      copy: copy them instead of linking them.
    """

    def __init__(self, root: Path, copy: bool):
        self._root = root
        self._copy = copy
        self._first: dict[tuple[str, str], Path] = {}
        self._prints: dict[Path, tuple[int, bytes]] = {}

    def __len__(self) -> int:
        return len(self._first)

    def add(self, folder: str, name: str, path: Path) -> str:
        """The image's path in the dataset; `DatasetSchemaError` where another has its name."""
        first = self._first.setdefault((folder, name), path)
        target = f"images/{folder}/{name}{ending_of(first)}"
        if first is path:
            place(path, self._root / target, copy=self._copy)
        elif not os.path.samefile(first, path) and self._print(first) != _fingerprint(path):
            raise DatasetSchemaError(
                f"{first} and {path} should be one image, but differ; rename one of them and its "
                "label."
            )
        return target

    def _print(self, path: Path) -> tuple[int, bytes]:
        if path not in self._prints:
            self._prints[path] = _fingerprint(path)
        return self._prints[path]


def _fingerprint(path: Path) -> tuple[int, bytes]:
    """A file's size and what tells its content.

    Gzip ends in the CRC-32 and the length of what it holds: reading that spares reading millions of
    voxels again for each class. The bytes before it count too, since block-wise writers close with
    an empty block of 28 bytes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if ending_of(path) != ".nii.gz":
            return size, hashlib.file_digest(file, "sha256").digest()
        file.seek(max(0, size - _TAIL))
        return size, file.read()


def _find_masks(source: Path, prefixes: Mapping[str, str]) -> tuple[list[_Mask], int]:
    """All masks, and how many images of test sides have none."""
    masks: list[_Mask] = []
    unlabelled = 0
    for of_class in _folders(source):
        for dataset in _folders(of_class):
            sides = labelled_sides(dataset)  # first: it finds a SOURCE of the wrong level
            modality = _modality(dataset, prefixes)
            for side in sides:
                images = volumes_in(dataset / f"images{side}")
                labels = volumes_in(dataset / f"labels{side}")
                check_pairs(images, labels, dataset, side)
                masks += [
                    _Mask(of_class.name, dataset.name, modality, side, name, image, labels[name])
                    for name, image in images.items()
                ]
            if "Ts" not in sides and (dataset / "imagesTs").is_dir():
                unlabelled += len(volumes_in(dataset / "imagesTs"))
    if not masks:
        raise MissingFile(
            f"{source} holds no CLASS/MODALITY_DATASET/labelsTr with a mask; name the folder of "
            "the classes."
        )
    return masks, unlabelled


def _folders(parent: Path) -> Iterator[Path]:
    """The folders in a folder, in the order of names; files are passed over."""
    for name in entries_in(parent):
        path = parent / name
        if path.is_dir():
            yield path
        elif not path.exists():
            raise MissingFile(f"{path} is a link that leads nowhere; mend or remove it.")


def _modality(dataset: Path, prefixes: Mapping[str, str]) -> str:
    prefix = dataset.name.partition("_")[0].lower()
    if prefix not in prefixes:
        raise ConfigError(
            f"{dataset} begins with {prefix!r}, which tells neither CT nor MR; say "
            f"--modality {prefix}=CT or --modality {prefix}=MR, or move the folder away."
        )
    return prefixes[prefix]


def _prefix_modality(text: str) -> tuple[str, str]:
    prefix, _, modality = text.partition("=")
    if not prefix or modality not in MODALITIES:
        raise argparse.ArgumentTypeError(f"{text!r} is not PREFIX=CT or PREFIX=MR")
    return prefix, modality


def main() -> None:
    """Parses the command line and runs it."""
    parser = command_line(
        "sam_med3d_folder", "Makes a dataset from SAM-Med3D's folders.", "folder of the classes"
    )
    parser.add_argument(
        "--modality",
        type=_prefix_modality,
        action="append",
        default=[],
        metavar="PREFIX=CT|MR",
        help="of the folders PREFIX_NAME; may be repeated (known: ct, mr, mri)",
    )
    parser.add_argument(
        "--patient",
        default="",
        metavar="REGEX",
        help="what in a file's name is the patient: the match or its first group (default: all)",
    )
    values = vars(parser.parse_args())
    values["modality"] = dict(values["modality"])
    build(values.pop("source"), values.pop("out"), **values)


if __name__ == "__main__":
    run_command(main)
