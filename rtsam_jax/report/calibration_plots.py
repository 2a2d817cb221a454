"""Whether confidence can be relied on, as pictures: reliability, and risk over coverage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rtsam_jax.metrics.ranking import RiskCoverage
from rtsam_jax.metrics.reliability import Reliability
from rtsam_jax.report import canvas

# In pairs: before and after, one risk and the other.
_COLOURS = (canvas.SKY, canvas.BLUE, canvas.ORANGE, canvas.VERMILION)


def draw_reliability(found: Mapping[str, Reliability], title: str, out: Path) -> None:
    """Frequency of foreground over its probability, and below how much of the weight is where.

    Args:
        found: by name, such as "before" and "after"; all with the same bins.
        title: dataset and its kind, split.
        out: PNG.
    """
    figure = Figure(figsize=(5.4, 5.8), layout="constrained")
    diagram, shares = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    diagram.plot([0, 1], [0, 1], color=canvas.BLACK, linewidth=1, linestyle="--")
    for number, (name, of) in enumerate(found.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        filled = of.share > 0
        label = f"{name}: ECE {of.ece:.3f}"
        points = of.probability[filled], of.frequency[filled]
        diagram.plot(*points, color=colour, marker="o", ms=4, lw=1.4, label=label)
        edges = np.linspace(0, 1, len(of.share) + 1)
        shares.stairs(of.share, edges, color=colour, linewidth=1.4)
    diagram.set_ylim(-0.03, 1.03)
    shares.set_yscale("log")
    shares.set_ylim(1e-4, 1.5)
    shares.set_yticks([1e-4, 1e-2, 1])
    _dress(diagram, "", "Share that is foreground")
    _dress(shares, "Probability of foreground", "Share of voxels")
    diagram.legend(frameon=False, fontsize=8, loc="upper left")
    diagram.set_title("Voxels of the high-dose region; dashed: calibrated", fontsize=9, loc="left")
    figure.suptitle(title, fontsize=10)
    canvas.save(figure, out)


def draw_risk_coverage(found: Mapping[str, RiskCoverage], title: str, out: Path) -> None:
    """What remains wrong among the cases of the highest quality, over how many these are.

    Args:
        found: by the name of the risk, such as "Dice < 0.5".
        title: dataset and its kind, split.
        out: PNG.
    """
    figure = Figure(figsize=(5.4, 4.0), layout="constrained")
    axis = figure.subplots()
    for number, (name, of) in enumerate(found.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        axis.plot(of.coverage, of.risk, color=colour, marker="o", ms=3, lw=1.6, label=name)
    axis.set_xlim(0, 1.02)
    axis.set_ylim(-0.03, 1.03)
    _dress(axis, "Share of cases taken, the highest quality first", "Mean among those taken")
    axis.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    canvas.save(figure, out)


def _dress(axis: Axes, x: str, y: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(True, color="#E6E6E6", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
