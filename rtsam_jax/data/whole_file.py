"""Small files that appear whole or not at all, on a disk or in cloud storage."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass

from etils import epath

from rtsam_jax.errors import NotWritable


def is_remote(path: epath.Path) -> bool:
    """Whether a path is an address such as `gs://bucket/folder`."""
    return "://" in os.fspath(path)


def write_whole(path: epath.Path, text: str) -> None:
    """Writes a text file: on a disk beside and then renamed, in cloud storage in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(path):
        path.write_text(text)  # an object appears when its upload has ended
        return
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        beside.write_text(text)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@dataclass(frozen=True)
class Kept:
    """What a folder of a cache keeps, in the words of its errors."""

    what: str
    made: str  # what is done to it
    option: str  # the field of the config that says where it is

    def not_writable(self, folder: epath.Path, cause: OSError) -> NotWritable:
        """The error for a folder that the system refuses to write."""
        return NotWritable(
            f"the {self.what} in {folder} cannot be written ({cause.strerror}); free space, mend "
            f"its permissions, or keep them elsewhere with --config.{self.option}=FOLDER."
        )


PREPARED = Kept("prepared cases", "prepared", "data.cache")
