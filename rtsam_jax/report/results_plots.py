"""What an evaluation measured, as pictures: volumes, agreement, spread, lesion sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullLocator

from rtsam_jax.metrics.case import MEASURES, CaseMetrics
from rtsam_jax.metrics.strata import size_strata
from rtsam_jax.metrics.summary import ALL_TASKS, summarise
from rtsam_jax.report import canvas
from rtsam_jax.report.tables import TITLES

COLOURS = (
    canvas.BLUE,
    canvas.VERMILION,
    canvas.GREEN,
    canvas.ORANGE,
    canvas.PURPLE,
    canvas.SKY,
    canvas.GREY,
    canvas.BLACK,
)
_MARKERS = "os^Dvp*X"  # so that tasks stay apart in grey print
_AGREEMENT = 1.96  # standard deviations: limits of agreement (Bland and Altman, Lancet 1986)
_LEAST_ML = 1e-3  # below, a volume axis is linear down to its zero


def draw_volumes(cases: Sequence[CaseMetrics], out: Path) -> None:
    """Per case: Dice against the truth's volume, and the predicted against the true volume."""
    figure = Figure(figsize=(8.5, 3.9), layout="constrained")
    against_dice, against_volume = figure.subplots(1, 2)
    for style, items in _by_task(cases):
        truth = [item.volume_truth_ml for item in items]
        against_dice.scatter(truth, [item.dice for item in items], **style)
        against_volume.scatter(truth, [item.volume_pred_ml for item in items], **style)
    volumes = [v for item in cases for v in (item.volume_truth_ml, item.volume_pred_ml)]
    limits = _volume_limits(volumes)
    _volume_scale(against_dice, "x", limits)
    _dress(against_dice, "Truth (mL)", "Dice", "Dice and lesion size")
    against_dice.set_ylim(-0.03, 1.03)
    for name in "xy":
        _volume_scale(against_volume, name, limits)
    against_volume.plot(limits, limits, color=canvas.GREY, linewidth=1, linestyle="--", zorder=1)
    _dress(against_volume, "Truth (mL)", "Prediction (mL)", "Volumes; dashed: equal")
    _legend_of_tasks(figure, cases)
    canvas.save(figure, out)


def draw_bland_altman(cases: Sequence[CaseMetrics], out: Path) -> None:
    """Difference of predicted and true volume against their mean, with bias and limits."""
    figure = Figure(figsize=(8.5, 3.9), layout="constrained")
    axis = figure.subplots()
    for style, items in _by_task(cases):
        axis.scatter(_middles(items), [item.volume_error_ml for item in items], **style)
    _volume_scale(axis, "x", _volume_limits(_middles(cases)))
    differences = np.array([item.volume_error_ml for item in cases])
    bias = float(differences.mean())
    lines = [("bias", bias, "-", "center")]
    if len(differences) > 1:
        spread = _AGREEMENT * float(differences.std(ddof=1))
        lines.append((f"bias + {_AGREEMENT} SD", bias + spread, "--", "bottom"))
        lines.append((f"bias - {_AGREEMENT} SD", bias - spread, "--", "top"))
    for name, height, dashes, side in lines:
        axis.axhline(height, color=canvas.BLACK, linewidth=1, linestyle=dashes, zorder=1)
        axis.annotate(
            f"{name}: {height:+.2f} mL", (1, height), (4, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va=side, fontsize=8, annotation_clip=False,
        )  # fmt: skip
    _dress(
        axis,
        "Mean of prediction and truth (mL)",
        "Prediction - truth (mL)",
        "Agreement of volumes (Bland-Altman)",
    )
    _legend_of_tasks(figure, cases)
    canvas.save(figure, out)


def draw_boxes(methods: Mapping[str, Sequence[CaseMetrics]], out: Path) -> None:
    """Boxes of the six measures, task by task, a colour per method."""
    tasks = list(dict.fromkeys(item.task for cases in methods.values() for item in cases))
    figure = Figure(figsize=(8.5, 5.8), layout="constrained")
    step = 1 / (len(methods) + 1)
    for axis, measure in zip(figure.subplots(2, 3).flat, MEASURES, strict=True):
        for number, cases in enumerate(methods.values()):
            values = [
                [v for v in _values(cases, task, measure) if not math.isnan(v)] for task in tasks
            ]
            places = [at + (number + 1) * step - 0.5 for at in range(len(tasks))]
            _draw_boxes(axis, values, places, 0.8 * step, COLOURS[number % len(COLOURS)])
        axis.set_xticks(range(len(tasks)), tasks)
        axis.set_xlim(-0.5, len(tasks) - 0.5)
        _dress(axis, "", "", TITLES[measure])
        if not measure.endswith("_mm"):
            axis.set_ylim(-0.03, 1.03)
        else:  # a miss lies far off
            axis.set_yscale("symlog", linthresh=1.0)
            axis.set_ylim(0, max(12.0, 1.2 * axis.get_ylim()[1]))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    handles = [
        Patch(facecolor=COLOURS[number % len(COLOURS)], alpha=0.6, label=name)
        for number, name in enumerate(methods)
    ]
    _legend(figure, handles)
    canvas.save(figure, out)


def draw_strata(methods: Mapping[str, Sequence[CaseMetrics]], out: Path) -> None:
    """Mean Dice with its 95 % interval by the truth's volume, a colour per method."""
    strata = {name: size_strata(list(cases)) for name, cases in methods.items()}
    labels = list(next(iter(strata.values())))
    counts = [len(items) for items in next(iter(strata.values())).values()]
    figure = Figure(figsize=(8.5, 3.9), layout="constrained")
    axis = figure.subplots()
    step = 0.7 / len(methods)
    handles = []
    for number, (name, groups) in enumerate(strata.items()):
        colour = COLOURS[number % len(COLOURS)]
        for at, label in enumerate(labels):
            if not groups.get(label):
                continue
            dice = summarise(groups[label])[ALL_TASKS].measures["dice"]
            place = at + (number - (len(methods) - 1) / 2) * step
            axis.plot([place] * 2, [dice.low, dice.high], color=colour, linewidth=2)
            axis.plot(place, dice.mean, color=colour, marker=_MARKERS[number % len(_MARKERS)])
        handles.append(
            Line2D([], [], color=colour, marker=_MARKERS[number % len(_MARKERS)], label=name)
        )
    axis.set_xticks(
        range(len(labels)), [f"{name}\nn = {n}" for name, n in zip(labels, counts, strict=True)]
    )
    axis.set_xlim(-0.5, len(labels) - 0.5)
    _dress(axis, "Truth", "Dice", "Dice by lesion size: mean and 95 % interval")
    axis.set_ylim(-0.03, 1.03)
    _legend(figure, handles)
    canvas.save(figure, out)


def _middles(cases: Sequence[CaseMetrics]) -> list[float]:
    return [(item.volume_pred_ml + item.volume_truth_ml) / 2 for item in cases]


def _values(cases: Sequence[CaseMetrics], task: str, measure: str) -> list[float]:
    return [item.value(measure) for item in cases if item.task == task]


def _draw_boxes(
    axis: Axes, values: list[list[float]], places: list[float], width: float, colour: str
) -> None:
    filled = [(v, place) for v, place in zip(values, places, strict=True) if v]
    if not filled:
        return
    drawn = axis.boxplot(
        [v for v, _ in filled],
        positions=[place for _, place in filled],
        widths=width,
        patch_artist=True,
        manage_ticks=False,
        showmeans=True,
        medianprops={"color": canvas.BLACK},
        meanprops={"marker": "D", "markersize": 3, "markerfacecolor": canvas.BLACK,
                   "markeredgecolor": canvas.BLACK},
        flierprops={"markersize": 3, "markeredgecolor": colour},
    )  # fmt: skip
    for box in drawn["boxes"]:
        box.set(facecolor=colour, alpha=0.6)


def _by_task(cases: Sequence[CaseMetrics]) -> list[tuple[dict[str, Any], list[CaseMetrics]]]:
    """How a task's cases are drawn, and the cases, task by task."""
    tasks: dict[str, list[CaseMetrics]] = {}
    for item in cases:
        tasks.setdefault(item.task, []).append(item)
    return [
        (
            {
                "color": COLOURS[number % len(COLOURS)],
                "marker": _MARKERS[number % len(_MARKERS)],
                "alpha": 0.75,
                "s": 28,
                "label": task,
            },
            items,
        )
        for number, (task, items) in enumerate(tasks.items())
    ]


def _volume_limits(volumes: Sequence[float]) -> tuple[float, float]:
    """From a decade at or below the smallest volume, or from 0, to beyond the largest, mL."""
    positive = [v for v in volumes if v > 0]
    if not positive:
        return 0.0, 1.0
    low = 10.0 ** math.floor(math.log10(max(min(positive), _LEAST_ML)))
    return (low if len(positive) == len(volumes) else 0.0), 1.4 * max(positive)


def _volume_scale(axis: Axes, name: str, limits: tuple[float, float]) -> None:
    """Logarithmic; where a volume is 0, linear below the smallest decade that is needed."""
    if limits[0] > 0:
        axis.set(**{f"{name}scale": "log", f"{name}lim": limits})
    else:
        least = 10.0 ** max(math.floor(math.log10(limits[1])) - 3, math.log10(_LEAST_ML))
        getattr(axis, f"set_{name}scale")("symlog", linthresh=least, linscale=0.4)
        axis.set(**{f"{name}lim": (-0.2 * least, limits[1])})
    of = axis.xaxis if name == "x" else axis.yaxis
    of.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    of.set_minor_locator(NullLocator())


def _dress(axis: Axes, across: str, up: str, title: str) -> None:
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    axis.set_title(title, loc="left", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, color="#E6E6E6", linewidth=0.7)
    axis.set_axisbelow(True)


def _legend_of_tasks(figure: Figure, cases: Sequence[CaseMetrics]) -> None:
    handles = [
        Line2D([], [], linestyle="", color=s["color"], marker=s["marker"], label=s["label"])
        for s, _ in _by_task(cases)
    ]
    if len(handles) > 1:
        _legend(figure, handles)


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    if len(handles) > 1:
        columns = min(len(handles), 4)
        figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
        )
