"""One case's measures: each is what its own module says, on the crop as on the whole volume."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rtsam_jax.errors import VolumeError
from rtsam_jax.metrics.case import MEASURES, MORE_MEASURES, CaseMetrics, score_case
from rtsam_jax.metrics.lesions import lesion_counts
from rtsam_jax.metrics.nsd import nsd
from rtsam_jax.metrics.overlap import dice, iou, precision, recall
from rtsam_jax.metrics.surface import assd, hd95, masd
from tests.made_up import made_up

SPACING = (2.0, 1.0, 3.0)


def scored(prediction: np.ndarray, truth: np.ndarray, **more: Any) -> CaseMetrics:
    return score_case(
        prediction, truth, spacing_mm=SPACING, case="c1", patient="p1", task="orn", **more
    )


def test_a_case_holds_every_measure() -> None:
    rng = np.random.default_rng(0)
    prediction, truth = rng.random((2, 6, 7, 8)) < 0.3
    result = scored(prediction, truth)
    assert (result.case, result.patient, result.task) == ("c1", "p1", "orn")
    for measure in (dice, iou, precision, recall):
        assert getattr(result, measure.__name__) == measure(prediction, truth)
    for measure in (hd95, assd, masd):
        found = getattr(result, f"{measure.__name__}_mm")
        assert found == measure(prediction, truth, spacing_mm=SPACING)
    for tolerance in (1, 2):
        expected = nsd(prediction, truth, spacing_mm=SPACING, tolerance_mm=tolerance)
        assert getattr(result, f"nsd_{tolerance}mm") == expected
    counts = lesion_counts(prediction, truth)
    assert (result.lesions_truth, result.lesions_pred) == counts[:2]
    assert (result.lesions_found, result.lesions_right) == counts[2:]
    assert result.volume_pred_ml == pytest.approx(prediction.sum() * 0.006)
    assert result.volume_truth_ml == pytest.approx(truth.sum() * 0.006)
    assert result.volume_error_ml == pytest.approx((prediction.sum() - truth.sum()) * 0.006)
    assert result.diagonal_mm == pytest.approx(math.sqrt(12**2 + 7**2 + 24**2))
    assert not result.missed and not result.both_empty and result.structures_ml == {}


def test_the_diagonal_of_the_image_stands_for_an_infinite_distance() -> None:
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    for prediction, truth in ((empty, full), (full, empty)):
        result = scored(prediction, truth, diagonal_mm=321.0)
        assert result.missed and not result.both_empty
        assert math.isinf(result.hd95_mm) and math.isinf(result.masd_mm)
        for measure in ("hd95_mm", "assd_mm", "masd_mm"):
            assert result.value(measure) == 321
        assert result.nsd_1mm == result.nsd_2mm == result.lesion_f1 == 0


def test_both_empty() -> None:
    empty = np.zeros((3, 3, 3), bool)
    nothing = scored(empty, empty, structures={"jaw": ~empty})
    assert nothing.both_empty and not nothing.missed
    for measure in ("hd95_mm", "assd_mm", "masd_mm", "nsd_1mm", "nsd_2mm"):
        assert math.isnan(nothing.value(measure))
    for measure in ("dice", "lesion_precision", "lesion_recall", "lesion_f1"):
        assert nothing.value(measure) == 1
    assert nothing.volume_error_ml == 0 and nothing.structures_ml == {"jaw": 0.0}


def test_false_positives_inside_structures() -> None:
    prediction, truth, near, far = np.zeros((4, 10, 10, 10), bool)
    prediction[2:6, 2:6, 2:6], truth[2:4, 2:6, 2:6] = True, True  # 32 voxels beyond the truth
    near[3:5], far[8:] = True, True  # `near` holds 16 of them, and some of the truth
    result = scored(prediction, truth, structures={"cord": near, "stem": far})
    assert result.structures_ml == pytest.approx({"cord": 16 * 0.006, "stem": 0.0})
    marked = {"cord": near.astype(np.uint8) * 3}
    assert scored(prediction, truth, structures=marked).structures_ml["cord"] > 0


def test_lesion_shares_follow_the_counts_and_the_conventions_of_overlaps() -> None:
    case = made_up("a", lesions_truth=4, lesions_found=3, lesions_pred=6, lesions_right=2)
    assert (case.lesion_recall, case.lesion_precision) == (3 / 4, 2 / 6)
    assert case.lesion_f1 == pytest.approx(2 * (3 / 4) * (2 / 6) / (3 / 4 + 2 / 6))
    for truth, pred, expected in ((0, 0, 1.0), (2, 0, 0.0), (0, 2, 0.0)):
        case = made_up(
            "a", lesions_truth=truth, lesions_found=0, lesions_pred=pred, lesions_right=0
        )
        shares = case.lesion_precision, case.lesion_recall, case.lesion_f1
        assert shares == (expected,) * 3


def test_every_named_measure_has_a_value_and_no_other_name_has() -> None:
    case = made_up("a", volume_pred_ml=1.0, volume_truth_ml=3.5)
    assert all(isinstance(case.value(name), float) for name in MEASURES + MORE_MEASURES)
    assert (case.value("volume_error_ml"), case.value("volume_error_abs_ml")) == (-2.5, 2.5)
    with pytest.raises(ValueError, match="'diagonal_mm' is no measure"):
        case.value("diagonal_mm")


def test_bad_arguments_are_refused() -> None:
    mask = np.ones((3, 3, 3), bool)
    with pytest.raises(VolumeError, match="shape"):
        scored(mask, mask[:2])
    with pytest.raises(VolumeError, match="'cord' of case c1 has shape"):
        scored(mask, mask, structures={"cord": mask[:2]})
    with pytest.raises(VolumeError, match="3-D"):
        score_case(mask[0], mask[0], spacing_mm=(1, 1), case="c", patient="p", task="t")


MASK = arrays(np.bool_, (4, 3, 5), elements=st.booleans(), fill=st.just(False))


@settings(deadline=None, max_examples=25)
@given(MASK, MASK, st.tuples(*[st.tuples(st.integers(0, 5), st.integers(0, 5))] * 3))
def test_background_around_a_case_changes_nothing(
    prediction: np.ndarray, truth: np.ndarray, around: tuple
) -> None:
    structures = {"half": np.indices(truth.shape)[0] < 2}
    near = scored(prediction, truth, structures=structures, diagonal_mm=50.0)
    wide = scored(
        np.pad(prediction, around),
        np.pad(truth, around),
        structures={name: np.pad(mask, around) for name, mask in structures.items()},
        diagonal_mm=50.0,
    )
    ours, theirs = dataclasses.asdict(near), dataclasses.asdict(wide)
    for name in ours:
        np.testing.assert_equal(ours[name], theirs[name], name)
