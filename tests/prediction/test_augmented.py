"""Repeats of a changed case: nothing is lost on the way there and back, and prompts go with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.data.grid import Grid
from rtsam_jax.evaluation.click_model import Asked, ClickModel, Encoded, Turn
from rtsam_jax.evaluation.tiles import Tiles, tile
from rtsam_jax.prediction.augmented import JITTER, Change, agreement, repeated
from rtsam_jax.prompts.clicks import UNUSED
from tests.models.random_model import random_model
from tests.tiny import tiny_config

SIZE, SLOTS = 32, 4
TEXT, MIRRORED = (None, 0), (None, 1)
AXES = (0, 1, 2)


def tiles_of(image: np.ndarray, low: tuple[int, ...], high: tuple[int, ...]) -> Tiles:
    """An image with a box; crops of 32 voxels."""
    roi, box = np.zeros(image.shape, np.uint8), np.array([low, high])
    roi[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = 1
    x, y, z = image.shape
    scan: Any = SimpleNamespace(
        image=image.astype(np.float32),
        grid=Grid((x, y, z), np.eye(4)),
        background=-1.0,
        anchor=box,
        require_dose=lambda **_: (roi, box),
    )
    return tile(scan, SIZE, name="one")


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> np.ndarray:
    """1 inside, falling to 0 over four voxels: its surface is where it is one half."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    distance = np.linalg.norm(index - np.array(centre), axis=-1)
    return np.clip((radius + 2 - distance) / 4, 0, 1).astype(np.float32)


ONE = tiles_of(ball((44, 40, 42), (15, 22, 20), 7), (8, 12, 12), (27, 27, 30))
SEVERAL = tiles_of(ball((70, 40, 40), (30, 19, 22), 9), (6, 10, 10), (62, 29, 30))


class Shown(Turn):
    """A turn whose `low_res` is its probability."""

    def crop(self, row: int) -> np.ndarray:
        return self.low_res[row]

    def updated(self, rows: np.ndarray, new: Turn) -> Shown:
        probability = self.low_res.copy()
        probability[rows] = new.low_res
        return dataclasses.replace(self, low_res=probability)


class Painter:
    """Its probability is the image where it has no click, else cubes of 9 voxels on positive ones.

    It turns with its input, as no network does exactly.
    """

    accumulate = True

    def __init__(self) -> None:
        self.texts: list[int] = []
        self.boxes: list[np.ndarray] = []

    def encode(
        self, images: Iterable[np.ndarray], rois: Iterable[np.ndarray], text_id: int, table: Any
    ) -> Encoded:
        shown = np.stack(list(images))
        corners = [np.argwhere(roi) for roi in rois]
        box = np.array([(c.min(0), c.max(0)) for c in corners], np.float32)
        self.texts.append(text_id)
        return Encoded(shown, box, np.ones(len(shown), bool), np.full(len(shown), text_id))

    def first(self, crops: Encoded, mask: np.ndarray | None = None) -> Shown:
        assert crops.box is not None
        self.boxes.append(crops.box)
        n = len(crops.embedding)
        nothing = np.zeros((n, SLOTS, 3), np.float32), np.full((n, SLOTS), UNUSED, np.int32)
        return Shown(*nothing, crops.embedding.clip(0, 1), np.zeros(n), SIZE)

    def answer(self, crops: Encoded, asked: Asked) -> Shown:
        painted = np.zeros_like(crops.embedding)
        for canvas, points, labels in zip(painted, asked.points, asked.labels, strict=True):
            for point in np.rint(points[labels == 1]).astype(int):
                canvas[tuple(slice(max(at - 4, 0), at + 5) for at in point)] = 1
        return Shown(asked.points, asked.labels, painted, np.zeros(len(painted)), SIZE)


class Fixed(Painter):
    """Marks the same place in every crop, whatever it is shown."""

    def first(self, crops: Encoded, mask: np.ndarray | None = None) -> Shown:
        turn = super().first(crops, mask)
        place = ball((SIZE,) * 3, (8, 16, 9), 5)
        return dataclasses.replace(turn, low_res=np.repeat(place[None], len(turn.iou), 0))


def opened(tiles: Tiles, model: Any) -> Turn:
    rows = range(len(tiles))
    return model.first(model.encode(map(tiles.image, rows), map(tiles.region, rows), 0, None))


def agreed(model: Any, tiles: Tiles, turn: Turn, **options: Any) -> float:
    probability = tiles.blended(map(turn.crop, range(len(tiles))))
    asked: Any = {"axes": AXES, "repeats": 6, "mirrored": MIRRORED} | options
    return agreement(model, tiles, turn, probability, TEXT, **asked)


def flip(*axes: int) -> Change:
    return Change(np.isin(range(3), axes), np.eye(3), np.zeros((2, 3), int))


@settings(max_examples=16, deadline=None)
@given(st.sets(st.integers(0, 2)), st.integers(4, 9), st.integers(0, 99))
def test_flips_lose_nothing_there_and_back(axes: set[int], size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    volume, corner = rng.standard_normal((12, 13, 14)).astype(np.float32), rng.integers(-2, 6, 3)
    change = flip(*axes)
    kept = flip().moved(volume, corner, size, order=1, fill=-3)
    there = change.moved(volume, corner, size, order=1, fill=-3)
    np.testing.assert_array_equal(there, np.flip(kept, tuple(axes)))
    np.testing.assert_array_equal(change.returned(there), kept)
    points = rng.integers(0, size, (1, 5, 3)).astype(np.float32)
    moved, labels = change.moved_points(points, np.ones((1, 5), np.int32), size)
    assert (labels == 1).all()
    for before, after in zip(points[0].astype(int), moved[0].astype(int), strict=True):
        assert kept[tuple(before)] == there[tuple(after)]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999))
def test_clicks_go_where_the_image_goes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    change = Change.draw(rng, AXES)
    centre = rng.uniform(12, 20, 3)
    volume = ball((SIZE,) * 3, tuple(centre), 5)
    moved = change.moved(volume, np.zeros(3, int), SIZE, order=1, fill=0)
    [[at]], labels = change.moved_points(centre[None, None], np.ones((1, 1), int), SIZE)
    mass = np.stack(np.meshgrid(*[np.arange(SIZE)] * 3, indexing="ij"), -1) * moved[..., None]
    np.testing.assert_allclose(at, mass.sum((0, 1, 2)) / moved.sum(), atol=0.05)
    assert labels.tolist() == [[1]]


def test_a_click_that_leaves_its_crop_is_not_given() -> None:
    quarter = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    change = Change(np.zeros(3, bool), 0.5 * quarter, np.zeros((2, 3), int))
    points = np.array([[[16, 16, 16], [30, 16, 16]]], np.float32)
    _, labels = change.moved_points(points, np.array([[1, 0]], np.int32), SIZE)
    assert labels.tolist() == [[1, UNUSED]]


def test_draws_stay_within_what_is_said() -> None:
    rng = np.random.default_rng(0)
    drawn = [Change.draw(rng, (1,)) for _ in range(200)]
    assert {tuple(change.reversed) for change in drawn} == {(False,) * 3, (False, True, False)}
    scales = [np.cbrt(np.linalg.det(change.turn)) for change in drawn]
    assert 0.95 <= min(scales) < 0.96 and 1.04 < max(scales) <= 1.05
    assert {abs(int(s)) for change in drawn for s in change.shift.flat} == set(range(JITTER + 1))


@pytest.mark.parametrize("tiles", [ONE, SEVERAL], ids=["one crop", "several"])
def test_what_turns_with_its_input_agrees_with_itself(tiles: Tiles) -> None:
    model = Painter()
    assert agreed(model, tiles, opened(tiles, model)) > 0.97
    fixed = Fixed()
    assert agreed(fixed, tiles, opened(tiles, fixed)) < 0.75


@pytest.mark.parametrize("axes", [(0,), (1, 2), AXES])
def test_it_agrees_in_full_where_it_is_only_flipped(axes: tuple[int, ...]) -> None:
    model = Painter()
    turn = opened(SEVERAL, model)
    again = repeated(model, SEVERAL, turn, TEXT, flip(*axes))
    expected = SEVERAL.blended(map(turn.crop, range(len(SEVERAL))))
    np.testing.assert_allclose(again, expected, atol=1e-6)


def test_clicks_are_given_again_where_they_have_gone() -> None:
    model = Painter()
    turn = opened(ONE, model)
    turn = dataclasses.replace(turn, points=turn.points.copy(), labels=turn.labels.copy())
    turn.points[0, :2], turn.labels[0, :2] = [(9, 20, 12), (20, 12, 18)], [1, 1]
    crops = Encoded(np.zeros((1, SIZE, SIZE, SIZE)), None, None, np.zeros(1))
    clicked = model.answer(crops, Asked(turn.points, turn.labels, turn.low_res))
    np.testing.assert_array_equal(
        repeated(model, ONE, clicked, TEXT, flip(0, 2)), ONE.blended(clicked.low_res)
    )
    assert agreed(model, ONE, clicked) > 0.75  # cubes do not turn; flips alone lose nothing


def test_left_and_right_change_places_only_where_the_text_does() -> None:
    model = Painter()
    turn = opened(ONE, model)
    agreed(model, ONE, turn, repeats=12)
    assert set(model.texts) == {0, 1}
    model = Painter()
    agreed(model, ONE, turn, repeats=12, mirrored=None)
    assert set(model.texts) == {0}
    model = Painter()
    agreed(model, ONE, turn, repeats=12, axes=(1, 2))
    assert set(model.texts) == {0}


def test_boxes_move_by_little_and_not_where_the_crop_ends() -> None:
    model = Painter()
    turn = opened(SEVERAL, model)
    [own] = model.boxes
    shift = np.array([(2, -2, 1), (-1, 2, 0)])
    still = Change(np.zeros(3, bool), np.eye(3), shift)
    repeated(model, SEVERAL, turn, TEXT, still)
    moved = model.boxes[-1] - own
    on_face = (own == 0) | (own == SIZE - 1)
    assert on_face.any() and (moved[on_face] == 0).all()
    np.testing.assert_array_equal(moved, np.where(on_face, 0, shift))


def test_unchanged_a_network_says_the_same_again_and_nothing_recompiles() -> None:
    network = random_model(seed=1, tasks=3, mask_channels=32)
    model = ClickModel(*nnx.split(network), tiny_config(), clicks=SLOTS, batch=1)
    rows = range(len(SEVERAL))
    crops = model.encode(map(SEVERAL.image, rows), map(SEVERAL.region, rows), 2)
    turn, logits = model.first(crops), np.float32(3)
    mask = logits * np.sign(turn.low_res)
    turn = model.first(crops, mask)
    for slot, voxel in enumerate([(20, 16, 16), (31, 20, 12)]):
        held, at = SEVERAL.holding(np.array(voxel))
        asked = turn.with_click(held, at, slot == 0, slot, keep=True)
        turn = turn.updated(held, model.answer(crops.rows(held), asked))
    assert {tuple(row) for row in turn.labels.tolist()} >= {(1, 0, UNUSED, UNUSED)}
    again = repeated(model, SEVERAL, turn, (None, 2), flip(), mask=mask)
    own = SEVERAL.blended(map(turn.crop, rows))
    np.testing.assert_allclose(again, own, atol=1e-6)
    other = repeated(model, SEVERAL, turn, (None, 2), flip())
    assert np.abs(other - own).max() > 1e-3  # the mask prompt matters
    agreed(model, SEVERAL, turn, repeats=3)
    assert model._encode._cache_size() == 1 and model._decode._cache_size() == 1
