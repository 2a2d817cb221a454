"""Prepared cases as a sequence that training reads from, one record at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np

from rtsam_jax.data.cache import Entry
from rtsam_jax.data.neighbourhood import Neighbourhood, decode
from rtsam_jax.data.shards import ShardReader
from rtsam_jax.data.whole_file import PREPARED


class PreparedCases(Sequence[Neighbourhood]):
    """Neighbourhoods on disk; whatever the number of cases, memory holds those in use.

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
        self._reader = ShardReader(copies, PREPARED)

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
        content = self._reader.read(entry)
        return decode(content, view, int(self.task_ids[case]), self._source)

    @property
    def keys(self) -> list[tuple[str, int]]:
        """By case, the key of its scan's record and which of the labels in it is its own."""
        return [(entry.key, view) for entry, view in self._places]
