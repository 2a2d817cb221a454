"""What is fitted on cases with truth: the regression, its cross-fit, the thresholds."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from rtsam_jax.errors import SplitError, UnreadableFile
from rtsam_jax.metrics.ranking import auroc
from rtsam_jax.prediction.calibration import (
    ASSURED,
    CONFIDENCE,
    FEATURES,
    RELIABLE,
    Calibration,
    Fit,
    Quality,
    choose_thresholds,
    cross_fit,
    is_reliable,
)
from tests.prediction.observed import cohort, empty, observed


def rows(values: np.ndarray) -> list[dict[str, float | None]]:
    names = ("expected_dice", "agreement")
    return [
        dict(zip(names, map(float, row), strict=True)) | {"distance": None, "predicted_iou": None}
        for row in values
    ]


def test_the_regression_is_where_its_loss_is_least() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0.5, 0.2, (60, 2))
    good = rng.random(60) < special.expit(8 * (values[:, 1] - 0.5))
    found = Quality.fit(rows(values), good.tolist())
    assert found.features == ("expected_dice", "agreement")
    scaled = (values - values.mean(0)) / values.std(0)

    def loss(intercept: float, weights: np.ndarray) -> float:
        margin = np.where(good, 1, -1) * (scaled @ weights + intercept)
        return float(np.logaddexp(0, -margin).sum() + 0.5 * weights @ weights)

    weights = np.array(found.weights)
    least = loss(found.intercept, weights)
    for step in np.vstack([np.eye(3), -np.eye(3)]) * 0.02:
        if (weights + step[1:] >= 0).all():
            assert loss(found.intercept + step[0], weights + step[1:]) > least
    assert weights[1] > abs(weights[0])
    chances = [found(row) for row in rows(values)]
    np.testing.assert_allclose(chances, special.expit(scaled @ weights + found.intercept))
    assert np.mean(chances) == pytest.approx(good.mean())  # the intercept is not shrunk


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999))
def test_nothing_that_speaks_against_a_mask_raises_its_chance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = [dict(zip(FEATURES, map(float, row), strict=True)) for row in rng.random((12, 4))]
    found = Quality.fit(drawn, [True, *(rng.random(10) < 0.5), False])
    for name, sign in FEATURES.items():
        before, after = found(drawn[0]), found(drawn[0] | {name: drawn[0][name] + sign})
        assert before is not None and after is not None and after >= before


@pytest.mark.parametrize(("good", "chance"), [([True] * 8, 0.9), ([False] * 8, 0.1), ([], 0.5)])
def test_where_all_cases_are_alike_it_is_constant(good: list[bool], chance: float) -> None:
    found = Quality.fit(rows(np.random.default_rng(0).random((len(good), 2))), good)
    assert found.features == () and found(rows(np.zeros((1, 2)))[0]) == pytest.approx(chance)


def test_a_feature_that_was_there_and_is_not_leaves_no_chance() -> None:
    found = Quality.fit(rows(np.arange(12.0).reshape(6, 2)), [True, False] * 3)
    assert found({"expected_dice": 0.3, "agreement": None}) is None


def test_a_case_is_judged_by_a_fit_that_never_saw_its_patient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cases = cohort(24)
    with monkeypatch.context() as patch:
        patch.setattr(Fit, "of", lambda seen: {case.case for case in seen})
        seen = cast(Any, cross_fit(cases))
    for case, ids in zip(cases, seen, strict=True):
        own = {other.case for other in cases if other.patient == case.patient}
        assert len(own) == 2 and not ids & own and len(ids) >= 18
    assert len(set(map(frozenset, seen))) == 5
    by_id = {case.case: case for case in cases}
    for fit, ids in zip(cross_fit(cases), seen, strict=True):
        assert fit == Fit.of([case for case in by_id.values() if case.case in ids])


def test_signals_that_tell_the_dice_foretell_failures_of_unseen_patients() -> None:
    cases = cohort(60)
    fits = cross_fit(cases)
    chances = [fit.chance(case.signals) for fit, case in zip(fits, cases, strict=True)]
    failed = [not case.good for case in cases]
    assert auroc(chances, failed) > 0.95
    assert all(fit.temperature == pytest.approx(2.0, rel=0.15) for fit in fits)
    shuffled = np.random.default_rng(0).permutation(60)
    mixed = [
        dataclasses.replace(case, dice=cases[at].dice)
        for case, at in zip(cases, shuffled, strict=True)
    ]
    chances = [f.chance(case.signals) for f, case in zip(cross_fit(mixed), mixed, strict=True)]
    assert 0.25 < auroc(chances, [not case.good for case in mixed]) < 0.75


def test_one_patient_cannot_be_judged_by_others() -> None:
    with pytest.raises(SplitError, match="all of one"):
        cross_fit([dataclasses.replace(case, patient="p") for case in cohort(6)])


def test_an_empty_mask_is_as_likely_right_as_such_masks_were() -> None:
    blank = [observed(90 + at, float(at == 0), empty()) for at in range(3)]
    blank[0] = dataclasses.replace(blank[0], absent=True)
    found = Fit.of([*cohort(7), *blank])
    assert found.chance(empty(0.4)) == pytest.approx((1 + 1 / 10) / (3 + 1))
    wrong = [dataclasses.replace(case, dice=0.0) for case in blank]
    assert found.quality == Fit.of([*cohort(7), *wrong]).quality  # which is of other masks
    assert Fit.of(cohort(7)).chance(empty()) == 0  # no truth was empty


@pytest.mark.parametrize(
    ("count", "wrong", "holds"),
    [(20, 0, False), (21, 0, True), (29, 1, False), (31, 1, True), (59, 4, True), (59, 5, False)],
)
def test_as_many_cases_must_be_right_as_luck_hardly_makes(
    count: int, wrong: int, holds: bool
) -> None:
    right = np.arange(count) >= wrong
    assert is_reliable(right) == holds
    # By the binomial itself: as many or more right, were the share no more than 80 %.
    luck = stats.binom.sf(count - wrong - 1, count, ASSURED)
    assert (luck < 1 - CONFIDENCE) == holds


@pytest.mark.parametrize(("rate", "set_in"), [(0.5, (0, 0)), (0.8, (0, 10)), (0.95, (150, 200))])
def test_a_quality_that_says_nothing_hardly_sets_a_threshold(
    rate: float, set_in: tuple[int, int]
) -> None:
    """But where nearly all masks are good anyway; docs/confidence.md has the numbers of 500."""
    accepted = rejected = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        accept, reject = choose_thresholds(
            rng.random(60).tolist(), (rng.random(60) < rate).tolist()
        )
        accepted += accept is not None
        rejected += reject is not None
    assert set_in[0] <= accepted <= set_in[1] and rejected == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(1, 120), st.floats(0.3, 1), st.sampled_from([2, 20, 1000]))
def test_thresholds_hold_what_they_say_and_no_wider_ones_do(
    seed: int, count: int, sharp: float, levels: int
) -> None:
    rng = np.random.default_rng(seed)
    chance = rng.integers(0, levels, count) / levels
    good = rng.random(count) < special.expit(40 * sharp * (chance - 0.5))
    accept, reject = choose_thresholds(chance.tolist(), good.tolist())

    for at in np.unique(chance):
        if is_reliable(~good[chance <= at]):
            assert reject is not None and reject >= at
        if is_reliable(good[chance >= at]) and (reject is None or at > reject):
            assert accept is not None and accept <= at
    assert reject is None or (~good[chance <= reject]).mean() >= RELIABLE
    assert reject is None or is_reliable(~good[chance <= reject])
    assert accept is None or good[chance >= accept].mean() >= RELIABLE
    assert accept is None or (is_reliable(good[chance >= accept]) and accept > (reject or -1))


def calibration(**fields: Any) -> Calibration:
    known: dict[str, Any] = {"fit": Fit.of(cohort(20)), "accept": 0.8, "reject": None}
    known |= {"farthest": 4.0, "cases": 20, "good": 12, "repeats": 8, "arrays": "ab"}
    return Calibration(**(known | fields))


def test_it_comes_back_from_json_to_the_last_digit() -> None:
    known = calibration()
    content = json.loads(json.dumps(known.to_dict() | {"step": 3}, allow_nan=False))
    assert Calibration.from_dict(content) == known
    constant = calibration(fit=Fit(1.0, Quality((), (), (), (), 0.0), 0.0), farthest=None)
    assert Calibration.from_dict(json.loads(json.dumps(constant.to_dict()))) == constant
    assert math.isfinite(known.fit.temperature)


@pytest.mark.parametrize("path", [("accept",), ("fit", "empty"), ("fit", "quality", "weights")])
def test_a_damaged_one_is_said_to_be(path: tuple[str, ...]) -> None:
    content: Any = calibration().to_dict()
    place = content
    for name in path[:-1]:
        place = place[name]
    del place[path[-1]]
    with pytest.raises(UnreadableFile, match=r"model\.json is damaged"):
        Calibration.from_dict(content)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *[(("fit", "temperature"), value) for value in ("hot", -2, 0, True, None, 1e300, 1e999)],
        *[(("accept",), value) for value in ("x", 1.5)],
        (("reject",), [0.1]),
        (("fit", "empty"), None),
        (("fit", "quality"), []),
        (("fit", "quality", "features"), ["luck"]),
        (("fit", "quality", "weights"), []),
        (("fit", "quality", "scale"), [0, 1, 1, 1]),
        (("fit", "quality", "intercept"), "a"),
        (("farthest",), -1),
        (("cases",), "many"),
        (("arrays",), 5),
    ],
)
def test_a_value_that_no_calibration_has(path: tuple[str, ...], value: Any) -> None:
    content: Any = calibration().to_dict()
    place = content
    for name in path[:-1]:
        place = place[name]
    assert path[-1] in place
    place[path[-1]] = value
    with pytest.raises(UnreadableFile, match=r"model\.json is damaged"):
        Calibration.from_dict(content)
