"""Surface Dice at a tolerance: closed forms, conventions of empty masks, laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rtsam_jax.errors import VolumeError
from rtsam_jax.metrics.nsd import nsd, surface_elements
from tests.metrics.masks import ISOTROPIC, UNEQUAL, ball, ball_distances, blob

HALF_MM = (0.5, 0.5, 0.5)


def test_a_shifted_box() -> None:
    # Moved by one voxel along the first axis. Below a tolerance of that voxel, the whole face left
    # behind disagrees and, of the face inside the other box, all but its bevels and corners.
    a, b = np.zeros((2, 12, 10, 9), bool)
    a[2:8, 2:7, 2:6], b[3:9, 2:7, 2:6] = True, True  # 6 x 5 x 4 voxels
    flat, bevel, cut = 4 * 3, 2 * (4 + 3) * math.sqrt(0.5), 4 * math.sqrt(3) / 8
    box = 2 * (5 * 4 + 5 * 3 + 4 * 3) + 4 * (5 + 4 + 3) * math.sqrt(0.5) + math.sqrt(3)
    below = nsd(a, b, spacing_mm=ISOTROPIC, tolerance_mm=0.99)
    assert below == pytest.approx(1 - (2 * flat + bevel + cut) / box)
    assert nsd(a, b, spacing_mm=ISOTROPIC, tolerance_mm=1.0) == 1


def test_concentric_balls_agree_from_their_distance_on() -> None:
    inner, outer = ball(8, HALF_MM), ball(12, HALF_MM)
    elements = surface_elements(inner, outer, spacing_mm=HALF_MM)
    assert elements.nsd(3.2) == 0
    assert elements.nsd(4.8) == 1


@pytest.mark.parametrize("tolerance", [1.0, 2.0, 4.0])
def test_a_shifted_ball(tolerance: float) -> None:
    still, moved = ball(12, HALF_MM), ball(12, HALF_MM, shift=(0, 5, 0))
    exact = (ball_distances(12, 5) <= tolerance).mean()
    found = nsd(still, moved, spacing_mm=HALF_MM, tolerance_mm=tolerance)
    assert found == pytest.approx(exact, abs=0.06)


def test_area_counts_not_elements() -> None:
    # Boxes that differ in height only, in slices of 5 mm: an element of a side has 5 mm2, of the
    # top 1 mm2. What disagrees is each top within its rim, the rim of the higher one, and its sides
    # on the two levels between.
    spacing = (1.0, 1.0, 5.0)
    a, b = np.zeros((2, 12, 12, 12), bool)
    a[2:10, 2:10, 2:6], b[2:10, 2:10, 2:9] = True, True
    top, upright = 7 * 7, 4 * (7 * 5 + 5 * math.sqrt(0.5))  # of a level
    rim = 4 * 7 * math.hypot(1, 5) / 2 + 4 * math.hypot(5, 5, 1) / 8
    low, high = (2 * (top + rim) + levels * upright for levels in (3, 6))
    expected = 1 - (2 * top + rim + 2 * upright) / (low + high)
    assert nsd(a, b, spacing_mm=spacing, tolerance_mm=0.0) == pytest.approx(expected)


def test_empty_masks() -> None:
    empty, full = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    one = dict(spacing_mm=ISOTROPIC, tolerance_mm=1e9)
    assert math.isnan(nsd(empty, empty, **one))
    assert nsd(empty, full, **one) == nsd(full, empty, **one) == 0
    assert nsd(full, full, spacing_mm=ISOTROPIC, tolerance_mm=0.0) == 1


def test_bad_arguments_are_refused() -> None:
    mask = np.ones((3, 3, 3), bool)
    with pytest.raises(VolumeError, match="shape"):
        surface_elements(mask, mask[:2], spacing_mm=ISOTROPIC)
    with pytest.raises(VolumeError, match="3-D"):
        surface_elements(mask[0], mask[0], spacing_mm=(1.0, 1.0))
    with pytest.raises(VolumeError, match="spacing_mm"):
        surface_elements(mask, mask, spacing_mm=(1.0, 0.0, 1.0))


MASK = arrays(np.bool_, (4, 3, 5), elements=st.booleans()).filter(np.any)


@settings(deadline=None, max_examples=30)
@given(MASK, MASK, st.sampled_from([0.25, 2.0, 8.0]))
def test_laws(a: np.ndarray, b: np.ndarray, scale: float) -> None:
    ours = surface_elements(a, b, spacing_mm=UNEQUAL)
    swapped = surface_elements(b, a, spacing_mm=UNEQUAL)
    scaled = surface_elements(a, b, spacing_mm=scale * np.array(UNEQUAL))
    shares = [ours.nsd(tolerance) for tolerance in (0.0, 0.7, 1.3, 2.0, 4.0)]
    assert shares == sorted(shares) and 0 <= shares[0] and ours.nsd(100.0) == pytest.approx(1)
    for tolerance, share in zip((0.0, 0.7, 1.3, 2.0, 4.0), shares, strict=True):
        assert swapped.nsd(tolerance) == pytest.approx(share)
        assert scaled.nsd(scale * tolerance) == pytest.approx(share)
    assert nsd(a, a, spacing_mm=UNEQUAL, tolerance_mm=0.0) == pytest.approx(1)


@settings(deadline=None, max_examples=20)
@given(MASK, MASK, st.tuples(*[st.tuples(st.integers(0, 6), st.integers(0, 6))] * 3))
def test_the_crop_changes_nothing(a: np.ndarray, b: np.ndarray, around: tuple) -> None:
    near = surface_elements(a, b, spacing_mm=UNEQUAL)
    wide = surface_elements(np.pad(a, around), np.pad(b, around), spacing_mm=UNEQUAL)
    for ours, theirs in zip(near, wide, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_blobs_agree_in_part() -> None:
    # That the laws above hold of more than zeros and ones.
    assert 0.2 < nsd(blob(0), blob(1), spacing_mm=ISOTROPIC, tolerance_mm=1.0) < 0.9
