"""Flags follow their rules, and nothing uncertain is accepted."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.prediction import confidence
from rtsam_jax.prediction.calibration import Calibration, Fit, Signals
from rtsam_jax.prediction.confidence import ACCEPT, REJECT, REVIEW, calibrated, entropy, judge
from rtsam_jax.prediction.temperature import tempered
from rtsam_jax.training.model_file import TaskEntry
from tests.prediction.observed import cohort, empty, signals
from tests.tiny import tiny_config

KNOWN = Calibration(
    Fit.of(cohort(40)),
    accept=0.7,
    reject=0.2,
    farthest=5.0,
    cases=40,
    good=22,
    repeats=8,
    arrays=None,
)


@pytest.mark.parametrize(
    ("of", "flag", "reason"),
    [
        (signals(agreement=0.95), ACCEPT, "at or above 0.70"),
        (signals(agreement=0.5), REVIEW, "neither accepted nor rejected"),
        (signals(agreement=0.05), REJECT, "at or below 0.20"),
        (signals(agreement=0.95, distance=5.5), REVIEW, "farther from the training cases than any"),
        (signals(agreement=None), REVIEW, "not measured, though the calibration needs it: agree"),
        (signals(agreement=0.95, repeats=9), ACCEPT, "at or above 0.70"),
        (
            signals(agreement=0.95, repeats=7),
            REVIEW,
            "made with 8 repeats of every prediction, and",
        ),
        (signals(agreement=0.05, repeats=1), REVIEW, "this has 1, so its quality is not measured"),
        (empty(), REVIEW, "no voxel of the image reaches 0.5, and the largest"),
        (empty(0.49), REJECT, "near enough to doubt it"),
        (empty(agreement=0.2), REJECT, "most repeats of the prediction are not empty"),
        (empty(percentile=99.0), REJECT, "than 95 % of these do"),
    ],
)
def test_a_flag_follows_its_rule(of: Signals, flag: str, reason: str) -> None:
    found = judge(of, KNOWN)
    assert (found.flag, reason in " ".join(found.reasons)) == (flag, True)
    assert of.empty or (found.quality is None) == (of.repeats < 8 or of.agreement is None)
    uncalibrated = judge(of, None)
    assert (uncalibrated.flag, uncalibrated.quality) == (REVIEW, None)
    assert "--calibrate" in uncalibrated.reasons[-1]


def test_what_is_measured_is_said_with_the_temperature_of_the_calibration() -> None:
    of = signals(agreement=0.9, predicted_iou=0.4)
    found = judge(of, KNOWN, ("first",))
    temperature = KNOWN.fit.temperature
    assert temperature == pytest.approx(2, rel=0.2)
    assert found.expected_dice == of.spectrum.expected_dice(temperature)
    assert found.mean_probability == of.spectrum.mean_probability(temperature)
    assert (found.agreement, found.predicted_iou, found.distance) == (0.9, 0.4, 50.0)
    assert found.quality == KNOWN.fit.chance(of) and found.reasons[0] == "first"
    for nothing in (empty(), dataclasses.replace(of, empty=True)):
        found = judge(nothing, KNOWN)
        assert np.isnan(found.mean_probability) and found.expected_dice == 0


def test_fewer_repeats_matter_only_where_the_quality_is_of_them() -> None:
    cases = [
        dataclasses.replace(case, signals=signals(float(sharp), agreement=None))
        for case, sharp in zip(cohort(20), np.linspace(0.5, 3, 20), strict=True)
    ]
    known = dataclasses.replace(KNOWN, fit=Fit.of(cases))
    assert judge(signals(agreement=0.9, repeats=1), known).quality is not None
    assert judge(empty(repeats=1), KNOWN).quality == KNOWN.fit.empty


def test_without_a_threshold_a_side_is_never_given() -> None:
    for agreement in np.linspace(0, 1, 11).tolist():
        of = signals(agreement=agreement)
        assert judge(of, dataclasses.replace(KNOWN, accept=None)).flag != ACCEPT
        assert judge(of, dataclasses.replace(KNOWN, reject=None)).flag != REJECT
        neither = judge(of, dataclasses.replace(KNOWN, accept=None, reject=None))
        assert neither.flag == REVIEW and "of 40 calibration cases 22 have" in neither.reasons[0]


@settings(max_examples=30, deadline=None)
@given(
    st.floats(0, 0.4999),
    st.none() | st.floats(0, 1),
    st.none() | st.floats(0, 100),
    st.booleans(),
)
def test_an_empty_mask_is_never_accepted_and_has_a_reason(
    largest: float, agreement: float | None, percentile: float | None, known: bool
) -> None:
    of = empty(largest, agreement=agreement, percentile=percentile)
    found = judge(of, dataclasses.replace(KNOWN, accept=0.0) if known else None)
    assert found.flag != ACCEPT and "the mask is empty" in found.reasons[0]


def test_entropy_is_a_bit_at_one_half_and_none_where_nothing_is_in_doubt() -> None:
    found = entropy(np.array([[0, 0.5, 1, 0.25]], np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0, 1, 0, 0.25 * 2 + 0.75 * np.log2(4 / 3)]], rtol=1e-6)


def test_probabilities_are_calibrated_where_the_run_is() -> None:
    probability = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    trained: Any = SimpleNamespace(known=None)
    np.testing.assert_array_equal(calibrated(probability, trained), probability)
    trained = SimpleNamespace(known=KNOWN)
    found = calibrated(probability, trained)
    np.testing.assert_array_equal(found, tempered(probability, KNOWN.fit.temperature))
    assert (found != probability).any()


PLAIN, SIDED = "Segment the injury.", "Segment the left gland."


@pytest.mark.parametrize(
    ("prompt", "axes", "sentence", "record", "mirrored"),
    [
        ("text", (0, 1), PLAIN, {"note": "pain on the left side"}, "pain on the right side"),
        ("text", (0, 1), PLAIN, {"note": "pain at tooth 36"}, None),  # may name a side
        ("text", (0, 1), PLAIN, None, None),  # nobody knows what the text was made of
        ("text", (1, 2), PLAIN, {"note": "pain on the left side"}, None),
        ("embedding", (0,), PLAIN, None, 5),  # the task's own tokens
        ("embedding", (0,), SIDED, None, None),
    ],
)
def test_a_mirrored_case_is_told_the_truth_or_is_not_made(
    monkeypatch: pytest.MonkeyPatch,
    prompt: str,
    axes: tuple[int, ...],
    sentence: str,
    record: dict[str, str] | None,
    mirrored: str | int | None,
) -> None:
    told: dict[str, Any] = {}

    def agreement(model: Any, tiles: Any, turn: Any, probability: Any, *texts: Any, **asked: Any):
        told.update(own=texts[0], mirrored=texts[1], axes=asked["axes"])
        return 1.0

    monkeypatch.setattr(confidence, "agreement", agreement)
    probability = np.full((2, 2, 2), 0.3, np.float32)
    trained: Any = SimpleNamespace(
        cfg=tiny_config(prompt__task=prompt, augment__flip_axes=axes),
        prompt=lambda task, record: (sentence, *record.values()),
        tell=lambda task, text: SimpleNamespace(table=text, text_id=0),
    )
    everywhere = SimpleNamespace(roi=np.ones((2, 2, 2)), place=(slice(None),) * 3)
    opened: Any = SimpleNamespace(
        tiles=everywhere,
        crops=SimpleNamespace(text_id=np.array([5])),
        table=None,
        task=TaskEntry("orn", "CT", "ORN", sentence),
    )
    options: dict[str, Any] = {"empty": True, "reference": None, "repeats": 2, "record": record}
    found = confidence.observe(trained, None, opened, None, probability, **options)  # type: ignore[arg-type]
    assert (found.agreement, found.largest) == (1.0, np.float32(0.3))
    assert (told["own"], told["axes"]) == ((None, 5), axes)
    expected = (None, 5) if mirrored == 5 else mirrored and ((PLAIN, mirrored), 0)
    assert told["mirrored"] == expected
