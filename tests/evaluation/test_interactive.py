"""A case corrected click by click, with a painter in the model's place."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.data.cases import Case
from rtsam_jax.data.grid import Grid
from rtsam_jax.data.nifti import Volume
from rtsam_jax.data.preprocess import to_native
from rtsam_jax.evaluation.click_model import Asked, Encoded, Turn
from rtsam_jax.evaluation.interactive import OpenCase, interact, label_mask, open_case, play
from rtsam_jax.evaluation.simulated_user import CentreUser, Click, IdealUser, NoisyUser, User
from rtsam_jax.metrics.interactive import noc

SIZE, SPACING = 12, 2.0
AFFINE = np.diag([SPACING, SPACING, SPACING, 1.0])
CASE = Case("one", "p", "orn", Path("image"))


class Painter:
    """Paints a cube of three voxels around each click, or wipes one, in their order."""

    spec = SimpleNamespace(image_size=SIZE)
    accumulate = True

    def __init__(self, clicks: int):
        self.clicks = clicks

    def encode(self, images: Any, rois: Any, text_id: int, table: None) -> Encoded:
        count = len(list(zip(images, rois, strict=True)))
        return Encoded(np.zeros((count, 1)), None, None, np.full(count, text_id))

    def first(self, crops: Encoded) -> Turn:
        n = len(crops.text_id)
        return self._painted(
            np.zeros((n, self.clicks, 3), np.float32), np.full((n, self.clicks), -2, np.int32)
        )

    def answer(self, crops: Encoded, asked: Asked) -> Turn:
        assert len(crops.text_id) == len(asked.labels)
        return self._painted(asked.points, asked.labels)

    def _painted(self, points: np.ndarray, labels: np.ndarray) -> Turn:
        logits = np.full((len(labels), SIZE, SIZE, SIZE, 1), -9, np.float32)
        for canvas, ats, signs in zip(logits, points.astype(int), labels, strict=True):
            for at, sign in zip(ats, signs, strict=True):
                if sign >= 0:
                    canvas[tuple(slice(max(a - 1, 0), a + 2) for a in at)] = 9 if sign else -9
        return Turn(points, labels, logits, np.zeros(len(labels), np.float32), SIZE)


def opened(
    truth: np.ndarray, low: tuple[int, ...], high: tuple[int, ...], clicks: int
) -> tuple[Any, OpenCase]:
    """A case whose dose box is given; its label lies on the model grid."""
    roi, box = np.zeros(truth.shape, np.uint8), np.array([low, high])
    scan: Any = SimpleNamespace(
        image=np.zeros(truth.shape, np.float32),
        grid=Grid(truth.shape, AFFINE),
        background=0.0,
        anchor=box,
        require_dose=lambda **_: (roi, box),
    )
    model: Any = Painter(clicks)
    return model, open_case(model, CASE, scan, Volume(truth, AFFINE), text_id=0)


def cubes(shape: tuple[int, int, int], *centres: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for centre in centres:
        mask[tuple(slice(at - 1, at + 2) for at in centre)] = True
    return mask


def test_three_lesions_take_three_clicks_and_then_the_curve_stays() -> None:
    truth = cubes((20, 20, 20), (6, 6, 6), (6, 6, 12), (12, 12, 12))
    model, case = opened(truth, (5, 5, 5), (13, 13, 13), clicks=5)
    found = interact(model, case, CentreUser(), seed=0)
    assert found.dice == pytest.approx((0, 2 * 27 / (27 + 81), 2 * 54 / (54 + 81), 1, 1, 1))
    assert found.nsd_2mm[0] == 0 and found.nsd_2mm[3:] == (1, 1, 1)
    assert [noc(found.dice, q) for q in (0.5, 0.8, 0.85)] == [1, 2, 3]
    assert [click.number for click in found.clicks] == [1, 2, 3]
    voxels = np.array([click.world_mm for click in found.clicks]) / SPACING
    assert {tuple(v) for v in voxels.tolist()} == {(6, 6, 6), (6, 6, 12), (12, 12, 12)}
    assert all(click.positive for click in found.clicks) and found.out_of_reach == 0


def test_a_wrong_sign_is_mended_by_the_next_click() -> None:
    class Clumsy(User):
        """Marks background first, then as the centre user does."""

        name = "clumsy"
        first = True

        def propose(self, prediction, truth, reach, rng) -> list[Click]:
            clumsy, Clumsy.first = Clumsy.first, False
            if clumsy:
                return [Click((9, 3, 3), True)]
            return CentreUser().propose(prediction, truth, reach, rng)

    truth = cubes((12, 12, 12), (5, 5, 5))
    model, case = opened(truth, (0, 0, 0), (11, 11, 11), clicks=3)
    found = interact(model, case, Clumsy(), seed=0)
    assert found.dice == pytest.approx((0, 0, 2 / 3, 1))
    assert {click.positive for click in found.clicks} == {True, False}


def test_a_click_goes_to_the_crops_that_hold_it_and_to_no_other() -> None:
    truth = cubes((40, 14, 14), (4, 6, 6), (34, 6, 6))
    model, case = opened(truth, (2, 3, 3), (37, 10, 10), clicks=4)
    assert len(case.tiles) > 3
    asked: list[np.ndarray] = []
    answer = model.answer
    model.answer = lambda crops, turn: (
        asked.append(turn.points[:, len(asked)]),
        answer(crops, turn),
    )[1]
    shown = list(play(model, case, CentreUser(), np.random.default_rng(0)))
    assert len(shown) == 3 and shown[0][0] is None
    for (click, _), points in zip(shown[1:], asked, strict=True):
        assert click is not None
        at = np.array(click.voxel) - case.tiles.origins
        held = at[((at >= 0) & (at < SIZE)).all(1)]
        assert 0 < len(held) < len(case.tiles)
        np.testing.assert_array_equal(points, held)  # in the crop's own voxels
    assert ((shown[-1][1] >= 0.5) == case.truth).all()


def test_truth_outside_every_crop_is_told_and_never_clicked() -> None:
    truth = cubes((40, 14, 14), (6, 6, 6), (36, 6, 6), (30, 6, 6))
    model, case = opened(truth, (2, 3, 3), (12, 10, 10), clicks=4)
    assert case.out_of_reach == pytest.approx(2 / 3)
    found = interact(model, case, CentreUser(), seed=0)
    assert found.dice == pytest.approx((0, 0.5, 0.5, 0.5, 0.5)) and len(found.clicks) == 1


def test_the_ideal_user_foresees_what_a_click_does() -> None:
    """A lesion of three by three by nine voxels: no stroke does more than one in its middle row."""
    truth = np.zeros((12, 12, 12), bool)
    truth[4:7, 4:7, 1:10] = True
    firsts = {}
    for user in (CentreUser(), IdealUser(16), IdealUser(1)):
        model, case = opened(truth, (0, 0, 0), (11, 11, 11), clicks=4)
        found = interact(model, case, user, seed=1)
        firsts[user] = found.dice[1]
        assert list(found.dice) == sorted(found.dice)
    assert firsts[IdealUser(16)] >= firsts[CentreUser()] == firsts[IdealUser(1)]


def test_the_same_seed_clicks_the_same_and_another_does_not() -> None:
    truth = cubes((20, 20, 20), (6, 6, 6), (6, 6, 12), (12, 12, 12))
    model, case = opened(truth, (5, 5, 5), (13, 13, 13), clicks=4)
    user = NoisyUser(SPACING, 6.0, 0.3)
    first, again, other = (interact(model, case, user, seed=seed) for seed in (0, 0, 1))
    assert first == again and first.clicks != other.clicks


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_only_the_windows_part_of_the_label_grid_is_resampled(seed: int) -> None:
    """The mask is what the whole model grid would give, on any grid of the label."""
    draw = np.random.default_rng(seed)
    grid = Grid((18, 16, 14), np.diag([2.0, 2.0, 2.0, 1.0]))
    low = draw.integers(0, 4, 3)
    high = np.minimum(low + draw.integers(5, 16, 3), grid.shape)
    probability = np.zeros(grid.shape, np.float32)
    inner = tuple(
        slice(a + (a > 0), b - (b < n)) for a, b, n in zip(low, high, grid.shape, strict=True)
    )
    probability[inner] = draw.random(probability[inner].shape)
    affine = np.diag([*draw.uniform(0.8, 3.5, 3), 1.0])
    affine[:3, :3] = rotation(draw) @ affine[:3, :3]
    affine[:3, 3] = draw.uniform(-6, 6, 3)
    label = Volume(np.zeros(draw.integers(6, 30, 3), bool), affine)
    corner = grid.affine.copy()
    corner[:3, 3] += corner[:3, :3] @ low
    window = Grid(tuple((high - low).tolist()), corner)
    part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    expected = to_native(probability, grid, label) >= 0.5
    np.testing.assert_array_equal(label_mask(window, label)(probability[part]), expected)


def rotation(draw: np.random.Generator) -> np.ndarray:
    """By up to some degrees about a random axis."""
    matrix, _ = np.linalg.qr(np.eye(3) + 0.1 * draw.standard_normal((3, 3)))
    return matrix * np.sign(np.diag(matrix))
