"""Surface distances: closed forms, edges of the volume, and that the crop changes nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from rtsam_jax.errors import VolumeError
from rtsam_jax.metrics.surface import assd, border, hd95, masd, surface_distances
from tests.metrics.masks import ISOTROPIC, UNEQUAL, ball, ball_distances, blob

HALF_MM = (0.5, 0.5, 0.5)


def test_two_voxels() -> None:
    a, b = np.zeros((2, 9, 9, 9), bool)
    a[1, 2, 3] = b[3, 2, 7] = True
    expected = math.hypot(2 * 3.0, 4 * 1.3)
    for measure in (hd95, assd, masd):
        assert measure(a, b, spacing_mm=UNEQUAL) == pytest.approx(expected)


def test_parallel_plates() -> None:
    a, b = np.zeros((2, 12, 6, 6), bool)
    a[2], b[9] = True, True
    assert hd95(a, b, spacing_mm=UNEQUAL) == pytest.approx(21.0)
    assert assd(a, b, spacing_mm=UNEQUAL) == pytest.approx(21.0)


def test_a_shifted_square() -> None:
    # A plane of edge 2 (all surface), shifted by one within the plane: half the voxels coincide.
    a, b = np.zeros((2, 5, 8, 8), bool)
    a[2, 2:4, 2:4], b[2, 3:5, 2:4] = True, True
    assert assd(a, b, spacing_mm=(1, 2, 1)) == pytest.approx(1.0)  # half 0 mm, half 2 mm
    assert hd95(a, b, spacing_mm=(1, 2, 1)) == pytest.approx(2.0)


def test_a_shifted_cube() -> None:
    # Edge 10, moved by 2: of its 10^3 - 8^3 surface voxels, the 100 of the face left behind are 2
    # away, the ring of 36 next to it 1. Of the face inside the other cube, the ring coincides, the
    # 28 voxels next to it are 1 away and the 36 others 2.
    a, b = np.zeros((2, 16, 14, 14), bool)
    a[2:12, 2:12, 2:12], b[4:14, 2:12, 2:12] = True, True
    ours = surface_distances(a, b, spacing_mm=ISOTROPIC)
    for distances in ours:
        assert dict(zip(*np.unique(distances, return_counts=True), strict=True)) == {
            0.0: 488 - 200,
            1.0: 64,
            2.0: 136,
        }
    assert (ours.hd95, ours.assd, ours.masd) == pytest.approx((2.0, 336 / 488, 336 / 488))


def test_concentric_balls() -> None:
    inner, outer = ball(8, HALF_MM), ball(12, HALF_MM)
    ours = surface_distances(inner, outer, spacing_mm=HALF_MM)
    assert ours.hd95 == pytest.approx(4, abs=0.5)
    assert (ours.assd, ours.masd) == pytest.approx((4, 4), abs=0.25)


@pytest.mark.parametrize("shift", [2.0, 5.0])
def test_a_shifted_ball(shift: float) -> None:
    still, moved = ball(12, HALF_MM), ball(12, HALF_MM, shift=(0, shift, 0))
    exact = ball_distances(12, shift)
    ours = surface_distances(still, moved, spacing_mm=HALF_MM)
    assert ours.hd95 == pytest.approx(np.percentile(exact, 95), abs=0.5)
    assert (ours.assd, ours.masd) == pytest.approx((exact.mean(), exact.mean()), abs=0.2)


def test_percentile_is_linear_and_the_maximum_of_both_directions() -> None:
    # From a single voxel to a rod along one axis, and back: distances 0, 1, ..., 10.
    point, rod = np.zeros((2, 15, 3, 3), bool)
    point[2, 1, 1], rod[2:13, 1, 1] = True, True
    assert hd95(point, rod, spacing_mm=ISOTROPIC) == pytest.approx(9.5)
    assert hd95(rod, point, spacing_mm=ISOTROPIC) == pytest.approx(9.5)
    # Pooled: (0 + 0 + 1 + ... + 10) / 12; the mean of the directed means is (0 + 5) / 2.
    assert assd(point, rod, spacing_mm=ISOTROPIC) == pytest.approx(55 / 12)
    assert masd(point, rod, spacing_mm=ISOTROPIC) == pytest.approx(2.5)


def test_a_mask_has_a_surface_where_the_volume_ends() -> None:
    full, core = np.ones((5, 5, 5), bool), np.zeros((5, 5, 5), bool)
    core[2, 2, 2] = True
    assert surface_distances(full, core, spacing_mm=ISOTROPIC).from_prediction.size == 125 - 27
    assert hd95(full, core, spacing_mm=ISOTROPIC) == pytest.approx(math.sqrt(12))


def test_empty_masks() -> None:
    empty, full = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    for measure in (hd95, assd, masd):
        assert math.isnan(measure(empty, empty, spacing_mm=ISOTROPIC))
        assert math.isinf(measure(empty, full, spacing_mm=ISOTROPIC))
        assert math.isinf(measure(full, empty, spacing_mm=ISOTROPIC))
        assert measure(full, full, spacing_mm=ISOTROPIC) == 0


def test_bad_arguments_are_refused() -> None:
    mask = np.ones((3, 3, 3), bool)
    with pytest.raises(VolumeError, match="shape"):
        hd95(mask, mask[:2], spacing_mm=ISOTROPIC)
    with pytest.raises(TypeError, match="spacing_mm"):
        hd95(mask, mask)
    for spacing in ((1, 1), (1, 1, 0), (1, 1, -2), (1, 1, math.nan), "abc", (1, (1, 2), 1)):
        with pytest.raises(VolumeError, match="spacing_mm"):
            hd95(mask, mask, spacing_mm=spacing)


MASK = arrays(np.bool_, (4, 3, 5), elements=st.booleans()).filter(np.any)


@settings(deadline=None, max_examples=30)
@given(MASK, MASK, st.sampled_from([0.25, 2.0, 10.0]))
def test_laws(a: np.ndarray, b: np.ndarray, scale: float) -> None:
    ours = surface_distances(a, b, spacing_mm=UNEQUAL)
    swapped = surface_distances(b, a, spacing_mm=UNEQUAL)
    assert ours.hd95 == swapped.hd95
    assert (ours.assd, ours.masd) == pytest.approx((swapped.assd, swapped.masd))
    scaled = surface_distances(a, b, spacing_mm=scale * np.array(UNEQUAL))
    assert scaled.hd95 == pytest.approx(scale * ours.hd95)
    assert (scaled.assd, scaled.masd) == pytest.approx((scale * ours.assd, scale * ours.masd))
    assert hd95(a, a, spacing_mm=UNEQUAL) == 0


def of_the_whole_volume(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Directed distances by a distance transform of everything."""
    distances = ndimage.distance_transform_edt(~border(end), sampling=UNEQUAL)
    return distances[border(start)]


@settings(deadline=None, max_examples=30)
@given(
    MASK, MASK, st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=3)
)
def test_the_crop_changes_no_distance(a: np.ndarray, b: np.ndarray, around: list) -> None:
    wide = [np.pad(mask, around) for mask in (a, b)]
    ours = surface_distances(*wide, spacing_mm=UNEQUAL)
    np.testing.assert_array_equal(ours.from_prediction, of_the_whole_volume(wide[0], wide[1]))
    np.testing.assert_array_equal(ours.from_truth, of_the_whole_volume(wide[1], wide[0]))


def test_the_surroundings_do_not_matter() -> None:
    a, b = blob(0), blob(1)
    wide = [np.pad(mask, ((9, 2), (0, 7), (5, 5))) for mask in (a, b)]
    for measure in (hd95, assd, masd):
        assert measure(*wide, spacing_mm=UNEQUAL) == measure(a, b, spacing_mm=UNEQUAL)
