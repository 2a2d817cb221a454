"""Locks between commands: an open file, locked until it is closed."""

from __future__ import annotations

import fcntl
from typing import IO


def take_lock(file: IO[str]) -> bool:
    """Locks an open file; the end of the process gives the lock back too.

    Returns:
        False where another process has it.

    Raises:
        OSError: it cannot be locked, as on some network file systems.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
