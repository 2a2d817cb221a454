"""Report files appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; renames it to `path` if the block succeeds.

    Makes the folder. If the block raises, `path` stays as it was and nothing is left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: matplotlib chooses the format by it.
    beside = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
