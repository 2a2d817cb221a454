"""Aggregation that cannot hide a miss, and the means' intervals by patient."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rtsam_jax.metrics.case import MEASURES, MORE_MEASURES
from rtsam_jax.metrics.summary import of_task, pooled, summarise
from tests.made_up import made_up


def test_means_hold_misses_and_count_them() -> None:
    cases = [
        made_up("a", 0.5, hd95_mm=4.0, assd_mm=1.0),
        made_up("b", 0.0, hd95_mm=math.inf, assd_mm=math.inf, missed=True),
        made_up("c", 1.0, hd95_mm=math.nan, assd_mm=math.nan, both_empty=True),
    ]
    summary = summarise(cases)["orn"]
    assert (summary.n, summary.n_missed, summary.n_both_empty) == (3, 1, 1)
    overlap, distance = summary.measures["dice"], summary.measures["hd95_mm"]
    assert overlap[:4] == (3, 0.5, 0.5, 0.5)
    assert distance[:4] == pytest.approx((2, 52.0, 96 / math.sqrt(2), 52.0))
    assert set(summary.measures) == set(MEASURES + MORE_MEASURES)


def test_tasks_and_all_cases() -> None:
    cases = [made_up("a", 0.2), made_up("b", 0.4), made_up("c", 0.9, task="ce")]
    result = summarise(cases)
    assert list(result) == ["orn", "ce", "all"]
    assert result["orn"].measures["iou"].mean == pytest.approx(0.3)
    assert math.isnan(result["ce"].measures["iou"].std)
    # Over cases, not over the tasks' means (which would be 0.6).
    assert result["all"].measures["iou"].mean == pytest.approx(0.5)
    assert result["all"].n == 3


def test_no_case_and_a_task_called_all() -> None:
    assert summarise([])["all"].n == 0
    assert math.isnan(summarise([])["all"].measures["dice"].mean)
    with pytest.raises(ValueError, match="rename"):
        summarise([made_up("a", 1.0, task="all")])


def test_the_interval_of_a_mean_agrees_with_the_normal_one_and_ignores_the_order() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.1, 200)
    cases = [made_up(f"{i:03d}", value) for i, value in enumerate(values)]
    found = summarise(cases)["orn"].measures["dice"]
    half = 1.96 * values.std(ddof=1) / math.sqrt(200)
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.1 * half
    )
    again = summarise(cases[::-1])["orn"].measures["dice"]
    assert again == pytest.approx(found, rel=1e-12)


def test_the_interval_is_of_patients_not_of_cases() -> None:
    # Six patients with thirty identical cases each are worth no more than six with one.
    values = np.random.default_rng(2).normal(0.5, 0.1, 6)
    few = [made_up(str(p), v, patient=str(p)) for p, v in enumerate(values)]
    many = [made_up(f"{p}-{k}", v, patient=str(p)) for p, v in enumerate(values) for k in range(30)]
    intervals = [summarise(cases)["orn"].measures["dice"][-2:] for cases in (few, many)]
    assert intervals[1] == pytest.approx(intervals[0])
    alone = summarise(few[:1])["orn"].measures["dice"]
    assert alone.mean == values[0] and math.isnan(alone.low) and math.isnan(alone.high)


def test_runs_are_pooled_with_a_name_for_each_case_and_one_patient() -> None:
    cases = [made_up("a", 0.2, patient="p"), made_up("b", 0.4, task="ce")]
    found = pooled({"(seed 0)": cases, "(seed 1)": cases[:1]})
    assert [case.case for case in found] == ["a (seed 0)", "b (seed 0)", "a (seed 1)"]
    assert [case.patient for case in found] == ["p", "b", "p"]
    assert [case.case for case in of_task(found, "ce")] == ["b (seed 0)"]
    assert of_task(found, "all") == found
