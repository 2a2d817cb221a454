"""`rtsam_jax.train` for a command that starts several: it ends, saved, when that command does.

Standard input is a pipe from there, which the system closes however the other process ends.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def _end_with_the_pipe() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_pipe, daemon=True).start()
    runpy.run_module("rtsam_jax.train", run_name="__main__", alter_sys=True)
