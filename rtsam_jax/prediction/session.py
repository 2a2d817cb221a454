"""A session as a file: which case from which files, what was done, and the mask it led to.

Nothing of the case is stored but its record, no voxel. A session is had again by doing the same
again; the mask's digest proves that it is the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rtsam_jax.data.itk import files_behind
from rtsam_jax.data.json_file import strict_json, write_json
from rtsam_jax.data.nifti import Volume
from rtsam_jax.errors import (
    ConfigError,
    MissingFile,
    NotWritable,
    SessionMismatch,
    UnreadableFile,
)
from rtsam_jax.prompts.record import Scalar

SCHEMA_VERSION = 1
BEGIN, CLICK, UNDO = "begin", "click", "undo"


@dataclass(frozen=True)
class Source:
    """A file and what it held."""

    path: Path
    sha256: str

    @classmethod
    def of(cls, path: Path, *, what: str) -> Source:
        """A file as it is now.

        Args:
            path: of an `.mhd` the file with its voxels counts as well.
            what: its part in the case, for messages.

        Raises:
            MissingFile, UnreadableFile: it is not there, or refused by the system.
            VolumeError: see `files_behind`.
        """
        digest = hashlib.sha256()
        for part in files_behind(path, what=what):
            try:
                with part.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            except FileNotFoundError as cause:
                raise MissingFile(f"There is no {what} file {part}; check the path.") from cause
            except OSError as cause:
                raise UnreadableFile(
                    f"The {what} {part} cannot be read ({cause.strerror}); mend its permissions or "
                    "copy it again."
                ) from cause
        return cls(path.absolute(), digest.hexdigest())

    def check(self, *, what: str) -> None:
        """Raises `SessionMismatch` if the file holds something else now."""
        if Source.of(self.path, what=what).sha256 != self.sha256:
            raise SessionMismatch(
                f"The {what} {self.path} is not what it was when the session was saved; bring that "
                "file back, or begin a new session."
            )


@dataclass(frozen=True)
class CaseSource:
    """What `Segmenter.set_case` was given."""

    name: str
    task: str
    record: Mapping[str, Scalar]
    image: Source
    dose: Source | None
    box: Sequence[Sequence[int]] | None  # (2, 3), inclusive voxels of the model grid


@dataclass(frozen=True)
class Action:
    """One entry of the log."""

    action: str  # BEGIN: no click is left; CLICK; UNDO: the last click is
    at_mm: tuple[float, float, float] | None = None  # of a click
    positive: bool | None = None  # a click's sign
    mask: Source | None = None  # BEGIN: the initial mask


@dataclass(frozen=True)
class Session:
    """All that a session file says."""

    weights: str  # digest of the model's
    case: CaseSource
    actions: tuple[Action, ...]
    mask_sha256: str  # of the mask after the last action


def mask_digest(mask: Volume) -> str:
    """SHA-256 of a mask's shape and voxels."""
    bits = np.packbits(mask.array.astype(bool))
    return hashlib.sha256(f"{mask.shape}\n".encode() + bits.tobytes()).hexdigest()


def write_session(path: str | Path, session: Session) -> None:
    """Writes a session whole or not at all; files below its own folder by relative paths.

    Raises:
        ConfigError: that is no path of a file.
        NotWritable: no space, no permission, no place for a file.
    """
    path = _path(path)
    root = path.absolute().parent

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value.relative_to(root) if value.is_relative_to(root) else value)
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items() if part is not None}
        return [plain(part) for part in value] if isinstance(value, list | tuple) else value

    about = {"schema": SCHEMA_VERSION, "kind": "session"}
    try:
        write_json(path, about | plain(dataclasses.asdict(session)))
    except OSError as cause:
        raise NotWritable(
            f"The session {path} cannot be written ({cause.strerror or cause}); free space, mend "
            "its permissions, or name another file."
        ) from cause


def read_session(path: str | Path) -> Session:
    """What `write_session` wrote.

    Raises:
        ConfigError: that is no path of a file.
        MissingFile: no such file.
        UnreadableFile: it is damaged, of another schema, no file, or refused by the system.
    """
    path = _path(path)
    root = path.absolute().parent

    def source(stored: Mapping[str, str]) -> Source:
        place = _the(str, stored, "path")
        if b"\0" in os.fsencode(place):  # which refuses what no path can hold either
            raise ValueError("a path in it holds a null character")
        return Source(root / place, _the(str, stored, "sha256"))

    def action(entry: Mapping[str, Any]) -> Action:
        if entry["action"] == CLICK:
            x, y, z = map(float, entry["at_mm"])
            return Action(CLICK, (x, y, z), _the(bool, entry, "positive"))
        if entry["action"] not in (BEGIN, UNDO):
            raise ValueError(f"its action {entry['action']!r} is unknown")
        return Action(entry["action"], mask=source(entry["mask"]) if "mask" in entry else None)

    try:
        content = strict_json(path)
        if (content["kind"], content["schema"]) != ("session", SCHEMA_VERSION):
            raise ValueError(f"it is no session of schema {SCHEMA_VERSION}")
        case = content["case"]
        return Session(
            weights=_the(str, content, "weights"),
            case=CaseSource(
                name=_the(str, case, "name"),
                task=_the(str, case, "task"),
                record=_the(dict, case, "record"),
                image=source(case["image"]),
                dose=source(case["dose"]) if "dose" in case else None,
                box=_box(case["box"]) if "box" in case else None,
            ),
            actions=tuple(map(action, content["actions"])),
            mask_sha256=_the(str, content, "mask_sha256"),
        )
    except FileNotFoundError as cause:
        raise MissingFile(f"There is no session {path}; check the path.") from cause
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise UnreadableFile(
            f"The session {path} cannot be read ({_reason(cause)}); save it again, or begin a new "
            "one."
        ) from cause


def _path(given: object) -> Path:
    if not isinstance(given, str | Path) or not Path(given).name:
        raise ConfigError(f"the session's file is given as {given!r}; give the path of a file.")
    return Path(given)


def _reason(cause: Exception) -> str:
    if isinstance(cause, OSError):
        return cause.strerror or str(cause)
    return f"it lacks {cause}" if isinstance(cause, KeyError) else str(cause)


def _the(kind: type, stored: Mapping[str, Any], name: str) -> Any:
    value = stored[name]
    if not isinstance(value, kind):
        raise ValueError(f"its {name} is no {kind.__name__}")
    return value


def _box(stored: Any) -> list[list[int]]:
    box = np.array(stored)
    if box.shape != (2, 3) or box.dtype.kind != "i":
        raise ValueError("its box is not two corners of three whole numbers")
    return box.tolist()
