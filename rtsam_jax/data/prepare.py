"""Prepares scans that are not in the cache yet, in parallel; one that fails stops no other."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from etils import epath
from tqdm import tqdm

from rtsam_jax.data.cache import Entry, only_one, read_index, settings_folder, write_shard
from rtsam_jax.data.cases import Case
from rtsam_jax.data.content import ContentHashes, stamp
from rtsam_jax.data.failure import Failure
from rtsam_jax.data.neighbourhood import encode
from rtsam_jax.data.nifti import read_label
from rtsam_jax.data.preprocess import Grid, label_to_grid
from rtsam_jax.data.scans import CacheSettings, Scan, View, group_scans, preprocess_scan
from rtsam_jax.errors import CacheDamaged, RTSamError, UnreadableFile

_LARGEST_SHARD = 64  # scans; what a kill can cost, against the number of files
_SHARD_BYTES = 2**29  # written as soon as they are reached: until then they are in memory
_PER_WORKER = 4  # shards for each process at least, so that none waits long for another
_FEW = 8  # scans that are done before a second process has started

Reason = tuple[str, str]  # code and sentence of an error

_GONE: Reason = (
    CacheDamaged.code,
    "Its prepared scan was removed by another command while this one ran; start it again.",
)


@dataclass(frozen=True)
class Prepared:
    """What a dataset's cases became.

    Attributes:
        entries: by case, its scan's entry and which of its views is the case's.
        failures: the cases that are not there, in the order they were found.
        fresh: scans that were prepared now and did not fail; the others were in the cache.
    """

    folder: epath.Path
    entries: dict[str, tuple[Entry, int]]
    failures: list[Failure]
    fresh: int

    @property
    def empty(self) -> list[str]:
        """Cases whose label has no voxel."""
        return [
            case
            for case, (entry, view) in self.entries.items()
            if entry.views[view].get("voxels") == 0
        ]


def prepare_cases(
    cases: Sequence[Case],
    modality: Mapping[str, str],
    settings: CacheSettings,
    cache: epath.Path,
    workers: int = 0,
) -> Prepared:
    """Brings the cache up to date with the files of these cases.

    Args:
        modality: by task.
        cache: folder or address for all settings.
        workers: processes; 0 is one per core.

    Raises:
        NotWritable: the cache cannot be written.
    """
    folder = settings_folder(cache, settings)
    contents = ContentHashes(cache).of(path for case in cases for path in case.files)
    scans, failures = group_scans(cases, modality, settings, contents)
    index = read_index(folder)
    if _missing(scans, index):
        with only_one(folder):
            index = read_index(folder, mend=True)  # another command may have prepared some by now
            missing = _missing(scans, index)
            failed = _prepare_scans(missing, settings, folder, workers)
            index |= read_index(folder)
    else:
        missing, failed = [], {}
    entries = {}
    for scan in scans:
        for case, view in zip(scan.cases, scan.view_of, strict=True):
            entry = index.get(scan.key)
            if entry is None:
                reason = failed.get(scan.key, _GONE)
                failures.append(Failure(case, *reason))
            elif "failure" in entry.views[view]:
                failures.append(Failure(case, *entry.views[view]["failure"]))
            else:
                entries[case] = entry, view
    fresh = sum(scan.key in index and not index[scan.key].failed for scan in missing)
    return Prepared(folder, entries, failures, fresh)


def _missing(scans: Sequence[Scan], index: Mapping[str, Entry]) -> list[Scan]:
    """Scans that are not in the index, or of which a label failed: it is tried again."""
    return [scan for scan in scans if scan.key not in index or index[scan.key].failed]


def _prepare_scans(
    scans: Sequence[Scan], settings: CacheSettings, folder: epath.Path, workers: int
) -> dict[str, Reason]:
    """Writes shards of these scans; returns why a scan has no record, by key."""
    cores = len(os.sched_getaffinity(0))
    workers = min(workers or cores, -(-len(scans) // _FEW))
    length = max(1, min(_LARGEST_SHARD, -(-len(scans) // (max(workers, 1) * _PER_WORKER))))
    chunks = [scans[at : at + length] for at in range(0, len(scans), length)]
    failed: dict[str, Reason] = {}
    with Progress(sum(len(scan.cases) for scan in scans)) as progress:
        for chunk, reasons in _each_chunk(chunks, settings, folder, workers):
            failed |= reasons
            progress.add(sum(len(scan.cases) for scan in chunk))
    return failed


def _each_chunk(
    chunks: Sequence[Sequence[Scan]], settings: CacheSettings, folder: epath.Path, workers: int
) -> Iterator[tuple[Sequence[Scan], dict[str, Reason]]]:
    """Chunks as they are done, here or in processes, each with what `prepare_chunk` returned."""
    if workers <= 1:
        for chunk in chunks:
            yield chunk, prepare_chunk(chunk, settings, folder)
        return
    killed = []
    for chunk, done in in_processes(prepare_chunk, chunks, settings, folder, workers=workers):
        if isinstance(done, BrokenProcessPool):
            killed.append(chunk)
        elif isinstance(done, Exception):
            raise done
        else:
            yield chunk, done
    for scan in (scan for chunk in killed for scan in chunk):
        # In a process of its own, so that it takes no other with it.
        ((_, done),) = in_processes(prepare_chunk, [[scan]], settings, folder, workers=1)
        if isinstance(done, BrokenProcessPool):
            done = {scan.key: ("worker_killed", killed_sentence(scan.source.image))}
        elif isinstance(done, Exception):
            raise done
        yield [scan], done


def killed_sentence(image: Path) -> str:
    """What to say of an image whose process the system killed."""
    return (
        f"The process that had {image} was killed, probably for want of memory; crop or resample "
        "the volume, or use fewer processes with --config.data.prepare_workers=1."
    )


Item = TypeVar("Item")


def in_processes(
    function: Callable[..., Any], items: Sequence[Item], *more: Any, workers: int
) -> Iterator[tuple[Item, Any]]:
    """Calls `function(item, *more)` in processes that end with this one.

    Args:
        workers: processes; 0 is one per core.

    Yields:
        Items as they are done, each with what the function returned or the exception it raised:
        `BrokenProcessPool` for whatever was waiting or under way when the system killed a process.
    """
    # Not forked: JAX and grain have threads, which a fork would leave behind with their locks.
    pool = ProcessPoolExecutor(
        workers or len(os.sched_getaffinity(0)),
        multiprocessing.get_context("spawn"),
        initializer=_end_with_parent,
    )
    try:
        futures = {pool.submit(function, item, *more): item for item in items}
        for future in as_completed(futures):
            error = future.exception()
            yield futures[future], future.result() if error is None else error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """Ends this process when the one that started it is killed: a pool's workers would wait on."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def prepare_chunk(
    scans: Sequence[Scan], settings: CacheSettings, folder: epath.Path
) -> dict[str, Reason]:
    """Writes a shard, or several where one would be large; returns why a scan is in none, by key.

    Raises:
        NotWritable: the cache cannot be written.
    """
    records: list[tuple[bytes, dict[str, Any]]] = []
    failed: dict[str, Reason] = {}
    for scan in scans:
        if sum(len(content) for content, _ in records) >= _SHARD_BYTES:
            write_shard(folder, records)
            records.clear()
        try:
            records.append(_prepare_scan(scan, settings))
        except RTSamError as error:
            failed[scan.key] = (error.code, str(error))
        except Exception as error:  # a fault of ours or of memory: named, and the rest goes on
            traceback.print_exc()
            sentence = (
                f"{scan.source.image} could not be prepared ({type(error).__name__}: {error}); see "
                "the trace above, and report it."
            )
            failed[scan.key] = ("unexpected", sentence)
    if records:
        write_shard(folder, records)
    return failed


def _prepare_scan(scan: Scan, settings: CacheSettings) -> tuple[bytes, dict[str, Any]]:
    others = len(scan.cases) - 1
    name = scan.cases[0] + (f" (and {others} more on its scan)" if others else "")
    whole = preprocess_scan(scan.source, settings.spec, name=name)
    labels: list[np.ndarray | None] = []
    failures: dict[int, Reason] = {}
    for at, (path, value) in enumerate(scan.views):
        try:
            labels.append(_label((path, value), whole.grid, _case_of(scan, at)))
        except RTSamError as error:
            labels.append(None)
            failures[at] = (error.code, str(error))
    content = encode(
        whole,
        labels,
        size=settings.size,
        reach=settings.reach,
        dtype=settings.dtype,
        crop=settings.spec.crop,
    )
    for path, then in scan.stamps:
        if stamp(path) != then:  # a record of other bytes than its key's would stay for ever
            raise UnreadableFile(f"{path} was changed while it was prepared; start again.")
    views: list[dict[str, Any]] = [
        {"failure": failures[at]}
        if at in failures
        else {}
        if label is None
        else {"voxels": int(np.count_nonzero(label))}
        for at, label in enumerate(labels)
    ]
    about = {
        "shape": list(whole.grid.shape),
        "mean": whole.mean,
        "std": whole.std,
        "dmax": whole.dmax,
        "threshold_gy": whole.threshold_gy,
        "fraction_outside_dose": whole.fraction_outside_dose,
    }
    return content, {"key": scan.key, "views": views, "about": about}


def _label(view: View, grid: Grid, name: str) -> np.ndarray | None:
    path, value = view
    return None if path is None else label_to_grid(read_label(path, value), grid, name=name)


def _case_of(scan: Scan, view: int) -> str:
    return scan.cases[scan.view_of.index(view)]


class Progress:
    """A bar on a terminal, a line per tenth elsewhere; both with the time left."""

    def __init__(self, total: int, what: str = "prepared", unit: str = "cases"):
        self._total, self._what, self._unit = total, what, unit
        self._done, self._said, self._began = 0, 0, time.monotonic()
        self._bar = tqdm(total=total, desc=what, unit=f" {unit}", disable=not sys.stderr.isatty())

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    @property
    def left(self) -> int:
        return self._total - self._done

    def add(self, count: int) -> None:
        self._done += count
        self._bar.update(count)
        tenth = 10 * self._done // max(1, self._total)
        if self._bar.disable and tenth > self._said:
            self._said = tenth
            passed = time.monotonic() - self._began
            left = timedelta(seconds=round(passed * (self._total / self._done - 1)))
            print(f"{self._what} {self._done}/{self._total} {self._unit}, {left} left", flush=True)
