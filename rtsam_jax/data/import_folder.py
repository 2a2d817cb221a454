"""What the importers of other projects' folders share: volumes by name, valid names, links."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rtsam_jax.data.cases import KINDS, RESERVED, TaskInfo, check_patients, is_name, write_dataset
from rtsam_jax.errors import ConfigError, DatasetSchemaError, MissingFile, UnreadableFile

SIDES = {"Tr": "train", "Ts": "test"}  # imagesTr, labelsTs, ...: end of the folder's name -> split
_ENDINGS = (".nii.gz", ".nii")
# Tables and sidecars, such as dcm2niix writes beside its images; they hold no voxels.
_TEXTS = (".bval", ".bvec", ".csv", ".json", ".md", ".tsv", ".txt")
_LONGEST = 100  # of a name, see rtsam_jax.data.cases
_SHOWN = 5  # names in a sentence

T = TypeVar("T")


def entries_in(folder: Path) -> list[str]:
    """The names in a folder, sorted, without hidden ones.

    Raises:
      MissingFile: no such folder.
      DatasetSchemaError: a name that is no text.
    """
    if not folder.is_dir():
        raise MissingFile(f"There is no folder {folder}; see docs/import.md for what is expected.")
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    for name in names:
        try:
            name.encode()  # fails for bytes that are not UTF-8, which JSON could not hold
        except UnicodeEncodeError as cause:
            raise DatasetSchemaError(
                f"{folder} holds {ascii(name)}, whose name is not UTF-8; rename it."
            ) from cause
    return names


def volumes_in(folder: Path) -> dict[str, Path]:
    """The NIfTI files of a folder by their names without the ending, in the order of names.

    Hidden files, tables and sidecars are passed over.

    Raises:
      MissingFile: no such folder, or an entry is a folder or a link that leads nowhere.
      UnreadableFile: a file of another format.
      DatasetSchemaError: `NAME.nii` and `NAME.nii.gz`, or a name that is no text.
    """
    found: dict[str, Path] = {}
    for name in entries_in(folder):
        if name.lower().endswith(_TEXTS):
            continue
        path = folder / name
        if not os.path.isfile(path):  # also False, without an error, where links form a loop
            raise MissingFile(
                f"{path} is no file, but a folder or a link that leads nowhere; "
                "move it away or mend the link."
            )
        stem = name.removesuffix(ending_of(path))
        if stem in found:
            raise DatasetSchemaError(
                f"{folder} holds both {found[stem].name} and {name}; remove one of them."
            )
        found[stem] = path
    return found


def ending_of(path: Path) -> str:
    """`.nii.gz` or `.nii`; `UnreadableFile` where it is neither."""
    for ending in _ENDINGS:
        if path.name.endswith(ending):
            return ending
    raise UnreadableFile(
        f"{path} is not NIfTI (.nii.gz, .nii); convert it to NIfTI or move it out of the folder."
    )


def labelled_sides(folder: Path) -> list[str]:
    """Which of `SIDES` to import: "Tr", and "Ts" where it has labels.

    Raises:
      MissingFile: the folder holds neither.
    """
    present = [side for side in SIDES if (folder / f"labels{side}").is_dir()]
    if "Tr" not in present and (folder / "imagesTr").is_dir():
        present.insert(0, "Tr")  # whoever reads the side says that its labels are missing
    if not present:
        raise MissingFile(
            f"{folder} has no folders imagesTr and labelsTr; name the folder that docs/import.md "
            "shows as SOURCE."
        )
    return present


def check_pairs(images: Collection[str], labels: Collection[str], where: Path, side: str) -> None:
    """Raises `MissingFile` where an image has no label or a label no image."""
    for have, lack, one, other in (
        (images, labels, "images", "labels"),
        (labels, images, "labels", "images"),
    ):
        if alone := sorted(set(have) - set(lack)):
            raise MissingFile(
                f"{where}: {some(alone)} of {one}{side} ({len(alone)} in all) is not in "
                f"{other}{side}; add the missing file or move this one away."
            )


def name_of(text: str, what: str) -> str:
    """A text as an id, a task or a file name: letters, digits, ".", "_" and "-" stay.

    What is longer than such names may be ends in a hash of the whole.

    Raises:
      DatasetSchemaError: nothing of it stays.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")
    if len(name) > _LONGEST:
        digest = hashlib.sha256(name.encode()).hexdigest()[:12]
        name = f"{name[: _LONGEST - 13]}-{digest}"
    if not is_name(name):
        raise DatasetSchemaError(
            f"The {what} {text!r} has no letter or digit of ASCII to make a name of; rename it."
        )
    return name


def unique_names(texts: Iterable[str], what: str) -> dict[str, str]:
    """`name_of` each text; `DatasetSchemaError` where two become one."""
    names: dict[str, str] = {}
    taken: dict[str, str] = {}
    for text in texts:
        names[text] = name = name_of(text, what)
        if taken.setdefault(name, text) != text:
            raise DatasetSchemaError(
                f"The {what}s {taken[name]!r} and {text!r} would both be called {name}; rename one."
            )
    return names


def patient_rule(regex: str) -> Callable[[str], str]:
    """From a scan's name to its patient: what `regex` finds, or its first group; "": the name.

    Raises:
      ConfigError: `regex` is none, or, from the rule, finds nothing in a name.
    """
    if not regex:
        return str.strip
    try:
        pattern = re.compile(regex)
    except re.error as cause:
        raise ConfigError(f"--patient {regex!r} is no regular expression: {cause}.") from cause

    def rule(name: str) -> str:
        found = pattern.search(name)
        patient = found[1 if pattern.groups else 0] if found else None
        if not patient or not patient.strip():
            raise ConfigError(
                f"--patient {regex!r} finds no patient in the name {name!r}; "
                "write an expression that fits all names."
            )
        return patient.strip()

    return rule


def place(source: Path, target: Path, *, copy: bool) -> None:
    """Makes `target` a relative link to `source`, or a copy of it; missing folders are made.

    Raises:
      DatasetSchemaError: there is a `target` already.
    """
    if os.path.lexists(target):
        raise DatasetSchemaError(
            f"{source} would be {target.name} in the dataset, as another file beside it or on the "
            "other side of the split; rename one of them."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy:
        shutil.copyfile(source, target)
        return
    # From where the folders really are: ".." of a folder that is reached through a link leads
    # elsewhere.
    folder = os.path.realpath(source.parent)
    start = os.path.realpath(target.parent)
    target.symlink_to(os.path.relpath(os.path.join(folder, source.name), start))


def write_import(
    root: Path,
    *,
    source: Path,
    kind: str,
    description: str,
    tasks: Sequence[TaskInfo],
    cases: Sequence[dict[str, Any]],
) -> None:
    """`write_dataset`, named after `source`; what `source` is to blame for names it.

    Raises:
      DatasetSchemaError: two cases have one id; a task has the reserved name.
      SplitError: a patient on both sides.
    """
    if RESERVED in (task.name for task in tasks):
        raise DatasetSchemaError(
            f"{source}: a structure is called {RESERVED!r}, which in tables is the row over all "
            "tasks; rename it."
        )
    origin: dict[str, dict[str, Any]] = {}
    for case in cases:
        if origin.setdefault(case["id"], case) is not case:
            raise DatasetSchemaError(
                f"{source}: two cases would be called {case['id']} (of {case['label']} and "
                f"{origin[case['id']]['label']}); rename one file."
            )
    splits = {case["id"]: case["split"] for case in cases if case["split"] is not None}
    check_patients(splits, {case["id"]: case["patient"] for case in cases}, str(source))
    write_dataset(
        root,
        name=name_of(source.resolve().name, "folder"),
        kind=kind,
        description=description,
        tasks=tasks,
        cases=cases,
    )


def some(texts: Sequence[str], separator: str = ", ") -> str:
    """The first few texts, and how many more there are."""
    more = len(texts) - _SHOWN
    return separator.join(texts[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def progress(items: Iterable[T], total: int, what: str, *, every: int) -> Iterator[T]:
    """Passes `items` on and says on stderr how many are done."""
    for done, item in enumerate(items, 1):
        yield item
        if done == total or done % every == 0:
            end = "\r" if sys.stderr.isatty() and done < total else "\n"
            print(f"{what} {done}/{total}", end=end, file=sys.stderr, flush=True)


def command_line(name: str, description: str, source: str) -> argparse.ArgumentParser:
    """A parser with the arguments that all importers take."""
    parser = argparse.ArgumentParser(
        prog=f"python -m rtsam_jax.data.{name}", description=description
    )
    parser.add_argument("source", type=Path, help=source)
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument(
        "--kind",
        choices=KINDS,
        default="surrogate",
        help="what the labels are; clinical: the injury itself (default: %(default)s)",
    )
    parser.add_argument("--copy", action="store_true", help="copy the volumes, do not link them")
    return parser
