"""Training curves out of a run's metrics log."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rtsam_jax.errors import MissingFile, UnreadableFile
from rtsam_jax.report import canvas

CURVES = "figures/curves.png"  # in a run's folder
SERIES = (
    canvas.BLACK,
    canvas.VERMILION,
    canvas.BLUE,
    canvas.GREEN,
    canvas.PURPLE,
    canvas.ORANGE,
    canvas.SKY,
    canvas.GREY,
)
# Logged names as a reader wants them; any other name is shown as it is logged.
LABELS = {
    "loss": {
        "loss": "total",
        "dice": "Dice, ROI",
        "focal_tversky": "focal Tversky, ROI",
        "dice_ce": "Dice-CE, whole crop",
        "iou_head": "IoU head",
    },
    "dice": {"dice": "text and box, no clicks", "dice_clicked": "after the last clicks"},
}
LOSS_PARTS = ("dice_ce", "focal_tversky", "iou_head")  # losses that are not called so


def read_curves(metrics_jsonl: Path) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Every numeric field by name: (steps, values), steps ascending, float64.

    Where a step stands twice (a run that was resumed) its last line counts. An unfinished last line
    (a run that was killed) is ignored.

    Raises:
      MissingFile: No such file.
      UnreadableFile: A line that is not a JSON object with a `step`.
    """
    if not metrics_jsonl.is_file():
        raise MissingFile(f"There is no {metrics_jsonl}; train first, it is written as steps pass.")
    text = metrics_jsonl.read_text(encoding="utf-8")
    lines = text.split("\n")
    series: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # no newline after it
                continue
            raise UnreadableFile(
                f"Line {number} of {metrics_jsonl} is no JSON object with a 'step'; delete it."
            ) from error
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                series.setdefault(name, {})[step] = float(value)
    return {
        name: (np.array(sorted(points)), np.array([points[s] for s in sorted(points)]))
        for name, points in series.items()
    }


def running_mean(values: NDArray[Any], window: int) -> NDArray[np.float64]:
    """Centred mean over `window` neighbours, fewer at the ends; not finite values are left out."""
    good = np.isfinite(values)
    kernel = np.ones(min(window, 2 * len(values) - 1) // 2 * 2 + 1)
    half = len(kernel) // 2
    total = np.convolve(np.where(good, values, 0.0), kernel)[half : half + len(values)]
    count = np.convolve(good.astype(float), kernel)[half : half + len(values)]
    return np.divide(total, count, out=np.full(len(values), math.nan), where=count > 0.5)


def _panel_of(name: str) -> str | None:
    """Which panel of the curves a logged name belongs to, None for neither."""
    lowered = name.lower()
    if "loss" in lowered or lowered in LOSS_PARTS:
        return "loss"
    if "dice" in lowered:
        return "dice"
    return "lr" if lowered in ("lr", "learning_rate") else None


def plot_curves(metrics_jsonl: Path, out: Path) -> None:
    """Draws loss (and its parts), Dice and learning rate against the step.

    A name with `loss` in it (or one of `LOSS_PARTS`) is a loss, any other with `dice` a Dice, `lr`
    or `learning_rate` the learning rate; further names are not drawn. Thin lines are the logged
    values, thick ones their running mean.

    Args:
      metrics_jsonl: One JSON object per line with `step` and numbers.
      out: PNG.

    Raises:
      MissingFile, UnreadableFile: See `read_curves`; also where nothing in it can be drawn.
    """
    panels: dict[str, dict[str, tuple[NDArray[Any], NDArray[Any]]]] = {}
    for name, points in read_curves(metrics_jsonl).items():
        panel = _panel_of(name)
        if panel:
            panels.setdefault(panel, {})[name] = points
    if not panels:
        raise UnreadableFile(f"{metrics_jsonl} holds no loss, Dice or learning rate to draw.")
    longest = max(len(steps) for curves in panels.values() for steps, _ in curves.values())
    window = max(1, longest // 25) // 2 * 2 + 1
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, key in zip(axes, ("loss", "dice", "lr"), strict=True):
        _draw_curves(axis, key, panels.get(key, {}), window)
    if window > 1:
        figure.supxlabel(
            f"Thin: every logged step. Thick: running mean over {window} logged steps.",
            fontsize=8,
            color="#555555",
        )
    canvas.save(figure, out)


def _draw_curves(
    axis: Axes, key: str, curves: Mapping[str, tuple[NDArray[Any], NDArray[Any]]], window: int
) -> None:
    title = {"loss": "Loss", "dice": "Dice (training)", "lr": "Learning rate"}[key]
    axis.set_xlabel("Optimiser step")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, color="#E6E6E6", linewidth=0.7)
    axis.set_axisbelow(True)
    unit = 1.0
    if key == "lr" and curves:
        # The power of ten goes into the title: matplotlib's own would push the title up.
        largest = max(float(np.nanmax(values)) for _, values in curves.values())
        exponent = math.floor(math.log10(largest)) if largest > 0 else 0
        unit = 10.0**exponent
        title += f" ($10^{{{exponent}}}$)"
    axis.set_title(title, loc="left", fontsize=11)
    for index, (name, (steps, values)) in enumerate(curves.items()):
        colour = SERIES[index % len(SERIES)]
        if key == "lr":
            axis.step(steps, values / unit, color=colour, linewidth=1.6, where="post")
            continue
        if window > 1:
            axis.plot(steps, values, color=colour, alpha=0.22, linewidth=0.6, zorder=2)
        short = name.removeprefix("loss_") if key == "loss" else name
        axis.plot(
            steps,
            running_mean(values, window),
            color=colour,
            linewidth=1.8,
            zorder=3,  # above every thin line
            label=LABELS[key].get(short, short.replace("_", " ")),
            marker="o" if len(steps) == 1 else None,
        )
    if not curves:
        axis.text(0.5, 0.5, "not logged", ha="center", va="center", transform=axis.transAxes)
    elif key == "dice":
        axis.set_ylim(0, 1)
    else:
        axis.set_ylim(bottom=0)  # no loss here is negative
    if key != "lr" and curves:
        axis.legend(frameon=False, fontsize=8, loc="best")
