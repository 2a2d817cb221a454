"""Fields of `dataset.json`, checked one by one; `where` says whose they are in every message."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NoReturn

from rtsam_jax.errors import DatasetSchemaError, MissingFile


def check_fields(
    entry: Mapping[str, Any], known: tuple[str, ...], required: tuple[str, ...], where: str
) -> None:
    """Raises `DatasetSchemaError` for a field that is not known, or one that lacks."""
    for key in entry:
        if key not in known:
            raise DatasetSchemaError(
                f"{where}: field {key!r} is unknown; remove it or use one of {', '.join(known)}."
            )
    for key in required:
        if key not in entry:
            raise DatasetSchemaError(f"{where}: field {key!r} is missing; add it.")


def text_of(entry: Mapping[str, Any], key: str, where: str, *, empty: bool = False) -> str:
    """A text without spaces around it; `DatasetSchemaError` for anything else."""
    value = entry[key]
    if not isinstance(value, str) or not (empty or value.strip()):
        fail(where, key, "a text" if empty else "a text that is not empty", value)
    if value != value.strip():  # "p1 " would be another patient than "p1"
        fail(where, key, "a text without spaces around it", value)
    return value


def choice_of(entry: Mapping[str, Any], key: str, allowed: Sequence[str], where: str) -> str:
    """One of the allowed texts; `DatasetSchemaError` for anything else."""
    value = entry[key]
    if not isinstance(value, str) or value not in allowed:
        fail(where, key, "one of " + ", ".join(map(repr, allowed)), value)
    return value


def file_in(
    entry: Mapping[str, Any], key: str, where: str, root: Path, *, there: bool = True
) -> Path:
    """The file that a relative path names inside the dataset's folder.

    Args:
      there: whether it must exist.

    Raises:
      DatasetSchemaError: not a path, or one that leaves the folder.
      MissingFile: there is no such file, though there must be.
    """
    text = text_of(entry, key, where)
    rooted = PurePosixPath(text).is_absolute() or PureWindowsPath(text).anchor
    # Checked on the text, not resolved: links inside the folder may lead to where the bytes are.
    relative = os.path.normpath(text)
    if rooted or "\0" in text or relative == ".." or relative.startswith(f"..{os.sep}"):
        fail(where, key, "a path relative to the dataset's folder that stays inside it")
    if there and not (root / relative).is_file():
        raise MissingFile(
            f"{where}: field {key!r} names {text}, but there is no such file in {root}; "
            "add the file or mend the path."
        )
    return root / relative


def fail(where: str, key: str, rule: str, value: Any = None) -> NoReturn:
    """Raises a `DatasetSchemaError` that says what the field must be."""
    found = "" if value is None else f" is {value!r}, but it"
    raise DatasetSchemaError(f"{where}: field {key!r}{found} must be {rule}.")
