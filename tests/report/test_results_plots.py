"""Plots of an evaluation: what is drawn is what was measured, and no case falls off an axis."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from rtsam_jax.report import canvas
from rtsam_jax.report.results_plots import (
    draw_bland_altman,
    draw_boxes,
    draw_strata,
    draw_volumes,
)
from tests.made_up import made_up

VOLUMES = [(2.0, 3.0), (20.0, 10.0), (0.0, 0.5), (4.0, 0.0), (0.3, 0.3)]  # truth, prediction
CASES = [
    made_up(
        f"c{i}",
        0.2 * i,
        task=("orn", "ce")[i % 2],
        volume_truth_ml=truth,
        volume_pred_ml=prediction,
        hd95_mm=math.inf if not truth * prediction else 2.0,
    )
    for i, (truth, prediction) in enumerate(VOLUMES)
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collects the figures instead of writing them."""
    kept: list[Figure] = []
    monkeypatch.setattr(canvas, "save", lambda figure, out: kept.append(figure))
    return kept


def points(axis) -> set[tuple[float, float]]:
    offsets = np.concatenate([marks.get_offsets() for marks in axis.collections])
    low, high = axis.get_xlim()
    assert ((low <= offsets[:, 0]) & (offsets[:, 0] <= high)).all()
    low, high = axis.get_ylim()
    assert ((low <= offsets[:, 1]) & (offsets[:, 1] <= high)).all()
    return {(round(float(x), 6), round(float(y), 6)) for x, y in offsets}


def test_every_case_is_a_mark_empty_ones_too(drawn: list[Figure]) -> None:
    draw_volumes(CASES, Path("unused"))
    dice, volumes = drawn[0].axes
    assert points(dice) == {(c.volume_truth_ml, round(c.dice, 6)) for c in CASES}
    assert points(volumes) == set(VOLUMES)
    draw_volumes(CASES[:2], Path("unused"))  # none empty: a plain logarithm
    assert drawn[1].axes[1].get_xscale() == "log" and points(drawn[1].axes[1]) == set(VOLUMES[:2])
    draw_volumes([made_up("a", volume_truth_ml=0.0, volume_pred_ml=0.0)], Path("unused"))
    assert points(drawn[2].axes[1]) == {(0.0, 0.0)}


def test_bland_altman_draws_bias_and_limits(drawn: list[Figure]) -> None:
    draw_bland_altman(CASES, Path("unused"))
    [axis] = drawn[0].axes
    differences = np.array([prediction - truth for truth, prediction in VOLUMES])
    expected = {(round((p + t) / 2, 6), round(p - t, 6)) for t, p in VOLUMES}
    assert points(axis) == expected
    heights = sorted(line.get_ydata()[0] for line in axis.lines)
    bias, spread = differences.mean(), 1.96 * differences.std(ddof=1)
    assert heights == pytest.approx([bias - spread, bias, bias + spread])
    assert {text.get_text() for text in axis.texts} == {
        f"bias: {bias:+.2f} mL",
        f"bias + 1.96 SD: {bias + spread:+.2f} mL",
        f"bias - 1.96 SD: {bias - spread:+.2f} mL",
    }
    draw_bland_altman(CASES[:1], Path("unused"))  # no spread of one case
    assert [line.get_ydata()[0] for line in drawn[1].axes[0].lines] == [1.0]


def test_boxes_stand_by_task_and_method(drawn: list[Figure]) -> None:
    other = [made_up(c.case, 0.9, task=c.task) for c in CASES]
    draw_boxes({"model": CASES, "ROI": other}, Path("unused"))
    dice, hd95 = drawn[0].axes[0], drawn[0].axes[4]
    assert len(dice.patches) == 4
    assert [t.get_text() for t in dice.get_xticklabels()] == ["orn", "ce"]
    means = sorted(line.get_ydata()[0] for line in dice.lines if line.get_marker() == "D")
    assert means == pytest.approx(sorted([0.4, 0.4, 0.9, 0.9]))
    assert hd95.get_ylim()[1] > 100  # a miss at its diagonal is in view


def test_sizes_show_mean_and_interval(drawn: list[Figure]) -> None:
    cases = [made_up(str(i), value, volume_truth_ml=3.0) for i, value in enumerate((0.2, 0.4))]
    cases.append(made_up("one", 0.7, volume_truth_ml=0.1))
    draw_strata({"model": cases}, Path("unused"))
    [axis] = drawn[0].axes
    labels = [t.get_text() for t in axis.get_xticklabels()]
    assert labels == ["below 1 mL\nn = 1", "1 to 5 mL\nn = 2"]
    means = [line.get_ydata()[0] for line in axis.lines if line.get_marker() not in ("None", "")]
    assert means == pytest.approx([0.7, 0.3])
    [interval] = [
        line.get_ydata()
        for line in axis.lines
        if line.get_marker() == "None" and not math.isnan(line.get_ydata()[0])
    ]
    assert list(interval) == pytest.approx([0.2, 0.4])
