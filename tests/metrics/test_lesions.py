"""Lesion-wise detection: what is a lesion, what finds it, and that order does not matter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rtsam_jax.errors import VolumeError
from rtsam_jax.metrics.lesions import LesionCounts, lesion_counts

SHAPE = (14, 14, 14)


def cubes(*corners: tuple[int, int, int], edge: int = 3) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    for i, j, k in corners:
        mask[i : i + edge, j : j + edge, k : k + edge] = True
    return mask


def test_found_missed_and_invented_lesions() -> None:
    truth = cubes((0, 0, 0), (6, 0, 0), (0, 6, 0))
    prediction = cubes((1, 0, 0), (9, 9, 9), (9, 4, 9), edge=2)
    assert lesion_counts(prediction, truth) == LesionCounts(truth=3, prediction=3, found=1, right=1)


def test_touching_corners_make_one_lesion() -> None:
    assert lesion_counts(cubes((0, 0, 0), (3, 3, 3)), cubes((0, 0, 0))).prediction == 1
    assert lesion_counts(cubes((0, 0, 0), (4, 4, 4)), cubes((0, 0, 0))).prediction == 2


@pytest.mark.parametrize(("covered", "found"), [(0, 0), (9, 0), (10, 1), (100, 1)])
def test_a_tenth_of_a_lesion_finds_it(covered: int, found: int) -> None:
    truth, prediction = np.zeros((2, 20, 20, 1), bool)
    truth[5:15, 5:15] = True  # 100 voxels
    prediction.reshape(-1)[np.flatnonzero(truth)[:covered]] = True
    counts = lesion_counts(prediction, truth)
    assert (counts.truth, counts.found) == (1, found)


def test_one_prediction_over_two_lesions_finds_both_and_pieces_are_all_right() -> None:
    two, cover = cubes((1, 1, 1), (1, 1, 6)), np.zeros(SHAPE, bool)
    cover[1:4, 1:4, 1:9] = True
    assert lesion_counts(cover, two) == LesionCounts(2, 1, 2, 1)
    assert lesion_counts(two, cover) == LesionCounts(1, 2, 1, 2)


def test_a_flood_is_not_right_though_it_finds() -> None:
    truth = cubes((5, 5, 5))
    assert lesion_counts(np.ones(SHAPE, bool), truth) == LesionCounts(1, 1, 1, 0)


def test_empty_masks() -> None:
    empty, truth = np.zeros(SHAPE, bool), cubes((1, 1, 1))
    assert lesion_counts(empty, empty) == LesionCounts(0, 0, 0, 0)
    assert lesion_counts(empty, truth) == LesionCounts(1, 0, 0, 0)
    assert lesion_counts(truth, empty) == LesionCounts(0, 1, 0, 0)
    with pytest.raises(VolumeError, match="shape"):
        lesion_counts(truth, truth[1:])


MASK = arrays(np.bool_, (5, 4, 5), elements=st.booleans(), fill=st.just(False))


@settings(deadline=None, max_examples=30)
@given(MASK, MASK, st.integers(0, 4))
def test_laws(prediction: np.ndarray, truth: np.ndarray, around: int) -> None:
    counts = lesion_counts(prediction, truth)
    swapped = lesion_counts(truth, prediction)
    assert (counts.truth, counts.found) == (swapped.prediction, swapped.right)
    assert 0 <= counts.found <= counts.truth and 0 <= counts.right <= counts.prediction
    assert lesion_counts(np.pad(prediction, around), np.pad(truth, around)) == counts
    own = lesion_counts(truth, truth)
    assert own.truth == own.prediction == own.found == own.right
