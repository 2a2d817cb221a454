"""Two methods on the same cases: the paired bootstrap by patient, and Wilcoxon's test."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rtsam_jax.metrics.paired import LeftOut, left_out, paired_bootstrap, wilcoxon
from tests.made_up import made_up


def test_bootstrap_of_a_constant_difference_has_no_width() -> None:
    a = [made_up(str(i), 0.5 + 0.01 * i) for i in range(12)]
    b = [made_up(str(i), 0.4 + 0.01 * i) for i in reversed(range(12))]  # order does not matter
    assert paired_bootstrap(a, b, "dice", resamples=200) == pytest.approx((0.1, 0.1, 0.1))


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    rng = np.random.default_rng(1)
    differences = rng.normal(0.05, 0.1, 200)
    a = [made_up(str(i), 0.5 + d) for i, d in enumerate(differences)]
    b = [made_up(str(i), 0.5) for i in range(200)]
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
    few_a = [made_up(f"{p}", 0.5 + effect[p], patient=f"{p}") for p in range(10)]
    few_b = [made_up(f"{p}", 0.5, patient=f"{p}") for p in range(10)]
    many_a = [
        made_up(f"{p}-{k}", 0.5 + effect[p], patient=f"{p}") for p in range(10) for k in range(20)
    ]
    many_b = [made_up(f"{p}-{k}", 0.5, patient=f"{p}") for p in range(10) for k in range(20)]
    few, many = paired_bootstrap(few_a, few_b, "dice"), paired_bootstrap(many_a, many_b, "dice")
    assert many == pytest.approx(few)


def test_bootstrap_weighs_cases_not_patients() -> None:
    a = [made_up("a", 0.9, patient="p")] + [made_up(f"b{k}", 0.3, patient="q") for k in range(3)]
    b = [replace(item, dice=0.0) for item in a]
    mean, low, high = paired_bootstrap(a, b, "dice")
    assert mean == pytest.approx((0.9 + 3 * 0.3) / 4)
    assert (low, high) == pytest.approx((0.3, 0.9))


def test_bootstrap_of_distances_uses_the_diagonal_and_leaves_out_nan() -> None:
    a = [made_up("a", math.inf), made_up("b", math.nan), made_up("c", math.inf)]
    b = [made_up("a", 30.0), made_up("b", 7.0), made_up("c", 30.0)]
    assert paired_bootstrap(a, b, "hd95_mm", resamples=20) == (70.0, 70.0, 70.0)
    assert all(math.isnan(v) for v in paired_bootstrap(a[1:2], b[1:2], "hd95_mm"))


def test_pairs_without_a_distance_are_counted_and_so_are_the_misses_among_them() -> None:
    nothing = dict(hd95_mm=math.nan, both_empty=True)
    a = [made_up("a"), made_up("b", **nothing), made_up("c", **nothing), made_up("d", math.inf)]
    b = [made_up("a"), made_up("b", math.inf, missed=True), a[2], made_up("d")]
    assert left_out(a, b, "hd95_mm") == left_out(b, a, "hd95_mm") == LeftOut(2, 1)
    assert left_out(a, b, "dice") == LeftOut(0, 0)


def test_one_patient_has_a_mean_but_no_interval() -> None:
    a = [made_up("a", 0.5, patient="p"), made_up("b", 0.7, patient="p")]
    b = [replace(item, dice=0.4) for item in a]
    mean, low, high = paired_bootstrap(a, b, "dice")
    assert mean == pytest.approx(0.2) and math.isnan(low) and math.isnan(high)


def test_bootstrap_refuses_unpaired_lists() -> None:
    a = [made_up("a", 0.5), made_up("b", 0.5)]
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
    a = [made_up(str(i), x) for i, (x, _) in enumerate(pairs)]
    b = [made_up(str(i), y) for i, (_, y) in enumerate(pairs)]
    mean, low, high = paired_bootstrap(a, b, "dice", resamples=300)
    differences = [x - y for x, y in pairs]
    if len(pairs) > 1:
        assert min(differences) - 1e-9 <= low <= high <= max(differences) + 1e-9
    assert mean == pytest.approx(float(np.mean(differences)))
    assert paired_bootstrap(b, a, "dice", resamples=300) == pytest.approx(
        (-mean, -high, -low), nan_ok=True
    )


def test_wilcoxon_is_the_signed_rank_test_of_the_differences() -> None:
    rng = np.random.default_rng(3)
    differences = rng.normal(0.03, 0.1, 25)
    a = [made_up(str(i), 0.5 + d) for i, d in enumerate(differences)]
    b = [made_up(str(i), 0.5) for i in range(25)]
    assert wilcoxon(a, b, "dice") == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert wilcoxon(b, a, "dice") == pytest.approx(wilcoxon(a, b, "dice"))
    assert wilcoxon(a, b[::-1], "lesion_f1") == 1  # no difference at all


def test_wilcoxon_of_five_patients_cannot_be_significant() -> None:
    # All five better: p = 2 / 2^5, however many cases each patient brings.
    a = [made_up(f"{p}-{k}", 0.6 + p / 100, patient=f"{p}") for p in range(5) for k in range(9)]
    b = [replace(item, dice=0.5) for item in a]
    assert wilcoxon(a, b, "dice") == pytest.approx(2 / 2**5)


def test_wilcoxon_leaves_out_pairs_without_a_distance() -> None:
    a = [made_up("a", math.nan), made_up("b", 3.0), made_up("c", 5.0)]
    b = [made_up("a", 1.0), made_up("b", 2.0), made_up("c", 2.0)]
    assert wilcoxon(a, b, "hd95_mm") == wilcoxon(a[1:], b[1:], "hd95_mm") == 0.5
    assert math.isnan(wilcoxon(a[:1], b[:1], "hd95_mm"))
    with pytest.raises(ValueError, match="twice"):
        wilcoxon([*a, a[0]], a, "hd95_mm")
