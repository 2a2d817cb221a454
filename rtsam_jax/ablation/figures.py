"""Pictures of the studies: Dice and HD95 with their intervals, and every run as a dot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from rtsam_jax.ablation.results import Result
from rtsam_jax.ablation.variants import Study
from rtsam_jax.metrics.summary import ALL_TASKS
from rtsam_jax.report import canvas
from rtsam_jax.report.tables import TITLES

_PANELS = ("dice", "hd95_mm")
_FAR = 10  # times the median mean: such a row would squeeze the others together
_COLOURS = (canvas.GREY, canvas.BLUE, canvas.GREEN, canvas.ORANGE)  # of variants, by task
_CAPTION = "Mean over cases and runs, 95 % interval by patient; dots: runs."


def draw_study(study: Study, results: Sequence[Result], heading: str, out: Path) -> bool:
    """Writes a study's picture; returns False where none of its runs is there.

    Args:
        results: of this study.
        heading: dataset and its kind.
        out: PNG.
    """
    tasks = list(dict.fromkeys(result.task for result in results))
    shown = [r for r in results if study.draws == "tasks" or r.task == ALL_TASKS]
    if not shown:
        return False
    height = 1.6 + 0.42 * len(shown) if study.draws == "rows" else 3.8
    figure = Figure(figsize=(10, height), layout="constrained")
    panels = figure.subplots(1, 2, sharey=study.draws == "rows")
    for axis, measure in zip(panels, _PANELS, strict=True):
        if study.draws == "rows":
            _draw_rows(axis, shown, measure)
        elif study.draws == "curve":
            _draw_curve(axis, study, shown, measure)
        else:
            _draw_tasks(axis, study, shown, measure, tasks)
        if _far_apart(shown, measure):
            _logarithmic(axis, "x" if study.draws == "rows" else "y")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, axis="x" if study.draws == "rows" else "y", color="#E6E6E6", linewidth=0.7)
        axis.set_axisbelow(True)
    figure.suptitle(f"{study.title}: {heading}", fontsize=11, x=0.01, ha="left")
    figure.supxlabel(_CAPTION, fontsize=8, color="#555555")
    canvas.save(figure, out)
    return True


def _far_apart(results: Sequence[Result], measure: str) -> bool:
    """Whether a row has failed, all missed say, and lies far off the others in mm."""
    means = [result.estimates[measure].mean for result in results]
    known = [mean for mean in means if not np.isnan(mean)]
    return measure.endswith("_mm") and max(known, default=0.0) > _FAR * statistics.median(
        known or [0]
    )


def _logarithmic(axis: Axes, name: str) -> None:
    """From 1 mm on, as the plots of a run's measures are."""
    of = axis.xaxis if name == "x" else axis.yaxis
    getattr(axis, f"set_{name}scale")("symlog", linthresh=1.0)
    axis.autoscale_view()  # its margins are of the scale that was
    getattr(axis, f"set_{name}lim")(0, None)
    of.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _interval(result: Result, measure: str) -> tuple[float, float, float]:
    """Mean, and how far its interval reaches below and above; 0 where there is none."""
    of = result.estimates[measure]
    below, above = np.nan_to_num([of.mean - of.low, of.high - of.mean])
    return of.mean, max(0.0, float(below)), max(0.0, float(above))


def _draw_rows(axis: Axes, results: Sequence[Result], measure: str) -> None:
    """A mark per variant, the first on top."""
    for at, result in enumerate(results):
        mean, below, above = _interval(result, measure)
        axis.errorbar(
            mean, at, xerr=[[below], [above]], fmt="o", color=canvas.BLUE, capsize=3, zorder=3
        )
        dots = result.estimates[measure].of_runs
        axis.plot(dots, [at + 0.22] * len(dots), ".", color=canvas.GREY, markersize=5, zorder=2)
        text = f"{mean:.3f}" if measure == "dice" else f"{mean:.1f}"
        axis.annotate(text, (mean, at), (0, 5), textcoords="offset points", ha="center", fontsize=8)
    axis.set_yticks(range(len(results)), [result.variant.title for result in results])
    axis.set_ylim(len(results) - 0.4, -0.7)
    axis.set_xlabel(TITLES[measure])


def _draw_curve(axis: Axes, study: Study, results: Sequence[Result], measure: str) -> None:
    at = [float(result.variant.at or 0) for result in results]
    means, below, above = np.array([_interval(result, measure) for result in results]).T
    axis.fill_between(at, means - below, means + above, color=canvas.SKY, alpha=0.3, linewidth=0)
    axis.plot(at, means, "o-", color=canvas.BLUE)
    beside = 0.015 * (at[-1] - at[0])
    for x, result in zip(at, results, strict=True):
        dots = result.estimates[measure].of_runs
        axis.plot([x + beside] * len(dots), dots, ".", color=canvas.GREY, markersize=5)
    axis.set_xticks(at)
    axis.set_xlabel(study.axis)
    axis.set_ylabel(TITLES[measure])


def _draw_tasks(
    axis: Axes, study: Study, results: Sequence[Result], measure: str, tasks: Sequence[str]
) -> None:
    """Bars side by side for each task."""
    width = 0.8 / len(study.variants)
    for number, (variant, colour) in enumerate(zip(study.variants, _COLOURS, strict=False)):
        own = [result for result in results if result.variant.name == variant.name]
        if not own:
            continue
        offset = (number - (len(study.variants) - 1) / 2) * width
        at = [tasks.index(result.task) + offset for result in own]
        means, below, above = np.array([_interval(result, measure) for result in own]).T
        axis.bar(at, means, 0.92 * width, color=colour, label=variant.title)
        axis.errorbar(at, means, yerr=[below, above], fmt="none", color=canvas.BLACK, capsize=2)
        for x, result in zip(at, own, strict=True):
            dots = result.estimates[measure].of_runs
            axis.plot([x + 0.25 * width] * len(dots), dots, ".", color=canvas.BLACK, markersize=4)
    axis.set_xticks(range(len(tasks)), tasks)
    axis.set_ylabel(TITLES[measure])
    if measure == _PANELS[0]:
        axis.legend(frameon=False, fontsize=9, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))
