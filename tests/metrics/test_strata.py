"""Strata by the truth's volume: every case is in one, edges belong upwards."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.metrics.strata import STRATA, size_strata
from tests.made_up import made_up


def test_edges_and_the_empty_truth() -> None:
    volumes = [20.0, 0.0, 1e-6, 0.999, 1.0, 4.999, 5.0, 19.9, 400.0]
    strata = size_strata([made_up(str(v), volume_truth_ml=v) for v in volumes])
    assert {name: [float(case.case) for case in cases] for name, cases in strata.items()} == {
        "empty truth": [0.0],
        "below 1 mL": [1e-6, 0.999],
        "1 to 5 mL": [1.0, 4.999],
        "5 to 20 mL": [5.0, 19.9],
        "20 mL and more": [20.0, 400.0],
    }


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0, 100), max_size=8))
def test_every_case_is_in_one_stratum_in_order(volumes: list[float]) -> None:
    cases = [made_up(str(i), volume_truth_ml=v) for i, v in enumerate(volumes)]
    strata = size_strata(cases)
    assert sorted(c.case for group in strata.values() for c in group) == sorted(
        c.case for c in cases
    )
    assert all(strata.values())
    assert [name for name in STRATA if name in strata] == list(strata)
