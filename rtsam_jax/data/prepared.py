"""Prepared cases as a sequence that training reads from, one record at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from grain import sources

from rtsam_jax.data.cache import Entry, local_shard
from rtsam_jax.data.neighbourhood import Neighbourhood, decode
from rtsam_jax.errors import CacheDamaged


@dataclass(frozen=True)
class _File:
    """What grain wants to know of a shard, so that it need not open it to count."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class PreparedCases(Sequence[Neighbourhood]):
    """Neighbourhoods on disk; whatever the number of cases, memory holds those in use.

    Args:
        places: by case, its scan's entry and which view of it.
        tasks: by case, its index.
        source: config.dose.source.
        copies: folder for shards that lie in cloud storage.
    """

    def __init__(
        self,
        places: Sequence[tuple[Entry, int]],
        tasks: Sequence[int],
        source: str,
        copies: Path,
    ):
        shards = {entry.shard: entry for entry, _ in places}
        number = {shard: at for at, shard in enumerate(shards)}
        records = [entry.records for entry in shards.values()]
        first = np.cumsum([0, *records])
        files = [local_shard(entry.shard, entry.bytes, copies) for entry in shards.values()]
        self._files = files
        self._file = np.array([number[entry.shard] for entry, _ in places])
        positions = np.array([entry.position for entry, _ in places])
        self._record = first[self._file] + positions
        self._view = np.array([view for _, view in places])
        self.task_ids = np.array(tasks)
        self._source = source
        self._records = sources.ArrayRecordDataSource(
            [_File(str(path), 0, n, n) for path, n in zip(files, records, strict=True)]
        )

    def __len__(self) -> int:
        return len(self._record)

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
        try:
            content = self._records[int(self._record[case])]
        except (RuntimeError, ValueError, IndexError) as cause:
            reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
            raise CacheDamaged(
                f"The prepared cases in {self._files[self._file[case]]} cannot be read ({reason}); "
                "delete that file, and they are prepared again."
            ) from cause
        return decode(content, int(self._view[case]), int(self.task_ids[case]), self._source)
