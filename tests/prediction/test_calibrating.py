"""From observed cases to thresholds, tables and pictures."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from rtsam_jax.metrics.ranking import auroc
from rtsam_jax.prediction.calibrating import calibrate
from rtsam_jax.prediction.calibration import RELIABLE, cross_fit
from rtsam_jax.prediction.calibration_report import Trial, measured, write_calibration_report
from rtsam_jax.prediction.distance import Reference
from rtsam_jax.prediction.temperature import bound
from tests.prediction.observed import cohort, empty, observed, signals


def trial_of(count: int) -> Trial:
    cases = [*cohort(count), observed(998, 0.0, empty(), patient="p998")]
    return Trial("val, cross-fitted", cases, cross_fit(cases))


def test_thresholds_are_chosen_on_cases_that_the_fit_did_not_see() -> None:
    own = trial_of(120)
    found = calibrate(own, None)
    assert found.accept is not None and found.reject is not None
    chances, good = own.chances[:-1], np.array([case.good for case in own.cases[:-1]])
    assert good[chances >= found.accept].mean() >= RELIABLE
    assert (~good[chances <= found.reject]).mean() >= RELIABLE
    assert found.accept in chances and found.reject in chances
    assert (found.cases, found.good, found.farthest) == (121, good.sum(), None)


def test_no_case_was_seen_farther_out_than_the_farthest() -> None:
    rng = np.random.default_rng(0)
    patients, tasks = np.arange(9).astype(str), np.full(9, "orn")
    known = Reference.fit(rng.standard_normal((9, 3)), patients, tasks)
    assert known is not None
    own = trial_of(12)
    near, far = (
        dataclasses.replace(own.cases[0], signals=signals(agreement=0.4, distance=distance))
        for distance in (0.1, 900.0)
    )
    assert calibrate(dataclasses.replace(own, cases=[far, *own.cases[1:]]), known).farthest == 900
    cases = [dataclasses.replace(case, signals=near.signals) for case in own.cases]
    found = calibrate(dataclasses.replace(own, cases=cases), known)
    assert found.farthest == known.distances[-1]


def test_where_every_case_is_good_all_are_to_be_reviewed(tmp_path: Path) -> None:
    cases = [dataclasses.replace(case, dice=0.7) for case in cohort(20)]
    own = Trial("val, cross-fitted", cases, cross_fit(cases))
    found = calibrate(own, None)
    assert (found.accept, found.reject) == (None, None)
    assert {of.flag for of in own.judged(found)} == {"review"}
    of = measured(own, found)
    assert of["auroc"] == of["flag_auroc"] == {"value": None, "low": None, "high": None}
    text = write_calibration_report(
        tmp_path, found, own, [], {own.name: of}, heading="made up, split val", kind="synthetic"
    )
    assert "20 of 20 cases have Dice of at least 0.5" in text and "0 of 20 cases fail" in text


def test_the_report_holds_every_trial_and_says_how_few_they_are(tmp_path: Path) -> None:
    own = trial_of(120)
    found = calibrate(own, None)
    cases = [dataclasses.replace(case, case=f"t{case.case}") for case in cohort(8, seed=3)]
    other = Trial("test, not calibrated on", cases, [found.fit] * 8)
    results = {trial.name: measured(trial, found) for trial in (own, other)}
    text = write_calibration_report(
        tmp_path, found, own, [other], results, heading="made up, split val", kind="synthetic"
    )
    assert "test, not calibrated on: " in text and "too few to know an AUROC" in text
    assert f"Temperature {found.fit.temperature:.3f}" in text
    of = results[own.name]
    failed = [not case.good for case in own.cases]
    assert of["auroc"]["value"] == auroc(own.chances, failed) > 0.9
    assert f"{of['auroc']['value']:.3f} ({of['auroc']['low']:.3f} to" in text
    level = {"accept": 2, "review": 1, "reject": 0}
    flags = [level[confidence.flag] for confidence in own.judged(found)]
    assert of["flag_auroc"]["value"] == auroc(flags, failed) > 0.8
    assert of["flag_auroc"]["low"] < auroc(flags, failed) < of["flag_auroc"]["high"]
    assert f"{of['flag_auroc']['value']:.3f} ({of['flag_auroc']['low']:.3f} to" in text
    assert of["n_empty"] == 1 and of["ece_after"] < of["ece_before"]
    assert sum(flag["n"] for flag in of["flags"].values()) == of["n"] == 121
    assert of["flags"]["accept"]["n_good"] >= RELIABLE * of["flags"]["accept"]["n"] > 0
    document = json.loads((tmp_path / "calibration.json").read_text(), parse_constant=str)
    assert document["measured"] == results and document["calibration"]["cases"] == 121
    with (tmp_path / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 129 and rows[120]["empty"] == "True" and not rows[120]["mean_probability"]
    assert {row["cases"] for row in rows} == set(results)


@pytest.mark.parametrize(("honest", "end"), [(1e-3, "lowest"), (1e3, "highest"), (2.0, "")])
def test_a_temperature_at_the_end_of_its_range_is_said_to_be(
    tmp_path: Path, honest: float, end: str
) -> None:
    cases = [
        observed(at, case.dice, case.signals, temperature=honest)
        for at, case in enumerate(cohort(20))
    ]
    own = Trial("val, cross-fitted", cases, cross_fit(cases))
    text = write_calibration_report(
        tmp_path,
        found := calibrate(own, None),
        own,
        [],
        {own.name: measured(own, found)},
        heading="made up, split val",
        kind="synthetic",
    )
    assert bound(found.fit.temperature) == end
    assert [f"is the {of} that is tried" in text for of in ("lowest", "highest")] == [
        end == "lowest",
        end == "highest",
    ]


def test_it_keeps_with_how_many_repeats_it_was_made() -> None:
    assert calibrate(trial_of(12), None).repeats == 8
