"""Records in ArrayRecord shards, each with an index beside it, on a disk or in cloud storage.

    FOLDER/NAME.array_record    a shard
    FOLDER/NAME.json            its index; written last, so that a shard without one is none

A record is found by its key. What a kill leaves half written is never read, and removed by the next
command that writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath

from rtsam_jax.data.file_lock import take_lock
from rtsam_jax.data.whole_file import Kept, is_remote, write_whole
from rtsam_jax.errors import CacheDamaged

DIGITS = 16  # of a digest in a name
SETTINGS = "settings.json"
_SUFFIX = ".array_record"
_POLL_S = 0.5  # for a lock: a system call that waits for it is not ended by a signal


@dataclass(frozen=True)
class Place:
    """Where a record is.

    Attributes:
        shard: file of the record.
        bytes: size of the whole shard.
        records: in the shard.
        position: of this record among them.
    """

    key: str
    shard: epath.Path
    bytes: int
    records: int
    position: int


P = TypeVar("P", bound=Place)


def make_folder(folder: epath.Path, settings: str, kept: Kept) -> epath.Path:
    """Makes a folder whose `settings.json` says what its name is the digest of.

    Raises:
        NotWritable: the system refuses.
    """
    try:
        if not (folder / SETTINGS).exists():
            write_whole(folder / SETTINGS, settings)
    except OSError as cause:
        raise kept.not_writable(folder, cause) from cause
    return folder


def read_places(folder: epath.Path, kind: type[P], kept: Kept, *, mend: bool) -> Iterator[P]:
    """The records of every whole shard.

    Args:
        kind: `Place`, or a class with what else the indices hold of a record.
        mend: remove shards that are damaged, so that their records are made again; only where
            `only_one` holds.
    """
    sizes = {}
    for path in folder.iterdir():
        if path.name.endswith(_SUFFIX):
            with suppress(FileNotFoundError):  # another command mended it
                sizes[path.name] = path.stat().length
    for path in sorted(folder.iterdir()):
        if not path.name.endswith(".json") or path.name == SETTINGS:
            continue
        name = path.name.removesuffix(".json") + _SUFFIX
        try:
            index = json.loads(path.read_text())
            whole = sizes.get(name) == index["bytes"]
            places = [
                kind(
                    shard=folder / name,
                    bytes=index["bytes"],
                    records=len(index["records"]),
                    position=at,
                    **record,
                )
                for at, record in enumerate(index["records"])
            ]
        except (OSError, ValueError, KeyError, TypeError):  # OSError: another command mended it
            whole = False
        if whole:
            yield from places
        elif mend:
            print(f"{folder / name} is damaged or incomplete: what it held is {kept.made} again")
            path.unlink(missing_ok=True)
            (folder / name).unlink(missing_ok=True)


def write_shard(
    folder: epath.Path, records: Sequence[tuple[bytes, dict[str, Any]]], kept: Kept
) -> None:
    """Writes records and then their index; nothing is to be seen of it before it is whole.

    Args:
        folder: of `make_folder`.
        records: content, and what the index holds of it: its `key`, and more where the `kind` that
            reads it has more.

    Raises:
        NotWritable: no space, no permission.
    """
    keys = "".join(about["key"] for _, about in records)
    name = hashlib.sha256(keys.encode()).hexdigest()[:DIGITS]
    shard = folder / f"{name}{_SUFFIX}"
    try:
        with _scratch(shard) as beside:
            size = _write_records(beside, [content for content, _ in records])
            if is_remote(shard):
                epath.Path(beside).copy(shard, overwrite=True)
            else:
                os.replace(beside, shard)
        index = {"bytes": size, "records": [about for _, about in records]}
        write_whole(folder / f"{name}.json", json.dumps(index))
    except OSError as cause:
        raise kept.not_writable(folder, cause) from cause


def _write_records(path: Path, contents: Sequence[bytes]) -> int:
    try:
        # Single records are read in any order; noise does not compress.
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for content in contents:
            writer.write(content)
        writer.close()
    except RuntimeError as cause:  # all the library raises; the system's reason is in the text
        raise OSError(None, str(cause).splitlines()[0], str(path)) from cause
    reader = ArrayRecordReader(str(path), "readahead_buffer_size:0")
    if not reader.ok() or reader.num_records() != len(contents):
        raise OSError(None, "what was written cannot be read back", str(path))
    return path.stat().st_size


@contextmanager
def _scratch(shard: epath.Path) -> Iterator[Path]:
    """A file on this machine to write to, removed if it is still there in the end."""
    if is_remote(shard):
        with tempfile.TemporaryDirectory(prefix="rtsam_jax_") as folder:
            yield Path(folder) / shard.name
        return
    beside = Path(shard.parent / f".{shard.name}.{uuid.uuid4().hex}.part")
    try:
        yield beside
    finally:
        beside.unlink(missing_ok=True)


class ShardReader:
    """Reads single records, from any thread.

    A shard is opened for each read, which takes a thousandth of reading: so thousands of them need
    no more files open than there are threads.

    Args:
        copies: folder for shards that lie in cloud storage, fetched when they are first read.
    """

    def __init__(self, copies: Path, kept: Kept):
        self._copies, self._kept = copies, kept
        self._fetching: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def read(self, place: Place) -> bytes:
        """The content of a record.

        Raises:
            CacheDamaged: the file is not what was written.
        """
        with self._fetching[place.shard.name]:
            path = _local_shard(place.shard, place.bytes, self._copies)
        try:
            reader = ArrayRecordReader(str(path), "readahead_buffer_size:0")
            try:
                if reader.num_records() != place.records:  # 0 where it cannot be opened
                    raise RuntimeError(f"{reader.num_records()} records where {place.records} were")
                (content,) = reader.read([place.position])
                return content
            finally:
                reader.close()
        except (RuntimeError, ValueError, IndexError) as cause:
            reason = (str(cause).splitlines() or [type(cause).__name__])[0]
            raise CacheDamaged(
                f"The {self._kept.what} in {path} cannot be read ({reason}); delete that file, and "
                f"they are {self._kept.made} again."
            ) from cause


def _local_shard(shard: epath.Path, size: int, copies: Path) -> Path:
    """A shard as a file on this machine: itself, or a copy of it in `copies`, fetched once."""
    if not is_remote(shard):
        return Path(shard)
    here = copies / shard.parent.name / shard.name
    if not here.is_file() or here.stat().st_size != size:
        here.parent.mkdir(parents=True, exist_ok=True)
        beside = here.with_name(f".{here.name}.{uuid.uuid4().hex}.part")
        try:
            shard.copy(epath.Path(beside), overwrite=True)
            os.replace(beside, here)
        finally:
            beside.unlink(missing_ok=True)
    return here


@contextmanager
def only_one(
    folder: epath.Path, kept: Kept, check: Callable[[], object] | None = None
) -> Iterator[None]:
    """Lets one command at a time write into a folder on a disk; others wait for it.

    What a killed one left half written is removed. In cloud storage two commands may do the same
    work twice, which harms nothing: shards are named by what is in them.

    Args:
        check: called again and again while it waits; what it raises ends the wait.
    """
    if is_remote(folder):
        yield
        return
    try:
        lock = (folder / ".lock").open("a")
    except OSError as cause:
        raise kept.not_writable(folder, cause) from cause
    with lock:
        try:
            if not take_lock(lock):
                print(f"waiting for another command that writes {folder}", flush=True)
                while not take_lock(lock):
                    if check is not None:
                        check()
                    time.sleep(_POLL_S)
        except OSError as cause:  # some network file systems
            print(f"{folder} cannot be locked ({cause.strerror}): start no second command on it")
        _remove_halves(folder)
        yield


def _remove_halves(folder: epath.Path) -> None:
    names = {path.name for path in folder.iterdir()}
    for name in names:
        half = name.startswith(".") and ".part" in name
        orphan = name.endswith(_SUFFIX) and name.removesuffix(_SUFFIX) + ".json" not in names
        if half or orphan:
            (folder / name).unlink(missing_ok=True)
