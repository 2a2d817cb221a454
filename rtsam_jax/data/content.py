"""What files hold, by SHA-256, without reading twice what has not changed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from etils import epath

from rtsam_jax.data.whole_file import PREPARED, write_whole
from rtsam_jax.errors import MissingFile, RTSamError, UnreadableFile

MEMO = "files.json"
# A file changed this recently may change again within the clock's tick.
_SETTLED_S = 2.0
_THREADS = 4  # hashing leaves Python's lock


Stamp = tuple[int, int, int, int]  # size, inode, times of modification and change in ns


class Content(NamedTuple):
    """What a file held, and its stamp when it was hashed."""

    digest: str
    stamp: Stamp


def stamp(path: Path) -> Stamp:
    """What changes with every change of a file."""
    status = path.stat()
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


class ContentHashes:
    """SHA-256 of files, remembered by path, size, inode and times.

    The time of change (ctime) is among them, which no program can set: a file that was replaced by
    one of the same size and date is read again.

    Args:
        folder: where the memory is kept, in `files.json`; a damaged one is forgotten.
    """

    def __init__(self, folder: epath.Path):
        self._memo = folder / MEMO
        self._known: dict[str, list] = {}
        try:
            known = json.loads(self._memo.read_text())
            self._known = known if isinstance(known, dict) else {}
        except (OSError, ValueError):
            pass  # none yet, or damaged: everything is read again
        self._changed = False

    def of(self, paths: Iterable[Path]) -> dict[Path, Content | RTSamError]:
        """Contents by path, or why a file has none; saves what it learned.

        Raises:
            NotWritable: the memory cannot be saved.
        """
        distinct = list(dict.fromkeys(paths))
        with ThreadPoolExecutor(_THREADS) as pool:
            digests = dict(zip(distinct, pool.map(self._digest, distinct), strict=True))
        if self._changed:
            try:
                write_whole(self._memo, json.dumps(self._known))
            except OSError as cause:
                raise PREPARED.not_writable(self._memo.parent, cause) from cause
            self._changed = False
        return digests

    def digests(self, paths: Iterable[Path]) -> dict[Path, str]:
        """`of` where every file must have a content.

        Raises:
            MissingFile, UnreadableFile: of the first file that has none.
            NotWritable: see `of`.
        """
        found = {}
        for path, content in self.of(paths).items():
            if isinstance(content, RTSamError):
                raise content
            found[path] = content.digest
        return found

    def _digest(self, path: Path) -> Content | RTSamError:
        try:
            now = stamp(path)
            known = self._known.get(os.fspath(path))
            if isinstance(known, list) and known[:-1] == list(now):
                return Content(known[-1], now)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return MissingFile(f"There is no file {path}; bring it back.")
        except OSError as cause:
            return UnreadableFile(
                f"{path} cannot be read ({cause.strerror}); mend its permissions or copy it again."
            )
        if time.time_ns() - now[-1] > 1e9 * _SETTLED_S:
            self._known[os.fspath(path)] = [*now, digest]
            self._changed = True
        return Content(digest, now)
