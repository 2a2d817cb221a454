"""Sides in turn, one process: warm-up apart, then A B C A B C, with each side's peak memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Contender:
    """One side of a comparison, ready to run.

    Attributes:
        side: "rtsam_jax" or the rival's name.
        run: does the work once and waits for it to finish.
        compile_s: seconds of compilation before the first run; 0 where nothing is compiled, None
            where the first run compiles.
        hand_flop: floating point operations of one run, counted by hand (two per multiply-add).
        xla_flop: the same from XLA's cost analysis, which counts a loop's body once.
        temp_bytes: memory for intermediate results, from XLA's memory analysis.
        graph_breaks: how often `torch.compile` fell back to eager.
        device_peak: an accelerator's largest allocation in bytes; None where there is none.
        compiled: the program, for `benchmark.profile`.
    """

    side: str
    run: Callable[[], None]
    compile_s: float | None = 0.0
    hand_flop: float | None = None
    xla_flop: float | None = None
    temp_bytes: int | None = None
    graph_breaks: int | None = None
    device_peak: Callable[[], int | None] = lambda: None
    compiled: Any = None


@dataclass
class Timing:
    """What was measured of a contender; seconds and bytes."""

    side: str
    compile_s: float | None
    first_s: float
    hand_flop: float | None = None
    xla_flop: float | None = None
    temp_bytes: int | None = None
    graph_breaks: int | None = None
    seconds: list[float] = field(default_factory=list)
    # Of all threads together; on a machine that others use too, the steadier measure.
    cpu_seconds: list[float] = field(default_factory=list)
    peak_rss: int | None = None  # of the whole process while this side runs, all models loaded
    peak_device: int | None = None

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def median_cpu_s(self) -> float:
        return statistics.median(self.cpu_seconds)

    @property
    def cold_s(self) -> float:
        """From nothing compiled to the first result."""
        return (self.compile_s or 0.0) + self.first_s


@dataclass
class Ratio:
    """How many times as long a rival takes: of medians, and over pairs of the same round."""

    side: str
    of_medians: float
    low: float
    high: float
    of_cpu_medians: float


def time_in_turn(contenders: Sequence[Contender], rounds: int) -> list[Timing]:
    """Runs every contender once to warm up, then all of them in turn, `rounds` times."""
    timings = [warm_up(contender) for contender in contenders]
    take_turns(contenders, timings, rounds)
    return timings


def warm_up(contender: Contender) -> Timing:
    """Runs a contender for the first time."""
    first, _, _ = _timed(contender.run)
    return Timing(
        contender.side,
        contender.compile_s,
        first,
        contender.hand_flop,
        contender.xla_flop,
        contender.temp_bytes,
        contender.graph_breaks,
    )


def take_turns(contenders: Sequence[Contender], timings: Sequence[Timing], rounds: int) -> None:
    """Runs all contenders one after the other, `rounds` times; `timings` gets what each took."""
    for contender in contenders:
        contender.device_peak()  # what compiling and warming up took is none of the rounds'
    for _ in range(rounds):
        for contender, timing in zip(contenders, timings, strict=True):
            seconds, cpu_seconds, peak = _timed(contender.run)
            timing.seconds.append(seconds)
            timing.cpu_seconds.append(cpu_seconds)
            timing.peak_rss = _larger(timing.peak_rss, peak)
            timing.peak_device = _larger(timing.peak_device, contender.device_peak())


def ratio(ours: Timing, rival: Timing) -> Ratio:
    """Rival's time over ours."""
    pairs = [b / a for a, b in zip(ours.seconds, rival.seconds, strict=True)]
    return Ratio(
        rival.side,
        rival.median_s / ours.median_s,
        min(pairs),
        max(pairs),
        rival.median_cpu_s / ours.median_cpu_s,
    )


def _larger(a: int | None, b: int | None) -> int | None:
    return max((x for x in (a, b) if x is not None), default=None)


def _timed(run: Callable[[], None]) -> tuple[float, float, int | None]:
    """Elapsed seconds, CPU seconds of the process, and its peak memory in bytes."""
    resettable = _reset_peak()
    start, cpu_start = time.perf_counter(), time.process_time()
    run()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return seconds, cpu_seconds, _peak_rss() if resettable else None


def _reset_peak() -> bool:
    """Forgets the process's largest resident size so far; only Linux can."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _peak_rss() -> int | None:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
