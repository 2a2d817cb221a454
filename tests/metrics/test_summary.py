"""Aggregation that cannot hide a miss, and the paired bootstrap."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.errors import VolumeError
from rtsam_jax.metrics.overlap import dice, iou, precision, recall
from rtsam_jax.metrics.summary import MEASURES, CaseMetrics, paired_bootstrap, score_case, summarise
from rtsam_jax.metrics.surface import assd, hd95

SPACING = (2.0, 1.0, 3.0)


def case(name: str, value: float, *, patient: str = "", task: str = "orn", **fields) -> CaseMetrics:
    """A case whose six measures are all `value`."""
    base = CaseMetrics(
        case=name,
        patient=patient or name,
        task=task,
        dice=value,
        iou=value,
        precision=value,
        recall=value,
        hd95_mm=value,
        assd_mm=value,
        volume_pred_ml=1.0,
        volume_truth_ml=1.0,
        both_empty=False,
        missed=False,
        diagonal_mm=100.0,
    )
    return replace(base, **fields)


def scored(prediction: np.ndarray, truth: np.ndarray, name: str = "c1") -> CaseMetrics:
    return score_case(prediction, truth, spacing_mm=SPACING, case=name, patient="p1", task="orn")


def test_a_case_holds_the_measures_and_the_volumes() -> None:
    rng = np.random.default_rng(0)
    prediction, truth = rng.random((2, 6, 7, 8)) < 0.3
    result = scored(prediction, truth)
    assert (result.case, result.patient, result.task) == ("c1", "p1", "orn")
    assert result.dice == dice(prediction, truth)
    assert result.iou == iou(prediction, truth)
    assert result.precision == precision(prediction, truth)
    assert result.recall == recall(prediction, truth)
    assert result.hd95_mm == hd95(prediction, truth, spacing_mm=SPACING)
    assert result.assd_mm == assd(prediction, truth, spacing_mm=SPACING)
    assert result.volume_pred_ml == pytest.approx(prediction.sum() * 0.006)
    assert result.volume_truth_ml == pytest.approx(truth.sum() * 0.006)
    assert result.diagonal_mm == pytest.approx(math.sqrt(12**2 + 7**2 + 24**2))
    assert not result.missed and not result.both_empty


def test_missed_and_both_empty() -> None:
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    for prediction, truth in ((empty, full), (full, empty)):
        result = scored(prediction, truth)
        assert result.missed and not result.both_empty
        assert math.isinf(result.hd95_mm) and result.value("hd95_mm") == result.diagonal_mm
    nothing = scored(empty, empty)
    assert nothing.both_empty and not nothing.missed
    assert math.isnan(nothing.value("assd_mm")) and nothing.dice == 1


def test_bad_arguments_are_refused() -> None:
    mask = np.ones((3, 3, 3), bool)
    with pytest.raises(VolumeError, match="shape"):
        scored(mask, mask[:2])
    with pytest.raises(ValueError, match="measure"):
        scored(mask, mask).value("volume_pred_ml")


def test_means_hold_misses_and_count_them() -> None:
    cases = [
        case("a", 0.5, hd95_mm=4.0, assd_mm=1.0),
        case("b", 0.0, hd95_mm=math.inf, assd_mm=math.inf, missed=True),
        case("c", 1.0, hd95_mm=math.nan, assd_mm=math.nan, both_empty=True),
    ]
    summary = summarise(cases)["orn"]
    assert (summary.n, summary.n_missed, summary.n_both_empty) == (3, 1, 1)
    overlap, distance = summary.measures["dice"], summary.measures["hd95_mm"]
    assert overlap == (3, 0.5, 0.5, 0.5)
    assert distance == pytest.approx((2, 52.0, 96 / math.sqrt(2), 52.0))
    assert set(summary.measures) == set(MEASURES)


def test_tasks_and_all_cases() -> None:
    cases = [case("a", 0.2), case("b", 0.4), case("c", 0.9, task="ce")]
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
        summarise([case("a", 1.0, task="all")])


def test_bootstrap_of_a_constant_difference_has_no_width() -> None:
    a = [case(str(i), 0.5 + 0.01 * i) for i in range(12)]
    b = [case(str(i), 0.4 + 0.01 * i) for i in reversed(range(12))]  # order does not matter
    assert paired_bootstrap(a, b, "dice", resamples=200) == pytest.approx((0.1, 0.1, 0.1))


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    rng = np.random.default_rng(1)
    differences = rng.normal(0.05, 0.1, 200)
    a = [case(str(i), 0.5 + d) for i, d in enumerate(differences)]
    b = [case(str(i), 0.5) for i in range(200)]
    mean, low, high = paired_bootstrap(a, b, "dice")
    half = 1.96 * differences.std(ddof=1) / math.sqrt(200)
    assert mean == pytest.approx(differences.mean())
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)
    assert paired_bootstrap(a, b, "dice") == (mean, low, high)
    assert paired_bootstrap(a, b, "dice", seed=1) != (mean, low, high)


def test_bootstrap_resamples_patients_not_cases() -> None:
    # Ten patients with twenty identical cases each carry no more than ten patients with one.
    rng = np.random.default_rng(2)
    effect = rng.normal(0.0, 0.1, 10)
    few_a = [case(f"{p}", 0.5 + effect[p], patient=f"{p}") for p in range(10)]
    few_b = [case(f"{p}", 0.5, patient=f"{p}") for p in range(10)]
    many_a = [
        case(f"{p}-{k}", 0.5 + effect[p], patient=f"{p}") for p in range(10) for k in range(20)
    ]
    many_b = [case(f"{p}-{k}", 0.5, patient=f"{p}") for p in range(10) for k in range(20)]
    few, many = paired_bootstrap(few_a, few_b, "dice"), paired_bootstrap(many_a, many_b, "dice")
    assert many == pytest.approx(few)


def test_bootstrap_weighs_cases_not_patients() -> None:
    a = [case("a", 0.9, patient="p")] + [case(f"b{k}", 0.3, patient="q") for k in range(3)]
    b = [replace(item, dice=0.0) for item in a]
    mean, low, high = paired_bootstrap(a, b, "dice")
    assert mean == pytest.approx((0.9 + 3 * 0.3) / 4)
    assert (low, high) == pytest.approx((0.3, 0.9))


def test_bootstrap_of_distances_uses_the_diagonal_and_leaves_out_nan() -> None:
    a = [case("a", math.inf), case("b", math.nan)]
    b = [case("a", 30.0), case("b", 7.0)]
    assert paired_bootstrap(a, b, "hd95_mm", resamples=20) == (70.0, 70.0, 70.0)
    assert all(math.isnan(v) for v in paired_bootstrap(a[1:], b[1:], "hd95_mm"))


def test_bootstrap_refuses_unpaired_lists() -> None:
    a = [case("a", 0.5), case("b", 0.5)]
    with pytest.raises(ValueError, match="'b' of task 'orn' is in one only"):
        paired_bootstrap(a, a[:1], "dice")
    with pytest.raises(ValueError, match="both are empty"):
        paired_bootstrap([], [], "dice")
    with pytest.raises(ValueError, match="twice"):
        paired_bootstrap([*a, a[0]], a, "dice")
    with pytest.raises(ValueError, match="patient"):
        paired_bootstrap(a[:1], [replace(a[0], patient="other")], "dice")


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8))
def test_bootstrap_is_antisymmetric_and_holds_its_mean(pairs: list[tuple[float, float]]) -> None:
    a = [case(str(i), x) for i, (x, _) in enumerate(pairs)]
    b = [case(str(i), y) for i, (_, y) in enumerate(pairs)]
    mean, low, high = paired_bootstrap(a, b, "dice", resamples=300)
    differences = [x - y for x, y in pairs]
    assert min(differences) - 1e-9 <= low <= high <= max(differences) + 1e-9
    assert mean == pytest.approx(float(np.mean(differences)))
    assert paired_bootstrap(b, a, "dice", resamples=300) == pytest.approx((-mean, -high, -low))
