"""Prepared cases as a sequence that training reads from, one record at a time."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from rtsam_jax.data.cache import Entry, local_shard
from rtsam_jax.data.neighbourhood import Neighbourhood, decode
from rtsam_jax.errors import CacheDamaged


class PreparedCases(Sequence[Neighbourhood]):
    """Neighbourhoods on disk; whatever the number of cases, memory holds those in use.

    A shard is opened for each read, which takes a thousandth of reading: so thousands of them need
    no more files open than there are threads.

    Args:
        places: by case, its scan's entry and which view of it.
        tasks: by case, its index.
        source: config.dose.source.
        copies: folder for shards that lie in cloud storage, fetched when they are first read.
    """

    def __init__(
        self,
        places: Sequence[tuple[Entry, int]],
        tasks: Sequence[int],
        source: str,
        copies: Path,
    ):
        self._places = places
        self.task_ids = np.array(tasks)
        self._source = source
        self._copies = copies
        self._fetching: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, case: int) -> Neighbourhood: ...
    @overload
    def __getitem__(self, case: slice) -> list[Neighbourhood]: ...
    def __getitem__(self, case: int | slice) -> Neighbourhood | list[Neighbourhood]:
        """Reads a case from its shard.

        Raises:
            CacheDamaged: the file is not what was written.
        """
        if isinstance(case, slice):
            return [self[at] for at in range(*case.indices(len(self)))]
        if not -len(self) <= case < len(self):
            raise IndexError(case)  # ends an iteration
        entry, view = self._places[case]
        with self._fetching[entry.shard.name]:
            path = local_shard(entry.shard, entry.bytes, self._copies)
        return decode(_read(path, entry), view, int(self.task_ids[case]), self._source)


def _read(path: Path, entry: Entry) -> bytes:
    try:
        reader = ArrayRecordReader(str(path), "readahead_buffer_size:0")
        try:
            if reader.num_records() != entry.records:  # 0 where it cannot be opened
                raise RuntimeError(f"{reader.num_records()} records where {entry.records} were")
            (content,) = reader.read([entry.position])
            return content
        finally:
            reader.close()
    except (RuntimeError, ValueError, IndexError) as cause:
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise CacheDamaged(
            f"The prepared cases in {path} cannot be read ({reason}); delete that file, and they "
            "are prepared again."
        ) from cause
