"""A dataset on disk: a folder with `dataset.json` (see docs/dataset.md), read and written strictly.

Whatever the file leaves in doubt is an error that names the case and the field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rtsam_jax.data.fields import check_fields, choice_of, fail, file_in, text_of
from rtsam_jax.data.json_file import read_json, write_json
from rtsam_jax.errors import DatasetSchemaError, MissingFile, SplitError
from rtsam_jax.prompts.record import Scalar, check_names, check_record

SCHEMA_VERSION = 1
FILE_NAME = "dataset.json"
KINDS = ("clinical", "surrogate", "synthetic")
MODALITIES = ("CT", "MR")

# Ids, task names and splits become parts of file and folder names.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NAME_RULE = "letters, digits, '.', '_' and '-' only, 100 at most, a letter or digit first"
RESERVED = "all"  # heads the row over every task in the tables (rtsam_jax.metrics.summary)
_DATASET_FIELDS = ("schema", "name", "kind", "description", "tasks", "cases")
_TASK_FIELDS = ("modality", "title")
_CASE_REQUIRED = ("id", "patient", "task", "image")
_CASE_FIELDS = (*_CASE_REQUIRED, "dose", "label", "label_value", "structures", "record", "split")


@dataclass(frozen=True)
class TaskInfo:
    """One thing to delineate."""

    name: str
    modality: str  # of its images: "CT" | "MR"
    title: str  # for tables and figures


@dataclass(frozen=True)
class Structure:
    """A mask of something named, in which false positives are counted. The path is absolute."""

    path: Path
    value: int | None = None  # what is inside in a map of several structures; None: not zero


@dataclass(frozen=True)
class Case:
    """One image with, where known, its dose and its truth. Paths are absolute."""

    id: str
    patient: str
    task: str
    image: Path
    dose: Path | None = None
    label: Path | None = None
    label_value: int | None = None  # what is inside in a map of several structures; None: not zero
    structures: dict[str, Structure] = field(default_factory=dict)
    record: dict[str, Scalar] = field(default_factory=dict)
    split: str | None = None

    @property
    def missing(self) -> tuple[str, ...]:
        """What an incomplete case lacks, of "dose" and "label"."""
        return tuple(part for part in ("dose", "label") if getattr(self, part) is None)

    @property
    def files(self) -> tuple[Path, ...]:
        """Those of image, dose and label that it has; structures matter to scoring alone."""
        return tuple(path for path in (self.image, self.dose, self.label) if path is not None)


@dataclass(frozen=True)
class Dataset:
    """A validated `dataset.json`, cases in the file's order."""

    root: Path
    name: str
    kind: str  # "clinical" | "surrogate" | "synthetic"
    description: str
    tasks: tuple[TaskInfo, ...]
    cases: tuple[Case, ...]

    def task(self, name: str) -> TaskInfo:
        """The task of that name; `DatasetSchemaError` where there is none."""
        for task in self.tasks:
            if task.name == name:
                return task
        known = ", ".join(task.name for task in self.tasks)
        raise DatasetSchemaError(f"Dataset {self.name} has no task {name!r}; choose from {known}.")


def load_dataset(
    root: str | Path, *, free_text: bool = False, parts_later: bool = False
) -> Dataset:
    """Reads and validates `root/dataset.json`.

    Args:
      root: the dataset's folder.
      free_text: whether records may hold free text; see `prompts.record.check_record`.
      parts_later: whether cases' files may be missing and records may be bad, for a reader who
        checks those of each case when its turn comes: the records with `check_case_record`.

    Raises:
      MissingFile: no `dataset.json`, or a case's file does not exist (named: case and field).
      DatasetSchemaError: anything the schema forbids (named: case and field).
      RecordError: a record identifies a person, carries the answer or is not in the allowed terms.
      SplitError: some cases have a `split` and some have none, or a patient has two of them.
    """
    root = Path(root).absolute()
    path = root / FILE_NAME
    if not path.is_file():
        raise MissingFile(f"There is no {path}; name the folder of a dataset or build one there.")
    return _parse(root, read_json(path), free_text, parts_later)


def write_dataset(
    root: str | Path,
    *,
    name: str,
    kind: str,
    description: str,
    tasks: Sequence[TaskInfo],
    cases: Sequence[Mapping[str, Any]],
    free_text: bool = False,
) -> None:
    """Validates and writes `root/dataset.json` in one step; the cases' files must be there already.

    Args:
      root: the dataset's folder.
      name: of the dataset.
      kind: "clinical", "surrogate" or "synthetic".
      description: where the data come from, in a sentence or two.
      tasks: what is delineated.
      cases: as in the schema; paths are relative to `root`. Fields that are None are left out.
      free_text: whether records may hold free text; who reads the dataset must allow it as well.

    Raises:
      MissingFile, DatasetSchemaError, RecordError, SplitError: as `load_dataset`; nothing is
        written then.
    """
    root = Path(root).absolute()
    document: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "name": name,
        "kind": kind,
        "description": description,
        "tasks": {task.name: {"modality": task.modality, "title": task.title} for task in tasks},
        "cases": [{k: _plain(v) for k, v in case.items() if v is not None} for case in cases],
    }
    if len(document["tasks"]) != len(tasks):
        raise DatasetSchemaError(f"{root / FILE_NAME}: two tasks have one name; rename one.")
    _parse(root, document, free_text, parts_later=False)
    write_json(root / FILE_NAME, document)


def check_case_record(record: Any, where: str, *, free_text: bool = False) -> dict[str, Scalar]:
    """A case's record, if it is one.

    Args:
      where: whose it is, for messages.
      free_text: see `load_dataset`.

    Raises:
      DatasetSchemaError: no object, or a value that is no text, finite number or truth value.
      RecordError: see `prompts.record.check_record`.
    """
    if not isinstance(record, dict):
        fail(where, "record", "an object of texts, numbers and truth values")
    check_names(record, where)  # first: a list of numbers may be a box
    for key, value in record.items():
        if not isinstance(value, str | int | float) or not _finite(value):
            fail(where, f"record.{key}", "a text, a finite number or a truth value; omit unknowns")
    check_record(record, where, free_text=free_text)
    return dict(record)


def is_name(text: str) -> bool:
    """Whether a text may become a file's or folder's name; see `_NAME_RULE`."""
    return _NAME.fullmatch(text) is not None


def check_patients(splits: Mapping[str, str], patients: Mapping[str, str], where: str) -> None:
    """Raises `SplitError` where a patient's cases carry two split names.

    Args:
      splits: case id -> split name.
      patients: case id -> patient.
      where: the file that says so, for the message.
    """
    first: dict[str, str] = {}
    for case, split in splits.items():
        other = first.setdefault(patients[case], case)
        if splits[other] != split:
            raise SplitError(
                f"{where}: patient {patients[case]} is in split {splits[other]!r} (case {other}) "
                f"and in {split!r} (case {case}); keep all cases of a patient on one side."
            )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return value.as_posix() if isinstance(value, Path) else value


def _parse(root: Path, document: Any, free_text: bool, parts_later: bool) -> Dataset:
    path = root / FILE_NAME
    if not isinstance(document, dict):
        raise DatasetSchemaError(f"{path} must hold one JSON object; see docs/dataset.md.")
    version = document.get("schema")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise DatasetSchemaError(
            f"{path}: field 'schema' is {version!r}, but this version reads {SCHEMA_VERSION}; "
            "convert the dataset as docs/dataset.md says."
        )
    where = f"{path}: the dataset"
    check_fields(document, _DATASET_FIELDS, _DATASET_FIELDS, where)
    kind = choice_of(document, "kind", KINDS, where)
    tasks = _parse_tasks(document["tasks"], path)
    entries = document["cases"]
    if not isinstance(entries, list) or not entries:
        raise DatasetSchemaError(f"{path}: field 'cases' must be a list of at least one case.")
    names = tuple(task.name for task in tasks)
    cases = tuple(
        _parse_case(entry, at, names, path, free_text, parts_later)
        for at, entry in enumerate(entries)
    )
    _check_ids_and_splits(cases, path)
    return Dataset(
        root=root,
        name=text_of(document, "name", where),
        kind=kind,
        description=text_of(document, "description", where, empty=True),
        tasks=tasks,
        cases=cases,
    )


def _parse_tasks(entries: Any, path: Path) -> tuple[TaskInfo, ...]:
    if not isinstance(entries, dict) or not entries:
        raise DatasetSchemaError(f"{path}: field 'tasks' must be an object of at least one task.")
    tasks = []
    for name, entry in entries.items():
        where = f"{path}: task {name!r}"
        if not is_name(name):
            fail(where, "name", _NAME_RULE)
        if name == RESERVED:
            fail(where, "name", "another, since tables call the row over all tasks so")
        if not isinstance(entry, dict):
            raise DatasetSchemaError(f"{where} must be an object with {_TASK_FIELDS}.")
        check_fields(entry, _TASK_FIELDS, _TASK_FIELDS, where)
        modality = choice_of(entry, "modality", MODALITIES, where)
        tasks.append(TaskInfo(name, modality, text_of(entry, "title", where)))
    return tuple(tasks)


def _parse_case(
    entry: Any, at: int, tasks: tuple[str, ...], path: Path, free_text: bool, parts_later: bool
) -> Case:
    where = f"{path}: case number {at + 1}"
    if not isinstance(entry, dict):
        raise DatasetSchemaError(f"{where} must be an object; see docs/dataset.md.")
    if isinstance(entry.get("id"), str):
        where = f"{path}: case {entry['id']!r}"
    check_fields(entry, _CASE_FIELDS, _CASE_REQUIRED, where)
    for key in ("id", "split"):
        if key in entry and not is_name(text_of(entry, key, where)):
            fail(where, key, _NAME_RULE, entry[key])
    files = {
        key: file_in(entry, key, where, path.parent, there=not parts_later)
        for key in ("image", "dose", "label")
        if key in entry
    }
    value = entry.get("label_value")
    if value is not None and ("label" not in entry or not _is_mark(value)):
        fail(where, "label_value", "a whole number other than 0, beside a label", value)
    record = entry.get("record", {})
    return Case(
        id=entry["id"],
        patient=text_of(entry, "patient", where),
        task=choice_of(entry, "task", tasks, where),
        label_value=value,
        structures=_structures(entry.get("structures", {}), where, path.parent, not parts_later),
        record=record if parts_later else check_case_record(record, where, free_text=free_text),
        split=entry.get("split"),
        **files,
    )


def _check_ids_and_splits(cases: tuple[Case, ...], path: Path) -> None:
    seen: set[str] = set()
    for case in cases:
        if case.id in seen:
            raise DatasetSchemaError(f"{path}: case {case.id!r}: field 'id' is used twice.")
        seen.add(case.id)
    splits = {case.id: case.split for case in cases if case.split is not None}
    if splits and len(splits) != len(cases):
        lacking = next(case.id for case in cases if case.split is None)
        raise SplitError(
            f"{path}: case {lacking!r} has no field 'split', though others have; "
            "give it to all cases or to none."
        )
    check_patients(splits, {case.id: case.patient for case in cases}, str(path))


def _structures(entries: Any, where: str, root: Path, there: bool) -> dict[str, Structure]:
    if not isinstance(entries, dict):
        fail(where, "structures", "an object of a path, or of path and value, for each name")
    found = {}
    for name, entry in entries.items():
        key = f"structures.{name}"
        if not is_name(name):
            fail(where, key, f"called by another name: {_NAME_RULE}")
        parts = {"path": entry} if isinstance(entry, str) else entry
        if not isinstance(parts, dict):
            fail(where, key, "a path, or an object of path and value", entry)
        check_fields(parts, ("path", "value"), ("path",), f"{where}: structure {name!r}")
        value = parts.get("value")
        if "value" in parts and not _is_mark(value):
            fail(where, f"{key}.value", "a whole number other than 0", value)
        place = file_in({key: parts["path"]}, key, where, root, there=there)
        found[name] = Structure(place, value)
    return found


def _is_mark(value: Any) -> bool:
    """Whether a value can mark what is inside in a map of several structures."""
    return type(value) is int and value != 0


def _finite(value: Scalar) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
