"""SIGTERM and SIGINT: a run ends after the step it is in, saved, in all its processes at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import numpy as np
from jax.experimental.multihost_utils import process_allgather

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class RunStopped(Exception):
    """A run was asked to stop and has saved its state; the same command resumes it.

    Attributes:
        asked: the signal.
        step: the last one taken; before the first there is no state to save.
    """

    def __init__(self, asked: int, step: int):
        self.asked, self.step = signal.Signals(asked), step
        where = f"and saved at step {step}" if step else "before the first step"
        super().__init__(f"{self.asked.name}: stopped {where}")


class StopRequest:
    """The signal that this process got first, 0 if none."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = self.asked or number

    def agree(self, step: int) -> None:
        """Raises `RunStopped` in all processes if one of them was asked; all must call it."""
        if asked := int(np.max(process_allgather(np.int32(self.asked)))):
            raise RunStopped(asked, step)


def leave_on_sigterm(status: int) -> None:
    """From now on SIGTERM ends the process with this status; `stop_request` goes first.

    There is nothing to save outside the steps.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        # Not print(), which this may have interrupted.
        os.write(sys.stderr.fileno(), b"SIGTERM: stopped outside the steps; nothing is lost\n")
        sys.exit(status)

    signal.signal(signal.SIGTERM, leave)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Takes the signals while it is open, in the main thread; a second one changes nothing.

    A signal that nobody has asked about at its end does what it would have done. After
    `RunStopped` all are ignored: the process is about to end, and its exit status is decided.
    """
    request = StopRequest()
    before = {number: signal.signal(number, request) for number in SIGNALS}

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield request
    except RunStopped:
        raise
    except BaseException:
        give_back()
        raise
    give_back()
    if request.asked:
        signal.raise_signal(request.asked)
