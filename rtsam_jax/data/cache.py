"""Prepared scans on disk or in cloud storage: ArrayRecord shards, each with an index beside it.

    CACHE/files.json                    content hashes, remembered (rtsam_jax.data.content)
    CACHE/SETTINGS/settings.json        what the folder's name is the digest of
    CACHE/SETTINGS/NAME.array_record    a shard: one record per scan (rtsam_jax.data.neighbourhood)
    CACHE/SETTINGS/NAME.json            its index; written last, so that a shard without one is none

A record is found by the key of its scan (`rtsam_jax.data.scans`): changed settings or files are
other keys, and what they leave behind is never read.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.scans import CacheSettings
from rtsam_jax.data.whole_file import cache_not_writable, is_remote, write_whole

SUFFIX = ".array_record"
_DIGITS = 16  # of a digest in a name


@dataclass(frozen=True)
class Entry:
    """Where a scan's record is, and what is known of it.

    Attributes:
        shard: file of the record.
        bytes: size of the whole shard.
        records: in the shard.
        position: of this record among them.
        views: per label its `voxels` on the model grid, or its `failure`: code and message.
        about: whole-volume statistics: shape, spacing, mean, std, dose levels.
    """

    key: str
    shard: epath.Path
    bytes: int
    records: int
    position: int
    views: list[dict[str, Any]]
    about: dict[str, Any]

    @property
    def failed(self) -> bool:
        """Whether one of its labels could not be used."""
        return any("failure" in view for view in self.views)


def cache_root(cfg: ExperimentConfig) -> epath.Path:
    """Where a config's prepared cases are kept, of all settings."""
    return epath.Path(cfg.data.cache or Path(cfg.data.dataset) / "prepared")


def settings_folder(cache: epath.Path, settings: CacheSettings) -> epath.Path:
    """Makes and describes the folder of these settings.

    Raises:
        NotWritable: the system refuses.
    """
    folder = cache / settings.digest[:_DIGITS]
    try:
        if not (folder / "settings.json").exists():
            write_whole(folder / "settings.json", settings.to_json())
    except OSError as cause:
        raise cache_not_writable(folder, cause) from cause
    return folder


def read_index(folder: epath.Path, *, mend: bool = False) -> dict[str, Entry]:
    """The entries of every whole shard, by key; of two with one key, one that did not fail.

    Args:
        mend: remove shards that are damaged, so that their scans are prepared again; only where
            `only_one` holds.
    """
    found: dict[str, Entry] = {}
    sizes = {}
    for path in folder.iterdir():
        if path.name.endswith(SUFFIX):
            with suppress(FileNotFoundError):  # another command mended it
                sizes[path.name] = path.stat().length
    for path in sorted(folder.iterdir()):
        if not path.name.endswith(".json") or path.name == "settings.json":
            continue
        name = path.name.removesuffix(".json") + SUFFIX
        try:
            index = json.loads(path.read_text())
            whole = sizes.get(name) == index["bytes"]
            entries = [
                Entry(
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
        if not whole:
            if mend:
                print(f"{folder / name} is damaged or incomplete: its scans are prepared again")
                path.unlink(missing_ok=True)
                (folder / name).unlink(missing_ok=True)
            continue
        for entry in entries:
            if entry.key not in found or found[entry.key].failed:
                found[entry.key] = entry
    return found


def write_shard(folder: epath.Path, records: Sequence[tuple[bytes, dict[str, Any]]]) -> None:
    """Writes records and then their index; nothing is to be seen of it before it is whole.

    Args:
        folder: of `settings_folder`.
        records: content and `key`, `views` and `about` of its entry.

    Raises:
        NotWritable: no space, no permission.
    """
    keys = "".join(about["key"] for _, about in records)
    name = hashlib.sha256(keys.encode()).hexdigest()[:_DIGITS]
    shard = folder / f"{name}{SUFFIX}"
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
        raise cache_not_writable(folder, cause) from cause


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


def local_shard(shard: epath.Path, size: int, copies: Path) -> Path:
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
def only_one(folder: epath.Path) -> Iterator[None]:
    """Lets one command at a time prepare into a folder on a disk; others wait for it.

    What a killed one left half written is removed. In cloud storage two commands may do the same
    work twice, which harms nothing: shards are named by what is in them.
    """
    if is_remote(folder):
        yield
        return
    try:
        lock = (folder / ".lock").open("a")
    except OSError as cause:
        raise cache_not_writable(folder, cause) from cause
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another command that prepares {folder}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as cause:  # some network file systems
            print(f"{folder} cannot be locked ({cause.strerror}): start no second command on it")
        _remove_halves(folder)
        yield


def _remove_halves(folder: epath.Path) -> None:
    names = {path.name for path in folder.iterdir()}
    for name in names:
        half = name.startswith(".") and ".part" in name
        orphan = name.endswith(SUFFIX) and name.removesuffix(SUFFIX) + ".json" not in names
        if half or orphan:
            (folder / name).unlink(missing_ok=True)
