"""Small files that appear whole or not at all, on a disk or in cloud storage."""

from __future__ import annotations

import os
import uuid

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


def cache_not_writable(folder: epath.Path, cause: OSError) -> NotWritable:
    """The error for a cache that the system refuses to write."""
    return NotWritable(
        f"the prepared cases in {folder} cannot be written ({cause.strerror}); free space, mend "
        f"its permissions, or keep them elsewhere with --config.data.cache=FOLDER."
    )
