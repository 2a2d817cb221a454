"""The longest diameter against all pairs of voxels, on solids, planes, lines and points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from rtsam_jax.metrics.diameter import longest_diameter

SKEWED = np.array([[0.9, 0.1, 0.0, 5], [-0.2, 1.1, 0.3, -8], [0.1, 0.0, 2.5, 40], [0, 0, 0, 1.0]])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    share=st.sampled_from([0.02, 0.2, 1.0]),
)
def test_it_is_the_largest_of_all_distances(seed: int, shape, share: float) -> None:
    mask = np.random.default_rng(seed).random(shape) < share
    centres = np.argwhere(mask) @ SKEWED[:3, :3].T
    expected = pdist(centres).max() if len(centres) > 1 else 0.0
    assert longest_diameter(mask, SKEWED) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(
    directions=st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=1, max_size=2),
    steps=st.integers(2, 5),
)
def test_flat_and_straight_masks_have_one_too(directions, steps: int) -> None:
    mask = np.zeros((41, 41, 41), bool)
    for weights in np.ndindex(*[steps] * len(directions)):
        mask[tuple(20 + np.array(weights) @ np.array(directions))] = True
    centres = np.argwhere(mask) @ SKEWED[:3, :3].T
    expected = pdist(centres).max() if len(centres) > 1 else 0.0
    assert longest_diameter(mask, SKEWED) == pytest.approx(expected, rel=1e-12)


def test_many_corners_are_compared_in_parts() -> None:
    index = np.indices((40, 40, 40)).reshape(3, -1).T - 19.5
    ball = (np.linalg.norm(index, axis=1) < 19.5).reshape(40, 40, 40)
    apart = 2 * np.linalg.norm(index[ball.ravel()], axis=1).max()  # it is its own mirror image
    assert longest_diameter(ball, np.eye(4)) == pytest.approx(apart, rel=1e-12)
