"""The area of surface elements: boxes exactly, balls nearly, whatever way the mask is turned."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rtsam_jax.metrics.surface_area import cube_codes, element_areas, on_surface
from tests.metrics.masks import SPACINGS, UNEQUAL, ball


def area(mask: np.ndarray, spacing: tuple[float, ...]) -> float:
    """Of the whole surface in mm2."""
    return float(element_areas(np.array(spacing))[cube_codes(mask)].sum())


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("count", [(1, 1, 1), (4, 1, 1), (5, 3, 2)])
def test_a_box_has_faces_bevelled_edges_and_cut_corners(
    count: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    # Between its outer voxel centres a face is flat; each edge is bevelled and each corner cut off
    # half-way to the neighbouring voxels.
    long = [(n - 1) * s for n, s in zip(count, spacing, strict=True)]
    expected = 0.0
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        expected += 2 * long[j] * long[k] + 4 * long[i] * math.hypot(spacing[j], spacing[k]) / 2
    x, y, z = spacing
    expected += 8 * math.hypot(y * z, x * z, x * y) / 8
    mask = np.ones(count, bool)
    assert area(mask, spacing) == pytest.approx(expected)
    assert area(np.pad(mask, 2), spacing) == pytest.approx(expected)


def test_the_area_of_a_ball_is_a_little_too_large() -> None:
    # The staircase of voxels is cut, not smoothed: the surface stays rough.
    found = area(ball(12, (0.5, 0.5, 0.5)), (0.5, 0.5, 0.5))
    assert 1.0 < found / (4 * math.pi * 12**2) < 1.12


def test_only_mixed_cubes_hold_surface() -> None:
    areas = element_areas(np.array(UNEQUAL))
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(on_surface(codes), areas > 0)
    np.testing.assert_allclose(areas, areas[::-1])  # a hole has the surface of what would fill it


@pytest.mark.parametrize("spacing", SPACINGS)
def test_half_spaces_along_an_axis_and_a_diagonal_are_flat(
    spacing: tuple[float, float, float],
) -> None:
    areas = element_areas(np.array(spacing))
    x, y, z = spacing
    assert areas[cube_codes(np.ones((2, 2, 2), bool))[0, 1, 1]] == pytest.approx(y * z)
    steps = np.indices((6, 6, 4))
    # Away from the array's ends: cubes of one and of three columns inside, cut alike.
    inner = areas[cube_codes(steps[0] + steps[1] < 6)[2:5, 2:5, 2]]
    assert inner[inner > 0] == pytest.approx(math.hypot(x, y) / 2 * z)


MASK = arrays(np.bool_, (3, 4, 3), elements=st.booleans())


@settings(deadline=None, max_examples=30)
@given(MASK, st.permutations(range(3)), st.lists(st.booleans(), min_size=3, max_size=3))
def test_a_turned_mask_has_the_same_area(mask: np.ndarray, order: list, flipped: list) -> None:
    turned = np.flip(mask.transpose(order), [axis for axis in range(3) if flipped[axis]])
    spacing = tuple(UNEQUAL[axis] for axis in order)
    assert area(turned, spacing) == pytest.approx(area(mask, UNEQUAL))


@settings(deadline=None, max_examples=20)
@given(MASK)
def test_the_area_grows_with_the_square_of_the_scale(mask: np.ndarray) -> None:
    doubled = tuple(2 * s for s in UNEQUAL)
    assert area(mask, doubled) == pytest.approx(4 * area(mask, UNEQUAL))


@settings(deadline=None, max_examples=20)
@given(MASK)
def test_a_cavity_has_the_surface_of_what_would_fill_it(mask: np.ndarray) -> None:
    block = np.ones(np.add(mask.shape, 4), bool)
    hollow = block & ~np.pad(mask, 2)
    assert area(hollow, UNEQUAL) == pytest.approx(area(block, UNEQUAL) + area(mask, UNEQUAL))
