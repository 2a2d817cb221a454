"""Overlap measures: closed forms, the empty conventions, and laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rtsam_jax.errors import VolumeError
from rtsam_jax.metrics.overlap import dice, iou, precision, recall

ALL = (dice, iou, precision, recall)
MASK = arrays(np.bool_, (3, 4, 2), elements=st.booleans())


def cube(shape: tuple[int, int, int], start: int, size: int) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[start : start + size, 2 : 2 + size, 2 : 2 + size] = True
    return mask


def test_shifted_cubes() -> None:
    # Cubes of edge 6, moved by 2 along one axis: 4 of 6 planes are shared.
    truth, prediction = cube((14, 10, 10), 2, 6), cube((14, 10, 10), 4, 6)
    assert dice(prediction, truth) == pytest.approx(4 / 6)
    assert iou(prediction, truth) == pytest.approx(4 / 8)
    assert precision(prediction, truth) == pytest.approx(4 / 6)
    assert recall(prediction, truth) == pytest.approx(4 / 6)


def test_precision_divides_by_the_prediction_and_recall_by_the_truth() -> None:
    truth, prediction = cube((10, 10, 10), 2, 4), cube((10, 10, 10), 2, 2)
    assert precision(prediction, truth) == 1
    assert recall(prediction, truth) == pytest.approx(8 / 64)
    assert dice(prediction, truth) == pytest.approx(16 / 72)


@pytest.mark.parametrize("measure", ALL)
def test_empty_masks(measure) -> None:
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    assert measure(empty, empty) == 1
    assert measure(empty, full) == 0
    assert measure(full, empty) == 0
    assert measure(full, full) == 1


@pytest.mark.parametrize("measure", ALL)
def test_a_mask_is_whatever_is_not_zero(measure) -> None:
    truth = cube((14, 10, 10), 2, 6)
    prediction = cube((14, 10, 10), 3, 6)
    expected = measure(prediction, truth)
    assert measure(prediction.astype(np.uint8) * 255, truth.astype(np.float32)) == expected


@pytest.mark.parametrize("measure", ALL)
def test_bad_masks_are_refused(measure) -> None:
    mask = np.ones((3, 3, 3), bool)
    with pytest.raises(VolumeError, match="shape"):
        measure(mask, mask[:2])
    with pytest.raises(VolumeError, match="NaN"):
        measure(np.full((3, 3, 3), np.nan), mask)


@settings(deadline=None, max_examples=40)
@given(MASK, MASK)
def test_laws(prediction: np.ndarray, truth: np.ndarray) -> None:
    d, j = dice(prediction, truth), iou(prediction, truth)
    assert d == pytest.approx(2 * j / (1 + j))
    assert dice(truth, prediction) == d
    assert precision(prediction, truth) == recall(truth, prediction)
    assert j <= min(precision(prediction, truth), recall(prediction, truth)) + 1e-12
    assert (d == 1) == bool((prediction == truth).all())
