"""AUROC is the share of pairs in the right order; its interval resamples patients."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.metrics.bootstrap import patient_draws
from rtsam_jax.metrics.ranking import auroc, bootstrap_auroc, risk_coverage

cases = st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=30)


def by_pairs(quality: np.ndarray, failed: np.ndarray) -> float:
    won = [float(b < g) + 0.5 * float(b == g) for b in quality[failed] for g in quality[~failed]]
    return sum(won) / len(won)


@settings(max_examples=30, deadline=None)
@given(cases)
def test_auroc_is_the_share_of_pairs_in_order(of: list[tuple[int, bool]]) -> None:
    quality, failed = np.array([q for q, _ in of]), np.array([f for _, f in of])
    if failed.all() or not failed.any():
        assert math.isnan(auroc(quality, failed))
        return
    found = auroc(quality, failed)
    assert found == pytest.approx(by_pairs(quality, failed))
    assert auroc(np.exp(quality / 3), failed) == pytest.approx(found)  # any scale will do
    assert auroc(-quality, failed) == pytest.approx(1 - found)


def test_the_interval_is_that_of_patients_drawn_with_all_of_their_cases() -> None:
    rng = np.random.default_rng(0)
    quality = rng.integers(0, 6, 24).astype(float)
    failed = rng.random(24) < 0.4
    patients = [f"p{at // 3}" for at in range(24)]
    found = bootstrap_auroc(quality.tolist(), failed.tolist(), patients, resamples=200, seed=5)
    drawn = []
    for counts in patient_draws(8, 200, 5):
        rows = np.repeat(np.arange(24), np.repeat(counts, 3))
        if failed[rows].any() and not failed[rows].all():
            drawn.append(by_pairs(quality[rows], failed[rows]))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))
    assert found.value == pytest.approx(by_pairs(quality, failed))
    assert (found.n, found.n_failed, found.n_patients) == (24, int(failed.sum()), 8)
    order = rng.permutation(24)
    again = bootstrap_auroc(
        quality[order].tolist(),
        failed[order].tolist(),
        [patients[at] for at in order],
        resamples=200,
        seed=5,
    )
    assert again == pytest.approx(found)


@pytest.mark.parametrize(
    ("failed", "patients"), [([False, False], ["a", "b"]), ([True, False], ["a", "a"])]
)
def test_without_failures_or_patients_there_is_no_interval(
    failed: list[bool], patients: list[str]
) -> None:
    found = bootstrap_auroc([0.2, 0.8], failed, patients)
    assert math.isnan(found.low) and math.isnan(found.high)
    assert math.isnan(found.value) == (not any(failed))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1)), min_size=1, max_size=20))
def test_risk_is_the_mean_of_all_cases_of_at_least_a_quality(of: list[tuple[int, float]]) -> None:
    quality, risk = np.array([q for q, _ in of]), np.array([r for _, r in of])
    found = risk_coverage(quality, risk)
    levels = np.unique(quality)[::-1]
    expected = [[(quality >= at).mean(), risk[quality >= at].mean()] for at in levels]
    np.testing.assert_allclose(np.stack(found, 1), expected, atol=1e-12)
    assert found.coverage[-1] == 1 and found.risk[-1] == pytest.approx(risk.mean())
