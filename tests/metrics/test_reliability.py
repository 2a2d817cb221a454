"""Expected calibration error against histograms that can be added up by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.metrics.reliability import BINS, reliability


def test_a_known_histogram() -> None:
    """40 voxels: 30 at 0.1, of which 3 are foreground, and 10 at 0.9, of which 6 are."""
    probability = [0.1] * 30 + [0.9] * 10
    truth = [1] * 3 + [0] * 27 + [1] * 6 + [0] * 4
    found = reliability(probability, truth, np.ones(40))
    assert found.ece == pytest.approx(10 / 40 * (0.9 - 0.6))
    filled = np.flatnonzero(found.share)
    assert filled.tolist() == [1, 13] and found.frequency[filled].tolist() == [0.1, 0.6]
    assert np.isnan(found.probability[2])


def test_a_case_of_few_voxels_weighs_as_much_as_one_of_many() -> None:
    probability, truth = np.array([0.5] * 99 + [0.9]), np.array([1] * 99 + [1])
    weight = np.array([1 / 99] * 99 + [1])
    assert reliability(probability, truth, weight).ece == pytest.approx((0.5 + 0.1) / 2)


voxels = st.lists(
    st.tuples(st.floats(0, 1), st.booleans(), st.floats(0.01, 10)), min_size=1, max_size=50
)


@settings(max_examples=30, deadline=None)
@given(voxels, st.integers(1, 20))
def test_it_is_the_definition(of: list[tuple[float, bool, float]], bins: int) -> None:
    gap = 0.0
    for at in range(bins):
        held = [v for v in of if min(int(v[0] * bins), bins - 1) == at]
        gap += abs(sum(w * (p - t) for p, t, w in held))
    probability, truth, weight = zip(*of, strict=True)
    found = reliability(probability, truth, weight, bins=bins)
    assert found.ece == pytest.approx(gap / sum(weight), abs=1e-9)
    assert found.share.sum() == pytest.approx(1) and len(found.share) == bins


def test_bins_are_fifteen_and_nothing_is_no_histogram() -> None:
    assert BINS == 15 and len(reliability([0.3], [1], [1]).share) == 15
    with pytest.raises(ValueError, match="at least one voxel"):
        reliability([], [], [])
