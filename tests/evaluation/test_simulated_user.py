"""Where simulated users click."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.evaluation.simulated_user import (
    CentreUser,
    Click,
    IdealUser,
    NoisyUser,
    User,
    error_centre,
)

SHAPE = (12, 13, 14)
USERS = (CentreUser(), IdealUser(4), NoisyUser(2.0, 5.0, 0.5))


def cube(*corner: int, edge: int) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(at, at + edge) for at in corner)] = True
    return mask


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_centre_of_the_largest_error() -> None:
    assert error_centre(np.zeros(SHAPE, bool)) is None
    assert error_centre(cube(1, 2, 3, edge=3)) == (2, 3, 4)
    assert error_centre(cube(1, 1, 1, edge=3) | cube(6, 6, 6, edge=5)) == (8, 8, 8)
    # Beyond the volume all is outside: the corner itself is not the deepest place.
    assert error_centre(cube(0, 0, 0, edge=5)) == (2, 2, 2)


def test_voxels_that_share_a_corner_are_one_error() -> None:
    chain = np.zeros(SHAPE, bool)
    chain[[1, 2, 3], [1, 2, 3], [1, 2, 3]] = True
    centre = error_centre(chain | np.roll(cube(8, 8, 8, edge=1), 1, 0))
    assert centre is not None and chain[centre]


def test_a_hollow_error_is_clicked_in_its_wall() -> None:
    shell = cube(1, 1, 1, edge=9) & ~cube(4, 4, 4, edge=3)
    centre = error_centre(shell)
    assert centre is not None and shell[centre]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.6))
def test_every_click_lies_within_reach(seed: int, density: float) -> None:
    draw = rng(seed)
    prediction, truth, reach = (draw.random(SHAPE) < density for _ in range(3))
    wrong = (prediction != truth) & reach
    for user in USERS:
        clicks = user.propose(prediction, truth, reach, rng(seed))
        assert bool(clicks) == bool(wrong.any())
        assert clicks == user.propose(prediction, truth, reach, rng(seed))
        for click in clicks:
            assert reach[click.voxel]
            if not isinstance(user, NoisyUser):
                assert wrong[click.voxel] and click.positive == truth[click.voxel]


@pytest.mark.parametrize("user", USERS, ids=lambda user: user.name)
def test_nothing_is_clicked_where_nothing_within_reach_is_wrong(user: User) -> None:
    truth = cube(1, 1, 1, edge=4)
    everywhere = np.ones(SHAPE, bool)
    assert user.propose(truth, truth, everywhere, rng()) == []
    assert user.propose(np.zeros(SHAPE, bool), truth, ~truth, rng()) == []


def test_missed_voxels_get_positive_and_excess_ones_negative_clicks() -> None:
    mask, nothing, everywhere = cube(1, 1, 1, edge=4), np.zeros(SHAPE, bool), np.ones(SHAPE, bool)
    for user in USERS[:2]:
        assert all(c.positive for c in user.propose(nothing, mask, everywhere, rng()))
        assert not any(c.positive for c in user.propose(mask, nothing, everywhere, rng()))


def test_the_ideal_user_tries_the_centre_and_others() -> None:
    nothing, everywhere = np.zeros(SHAPE, bool), np.ones(SHAPE, bool)
    truth = cube(2, 2, 2, edge=4)
    clicks = IdealUser(8).propose(nothing, truth, everywhere, rng())
    assert clicks[:1] == CentreUser().propose(nothing, truth, everywhere, rng())
    assert len({click.voxel for click in clicks}) == 8
    few = IdealUser(8).propose(nothing, cube(2, 2, 2, edge=1), everywhere, rng())
    assert few == [Click((2, 2, 2), True)]
    assert IdealUser(1).propose(nothing, truth, everywhere, rng()) == clicks[:1]


def test_a_noisy_user_without_noise_is_the_centre_user() -> None:
    nothing, everywhere = np.zeros(SHAPE, bool), np.ones(SHAPE, bool)
    truth = cube(2, 2, 2, edge=5)
    [centre] = CentreUser().propose(nothing, truth, everywhere, rng())
    assert NoisyUser(2.0, 0.0, 0.0).propose(nothing, truth, everywhere, rng()) == [centre]
    [wrong] = NoisyUser(2.0, 0.0, 1.0).propose(nothing, truth, everywhere, rng())
    assert wrong == Click(centre.voxel, False)


def test_noise_has_the_size_in_mm_and_the_rate_that_were_asked_for() -> None:
    shape, spacing = (41, 41, 41), 1.5
    truth = np.zeros(shape, bool)
    truth[20, 20, 20] = True
    user, draw = NoisyUser(spacing, 6.0, 0.25), rng()
    nothing, everywhere = np.zeros(shape, bool), np.ones(shape, bool)
    clicks = [user.propose(nothing, truth, everywhere, draw)[0] for _ in range(600)]
    shifts = spacing * (np.array([click.voxel for click in clicks]) - 20)
    assert np.sqrt((shifts**2).sum(1).mean()) == pytest.approx(6.0, rel=0.08)
    assert np.abs(shifts.mean(0)).max() < 0.6
    assert np.mean([not click.positive for click in clicks]) == pytest.approx(0.25, abs=0.06)
