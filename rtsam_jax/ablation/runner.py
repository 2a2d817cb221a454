"""Trains the runs of a plan, each in a process of its own; one that fails stops no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from rtsam_jax.ablation.places import Place
from rtsam_jax.ablation.plan import Run
from rtsam_jax.data.file_lock import take_lock
from rtsam_jax.data.json_file import write_json
from rtsam_jax.data.prepare import Progress
from rtsam_jax.errors import OutputExists

_CHILD = "rtsam_jax.ablation.child"
_POLL_S = 0.2
_SAVING_S = 60  # in which the runs of a command that was killed have saved and ended
_SAVED = 75  # a run's exit status after SIGTERM, once it is saved
_TAIL = 20_000  # bytes of a log that are looked through for the reason of a failure
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(Exception):
    """A signal ended it; the runs under way are saved, and the same command goes on."""

    def __init__(self, asked: int):
        self.asked = signal.Signals(asked)
        super().__init__(f"{self.asked.name}: stopped, and the runs under way are saved")


@dataclass(frozen=True)
class Failed:
    """A run that did not end well, and why."""

    run: Run
    reason: str


@dataclass
class _Live:
    """A run under way."""

    run: Run
    place: Place
    process: subprocess.Popen[bytes]
    began: float
    resumed: bool
    log_from: int  # where the log of this start begins
    steps: int  # taken when last looked


@contextmanager
def only_one(out: Path) -> Iterator[int]:
    """Keeps other commands out of a folder, also while runs of a killed one still save.

    Yields:
        A file descriptor; processes that inherit it keep the folder until they end.

    Raises:
        OutputExists: another command keeps it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("a") as lock:
        deadline = time.monotonic() + _SAVING_S
        while not take_lock(lock):
            if time.monotonic() > deadline:
                raise OutputExists(
                    f"{out} is in use by another ablation; wait for its end, or give another "
                    "folder with --config.out=FOLDER."
                )
            time.sleep(_POLL_S)
        yield lock.fileno()


def steps_taken(run: Path) -> int:
    """The last step that a run has logged."""
    log = run / "metrics.jsonl"
    if not log.is_file():
        return 0
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        whole = [line for line in file.read().split(b"\n")[:-1] if line.endswith(b"}")]
    try:
        return int(json.loads(whole[-1])["step"]) if whole else 0
    except (ValueError, KeyError):  # cut at its beginning, or by a kill
        return 0


def train_runs(
    runs: Sequence[Run], places: Sequence[Place], steps: Mapping[str, int], lock: int
) -> list[Failed]:
    """Trains and scores runs, in their order, as many at a time as there are places.

    Args:
        steps: of each run, by name.
        lock: of `only_one`.

    Raises:
        Stopped: by a signal.
    """
    waiting, free, live = deque(runs), list(places), list[_Live]()
    failed: list[Failed] = []
    ended = 0
    left = sum(steps[run.name] - min(steps[run.name], steps_taken(run.folder)) for run in runs)
    with _signals() as asked, Progress(left, "trained", "steps") as progress:
        while live or (waiting and not asked):
            while waiting and free and not asked:
                live.append(_start(waiting.popleft(), free.pop(0), lock))
            for each in list(live):
                if asked:
                    each.process.send_signal(signal.SIGTERM)  # a second one changes nothing
                status = each.process.poll()
                taken = min(steps[each.run.name], steps_taken(each.run.folder))
                if status is not None and not asked:
                    taken = steps[each.run.name]  # nothing of it is left, even if it failed
                progress.add(max(0, taken - each.steps))
                each.steps = max(each.steps, taken)
                if status is None:
                    continue
                live.remove(each)
                free.append(each.place)
                if status == 0:
                    _write_done(each)
                elif not asked:
                    failed.append(Failed(each.run, _reason(each, status)))
                if not asked:
                    ended += 1
                    tqdm.write(f"[{ended}/{len(runs)}] {_said(each, failed)}", file=sys.stdout)
                    sys.stdout.flush()
            time.sleep(_POLL_S)
    if asked:
        raise Stopped(asked[0])
    return failed


def _start(run: Run, place: Place, lock: int) -> _Live:
    run.log.parent.mkdir(parents=True, exist_ok=True)
    taken = steps_taken(run.folder)
    with run.log.open("ab") as log:
        began = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", _CHILD, *run.arguments, f"--preempted-status={_SAVED}"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **place.environ},
            start_new_session=True,  # a terminal's Ctrl-C comes by us, once
            pass_fds=(lock,),
        )
    # Before it has started a thread; XLA makes as many as there are cores for it.
    with suppress(ProcessLookupError):  # it has ended already, which `poll` will tell
        os.sched_setaffinity(process.pid, place.cores)
    return _Live(run, place, process, time.monotonic(), taken > 0, began, taken)


def _write_done(each: _Live) -> None:
    took = time.monotonic() - each.began
    about = {"seconds": took, "resumed": each.resumed, "cores": len(each.place.cores)}
    write_json(each.run.done_file, about)


def _reason(each: _Live, status: int) -> str:
    """The error that a run printed, else how it ended."""
    with each.run.log.open("rb") as log:
        log.seek(max(each.log_from, each.run.log.stat().st_size - _TAIL))
        lines = log.read().decode(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error[")]
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
    return errors[-1] if errors else f"ended {how}; see {each.run.log}"


def _said(each: _Live, failed: Sequence[Failed]) -> str:
    if failed and failed[-1].run is each.run:
        return f"{each.run.name} failed: {failed[-1].reason}"
    return f"{each.run.name} {timedelta(seconds=round(time.monotonic() - each.began))}"


@contextmanager
def _signals() -> Iterator[list[int]]:
    """What this process was asked by signals, in place of ending it."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    # nohup has a command outlive its terminal.
    ours = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in ours}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
