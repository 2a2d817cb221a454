"""What the bench measured, as tables: the same for terminal and Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rtsam_jax.benchmark.cases import Result
from rtsam_jax.benchmark.input import InputTiming
from rtsam_jax.benchmark.profile import Share
from rtsam_jax.benchmark.scale import ScaleTiming
from rtsam_jax.benchmark.sweeps import TITLES, Sweep
from rtsam_jax.report.tables import Cell, Table


def time_table(results: Sequence[Result]) -> Table:
    """One row per case and side: warm-up apart, then the rounds."""
    header = (
        "Case", "Batch", "Side", "Compile (s)", "First (s)", "Cold (s)", "Median (ms)", "Min (ms)",
        "Max (ms)", "CPU (ms)",
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        for t in result.timings:
            compiled = "in first" if t.compile_s is None else f"{t.compile_s:.1f}"
            of_interest = t.median_s, min(t.seconds), max(t.seconds), t.median_cpu_s
            milliseconds = (f"{1e3 * s:.1f}" for s in of_interest)
            warm_up = compiled, f"{t.first_s:.2f}", f"{t.cold_s:.1f}"
            rows.append((result.case, result.batch, t.side, *warm_up, *milliseconds))
    return Table(header, tuple(rows))


def ratio_table(results: Sequence[Result]) -> Table:
    """One row per case and rival: how many times as long the rival takes."""
    header = (
        "Case", "Batch", "Rival", "Rival / ours", "Smallest pair", "Largest pair", "CPU time",
        "Rounds",
    )  # fmt: skip
    return Table(
        header,
        tuple(
            (
                result.case,
                result.batch,
                r.side,
                *(f"{x:.1f}" for x in (r.of_medians, r.low, r.high, r.of_cpu_medians)),
                len(result.timings[0].seconds),
            )
            for result in results
            for r in result.ratios
        ),
    )


def work_table(results: Sequence[Result], rate: float | None) -> Table:
    """One row per case and side: operations, how near to the machine's rate, and memory.

    Args:
        rate: of `matrix_rate`, FLOP/s; None where it was not measured.
    """
    header = (
        "Case", "Batch", "Side", "GFLOP by hand", "GFLOP by XLA", "GFLOP/s", "Of matrix rate",
        "Peak RSS (GB)", "XLA temp (GB)", "Peak device (GB)", "Graph breaks",
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        for t in result.timings:
            speed = t.hand_flop and t.hand_flop / t.median_s
            reached = f"{speed / rate:.0%}" if speed and rate else None
            work = giga(t.hand_flop, 1), giga(t.xla_flop, 1), giga(speed, 1), reached
            memory = giga(t.peak_rss, 2), giga(t.temp_bytes, 3), giga(t.peak_device, 2)
            rows.append((result.case, result.batch, t.side, *work, *memory, t.graph_breaks))
    return Table(header, tuple(rows))


def sweep_table(sweep: Sweep) -> Table:
    """One row per value and case: every side's median, its peak memory, and the ratios."""
    results = [(at, result) for at, point in sweep.points for result in point]
    sides = list(dict.fromkeys(t.side for _, result in results for t in result.timings))
    title = TITLES[sweep.of]
    header = [title[0].upper() + title[1:], "Case", "Batch"]
    header += [f"{side} (ms)" for side in sides] + [f"{side} / ours" for side in sides[1:]]
    header += [f"{side} RSS (GB)" for side in sides]
    rows: list[tuple[Cell, ...]] = []
    for at, result in results:
        timings = {t.side: t for t in result.timings}  # a rival may lack some of the points
        times = (f"{1e3 * timings[s].median_s:.1f}" if s in timings else None for s in sides)
        by_rival = {r.side: f"{r.of_medians:.1f}" for r in result.ratios}
        memory = (giga(timings[s].peak_rss, 2) if s in timings else None for s in sides)
        cells = at, result.case, result.batch, *times, *map(by_rival.get, sides[1:]), *memory
        rows.append(cells)
    return Table(tuple(header), tuple(rows))


def profile_table(shares: Sequence[Share]) -> Table:
    """One row per kind of operation and its place in the package."""
    header = "Operation", "Source", "ms per run", "Share"
    rows = ((s.kind, s.source or None, f"{s.ms:.2f}", f"{s.share:.1%}") for s in shares)
    return Table(header, tuple(rows))


def input_table(timing: InputTiming) -> Table:
    """One row: the input pipeline alone, and in front of a training step."""
    header = (
        "Batch", "Threads", "Record (MB)", "Reading (ms/volume)", "Step alone (ms)",
        "Step fed (ms)", "Waiting for input",
    )  # fmt: skip
    milliseconds = (f"{ms:.0f}" for ms in (timing.read_ms, timing.step_ms, timing.loop_ms))
    sizes = timing.batch, timing.threads, f"{timing.record_mb:.1f}"
    return Table(header, ((*sizes, *milliseconds, f"{timing.waited:.2%}"),))


def scale_table(timing: ScaleTiming) -> Table:
    """One row: start-up and memory of a process on the simulated index."""
    header = (
        "Volumes", "Masks", "Nominal (GB)", "dataset.json (s)", "Index (s)", "First batch (s)",
        "Volumes/s", "RSS, imports (MB)", "RSS, first batch (MB)", "Peak RSS (MB)",
    )  # fmt: skip
    values = dataclasses.astuple(timing)
    digits = (0, 0, 1, 1, 1, 2, 0, 0, 0, 0)
    cells = (f"{value:.{places}f}" for value, places in zip(values, digits, strict=True))
    return Table(header, (tuple(cells),))


def describe_rate(results: Sequence[Result], rate: float, dtype: str) -> str:
    """How near the encoder comes to what a plain matrix product reaches."""
    text = f"A plain {dtype} product of the size of its MLP runs at {giga(rate, 0)} GFLOP/s here"
    ours = next((r.timings[0] for r in results if r.case == "encoder"), None)
    if ours is None or ours.hand_flop is None:
        return text + "."
    reached = ours.hand_flop / ours.median_s / rate
    return f"{text}; the encoder of {ours.side} reaches {reached:.0%} of that."


def giga(value: float | None, digits: int) -> str | None:
    """The value in units of 1e9; None stays None."""
    return None if value is None else f"{value / 1e9:.{digits}f}"
