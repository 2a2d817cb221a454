"""A folder that appears complete or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rtsam_jax.errors import NotWritable, OutputExists


@contextmanager
def new_folder(root: Path) -> Iterator[Path]:
    """A folder beside `root` to write into, renamed to `root` at the end of the `with` block.

    What an exception leaves is removed.

    Args:
      root: must not exist, or be empty.

    Raises:
      NotWritable: the system refuses to make it.
      OutputExists: `root` holds something, at the start or at the end.
    """
    root = Path(root).absolute()
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise OutputExists(f"{root} is not empty; remove it or name another folder.")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    except OSError as cause:
        raise NotWritable(
            f"{root} cannot be made ({cause.strerror}); name a folder in another place."
        ) from cause
    try:
        yield beside
        beside.chmod(0o755)  # mkdtemp's folders are private
        try:
            os.replace(beside, root)  # onto an empty folder too
        except OSError as cause:
            if cause.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise OutputExists(
                f"{root} was filled by another command meanwhile; start this one again to use it."
            ) from cause
    finally:
        shutil.rmtree(beside, ignore_errors=True)
