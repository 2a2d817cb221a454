"""What the bench measured, as one picture: bars per case and side, curves per sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from rtsam_jax.benchmark.cases import Result
from rtsam_jax.benchmark.ours import SIDE
from rtsam_jax.benchmark.record import Record
from rtsam_jax.benchmark.sweeps import TITLES, Sweep
from rtsam_jax.report.canvas import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, save

_COLOURS = {
    SIDE: BLUE,
    "medim": GREY,
    "medim-compile": ORANGE,
    "medim-packed": PURPLE,
    "monai": GREEN,
}
_LINES = {"encoder": "-", "step": "--"}
_BAR, _GAP = 0.24, 0.35  # inches per bar, and between cases


def draw(record: Record, path: Path) -> bool:
    """Writes the picture, panels for what was measured only; False where there is none to draw."""
    bars = sum(len(result.timings) for result in record.results)
    height = _BAR * bars + _GAP * len(record.results) + 1.2 if bars else 0.0
    sweep_rows = -(-len(record.sweeps) // 2)
    rows = [height] * bool(bars) + [3.2] * sweep_rows
    if not rows:
        return False
    figure = Figure(figsize=(10, sum(rows)), layout="constrained")
    grid = figure.add_gridspec(len(rows), 2, height_ratios=rows)
    if bars:
        _draw_cases(figure.add_subplot(grid[0, :]), record.results, record.matrix_rate)
    for number, sweep in enumerate(record.sweeps):
        row, column = divmod(number, 2)
        alone = number == len(record.sweeps) - 1 and column == 0
        place = grid[row + bool(bars), :] if alone else grid[row + bool(bars), column]
        _draw_sweep(figure.add_subplot(place), sweep)
    save(figure, path)
    return True


def _draw_cases(axes: Any, results: list[Result], rate: float | None) -> None:
    """Bars from the top, with the range over rounds; beside a rival's, its ratio to ours."""
    at, ticks = 0.0, []
    for result in results:
        ratios = {r.side: r for r in result.ratios}
        first = at
        for t in result.timings:
            low, median, high = (1e3 * s for s in (min(t.seconds), t.median_s, max(t.seconds)))
            spread = [[median - low], [high - median]]
            style = {"color": _COLOURS[t.side], "height": 0.9 * _BAR}
            axes.barh(at, median, xerr=spread, error_kw={"lw": 0.8}, **style)
            beside = f"{median:,.0f} ms" if median >= 10 else f"{median:.1f} ms"
            if t.side in ratios:
                beside += f", {ratios[t.side].of_medians:.1f} x ours"
            axes.annotate(
                f"{t.side}: {beside}", (high, at), (4, 0), textcoords="offset points", va="center",
                fontsize=7,
            )  # fmt: skip
            at += _BAR
        ours = result.timings[0]
        if result.case == "encoder" and rate and ours.hand_flop:
            bound = 1e3 * ours.hand_flop / rate
            axes.vlines(bound, first - _BAR / 2, at - _BAR / 2, BLACK, "dashed", lw=1)
            axes.annotate(
                "bound: matrix rate", (bound, first - _BAR / 2), (0, 2), fontsize=7, ha="center",
                textcoords="offset points",
            )  # fmt: skip
        ticks.append(((first + at - _BAR) / 2, f"{result.case}\nbatch {result.batch}"))
        at += _GAP
    axes.set_yticks(*zip(*ticks, strict=True))
    axes.set_ylim(at - _GAP, -_BAR - 0.1)
    axes.set_xscale("log")
    left, right = axes.get_xlim()
    axes.set_xlim(left, right * (right / left) ** 0.25)  # room for the words
    _plain(axes.xaxis)
    axes.set_xlabel("ms per run (median; lines: smallest to largest)")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_sweep(axes: Any, sweep: Sweep) -> None:
    """A curve per case and side; the values stand at equal distances."""
    curves: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for at, (_, results) in enumerate(sweep.points):
        for result in results:
            for t in result.timings:
                curves.setdefault((result.case, t.side), []).append((at, 1e3 * t.median_s))
    for (case, side), points in curves.items():
        style = {"color": _COLOURS[side], "linestyle": _LINES[case], "marker": "o"}
        axes.plot(*zip(*points, strict=True), ms=3, lw=1.2, label=f"{case}, {side}", **style)
    axes.set_xticks(range(len(sweep.points)), [label for label, _ in sweep.points])
    times = [ms for points in curves.values() for _, ms in points]
    if max(times) > 5 * min(times):
        axes.set_yscale("log")
    else:  # without a decade to mark
        axes.set_ylim(0, 1.1 * max(times))
    _plain(axes.yaxis)
    axes.set_xlabel(TITLES[sweep.of])
    axes.set_ylabel("ms per run")
    axes.legend(fontsize=6, frameon=False)
    axes.grid(axis="y", lw=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _plain(axis: Any) -> None:
    """Decades as numbers: 1,000 and not a power of ten."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())
