"""Measures of a curve of Dice over clicks, by closed forms and laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.metrics.interactive import (
    Interaction,
    PlacedClick,
    auc,
    cvpr_area,
    noc,
    nof,
    reached,
    summarise_interactions,
)
from rtsam_jax.metrics.summary import ALL_TASKS

curves = st.lists(st.floats(0, 1), min_size=2, max_size=12)


@pytest.mark.parametrize(
    ("curve", "clicks", "success"),
    [
        ([0.9, 0.2, 0.3], 0, True),  # no click was needed
        ([0.1, 0.8, 0.3], 1, True),  # reached, though lost again
        ([0.1, 0.2, 0.8], 2, True),  # by the last click, which is no failure
        ([0.1, 0.2, 0.79], 2, False),
    ],
)
def test_the_first_click_that_reaches_the_target(
    curve: list[float], clicks: int, success: bool
) -> None:
    assert noc(curve, 0.8) == clicks
    assert reached(curve, 0.8) is success
    assert nof([curve, [1.0, 1.0], [0.0, 0.0]], 0.8) == (1 if success else 2)


@settings(max_examples=30, deadline=None)
@given(curves, st.floats(0.1, 0.9), st.floats(0, 0.1))
def test_a_higher_target_takes_no_fewer_clicks(
    curve: list[float], target: float, more: float
) -> None:
    assert 0 <= noc(curve, target) <= noc(curve, target + more) <= len(curve) - 1
    assert nof([curve], target) <= nof([curve], target + more)
    if noc(curve, target) < len(curve) - 1:
        assert reached(curve, target)


def test_areas_of_straight_lines() -> None:
    ramp = [k / 10 for k in range(11)]
    assert auc(ramp) == pytest.approx(0.5)
    assert cvpr_area(ramp) == pytest.approx((0.1 + 0.5) / 2 * 4)
    assert auc([0.0, 1.0]) == 0.5
    assert cvpr_area([0, 1, 1, 1, 1, 1]) == 4.0  # the most there is


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=6, max_size=12), st.floats(0, 1))
def test_the_challenge_looks_at_its_five_clicks_alone(curve: list[float], other: float) -> None:
    changed = [other, *curve[1:6], *[other] * 3]
    assert cvpr_area(changed) == cvpr_area(curve)
    assert 4 * min(curve[1:6]) - 1e-9 <= cvpr_area(curve) <= 4 * max(curve[1:6]) + 1e-9
    assert min(curve) - 1e-9 <= auc(curve) <= max(curve) + 1e-9


def test_too_few_clicks_have_no_area() -> None:
    with pytest.raises(ValueError, match="without clicks"):
        auc([0.5])
    with pytest.raises(ValueError, match="five clicks, not 4"):
        cvpr_area([0.5] * 5)


def interaction(
    case: str, dice: list[float], *, patient: str = "", user: str = "centre", task: str = "orn"
) -> Interaction:
    nsd = tuple(math.nan if case == "empty" else x / 2 for x in dice)
    click = PlacedClick(1, (0.0, 0.0, 0.0), True)
    return Interaction(case, patient or case, task, user, tuple(dice), nsd, (click,), 0.0)


def test_a_summary_of_users_and_tasks() -> None:
    found = summarise_interactions(
        [
            interaction("a", [0.0, 0.5, 1.0]),
            interaction("empty", [0.0, 0.0, 0.0], task="ce"),
            interaction("b", [0.2, 0.7, 0.8]),
            interaction("b", [0.2, 0.9, 0.9], user="ideal"),
        ]
    )
    assert [(of.task, of.user, of.n) for of in found] == [
        *(("orn", "centre", 2), ("orn", "ideal", 1), ("ce", "centre", 1)),
        *((ALL_TASKS, "centre", 3), (ALL_TASKS, "ideal", 1)),
    ]
    orn, _, empty, every, _ = found
    assert [point.mean for point in orn.dice] == pytest.approx([0.1, 0.6, 0.9])
    assert orn.measures["auc"] == (2, pytest.approx((0.55, 0.5, 0.6), abs=1e-9))
    assert orn.measures["noc_80"][1].mean == 2 and orn.measures["failed_80"][1].mean == 0
    assert orn.measures["failed_90"][1].mean == 0.5
    n, nsd = empty.measures["nsd_2mm_last"]
    assert n == 0 and math.isnan(nsd.mean)
    assert every.measures["nsd_2mm_last"][0] == 2  # what has no surface is left out, and counted
    assert every.measures["failed_80"] == (3, pytest.approx((1 / 3, 0, 1)))
    assert not any(name.startswith("cvpr") for name in orn.measures)  # two clicks are too few


def test_intervals_are_by_patient() -> None:
    dice = np.random.default_rng(0).random((6, 6)).tolist()
    apart = summarise_interactions([interaction(f"c{i}", dice[i]) for i in range(6)])[0]
    pairs = [interaction(f"c{i}", dice[i], patient=f"p{i // 2}") for i in range(6)]
    together = summarise_interactions(pairs)[0]
    assert apart.measures["auc"][1].mean == together.measures["auc"][1].mean
    assert apart.measures["auc"][1].low != together.measures["auc"][1].low
    assert {"cvpr_dice_area", "cvpr_nsd_2mm_final"} <= apart.measures.keys()
