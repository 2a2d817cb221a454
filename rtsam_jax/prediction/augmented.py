"""A case predicted again as it might as well have been given: how far its mask depends on that.

A repeat reverses axes that training reversed, turns and scales the anatomy about each crop's centre
and shifts the sides of the box. Image, ROI and clicks move together; the probability is moved back
before crops are blended. A crop's corners hold what the scan has there, not a fill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from rtsam_jax.evaluation.click_model import Asked, ClickModel, Encoded, Turn
from rtsam_jax.evaluation.scoring import THRESHOLD
from rtsam_jax.evaluation.tiles import Tiles
from rtsam_jax.metrics.overlap import dice
from rtsam_jax.models.text_adapter import TextTable
from rtsam_jax.prompts.clicks import UNUSED

DEGREES = 10.0  # largest angle about each axis
SCALE = 0.05  # largest change of size, as a share
JITTER = 2  # voxels; largest shift of a side of the box

TextPrompt = tuple[TextTable | None, int]  # a table, or None, and the row or task that is told


@dataclass(frozen=True, eq=False)
class Change:
    """One way to give a case. Voxels are counted from a crop's centre."""

    reversed: np.ndarray  # bool [3], axes; left and right change places with the first
    turn: np.ndarray  # float64 [3, 3], rotation and scale
    shift: np.ndarray  # int [2, 3], of the sides of the moved box, voxels

    @classmethod
    def draw(cls, rng: np.random.Generator, axes: Sequence[int]) -> Change:
        """Draws a change that reverses each of some axes with a probability of one half."""
        back_to_front = np.zeros(3, bool)
        back_to_front[list(axes)] = rng.random(len(axes)) < 0.5
        rotation = Rotation.from_euler("xyz", rng.uniform(-DEGREES, DEGREES, 3), degrees=True)
        scale = rng.uniform(1 - SCALE, 1 + SCALE)
        shift = rng.integers(-JITTER, JITTER, (2, 3), endpoint=True)
        return cls(back_to_front, scale * rotation.as_matrix(), shift)

    @property
    def matrix(self) -> np.ndarray:
        """From a moved crop's voxel to that of the crop it was: float64 [3, 3]."""
        return self.turn * np.where(self.reversed, -1.0, 1.0)

    def moved(
        self, volume: np.ndarray, corner: np.ndarray, size: int, *, order: int, fill: float
    ) -> np.ndarray:
        """A crop [size, size, size] of a volume, moved; `fill` beyond the volume.

        Args:
            volume: `[X, Y, Z]`.
            corner: int [3], the first voxel of the crop that is moved.
            size: its edge.
            order: of the interpolation, 0 or 1.
            fill: of the volume's type.
        """
        middle = (size - 1) / 2
        return ndimage.affine_transform(
            volume,
            self.matrix,
            corner + middle - self.matrix.sum(1) * middle,
            (size,) * 3,
            order=order,
            mode="constant",
            cval=fill,
        )

    def returned(self, crop: np.ndarray) -> np.ndarray:
        """A moved crop [S, S, S] back where it was; beyond its faces it is as at them."""
        inverse = np.linalg.inv(self.matrix)
        middle = (len(crop) - 1) / 2
        return ndimage.affine_transform(
            crop, inverse, middle - inverse.sum(1) * middle, order=1, mode="nearest"
        )

    def moved_points(
        self, points: np.ndarray, labels: np.ndarray, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Clicks where the crop's voxels went; those that left the crop are unused.

        Args:
            points: float32 [n, K, 3], voxels of a crop.
            labels: int32 [n, K].
            size: the crop's edge.
        """
        middle = (size - 1) / 2
        at = (points - middle) @ np.linalg.inv(self.matrix).T + middle
        inside = ((at > -0.5) & (at < size - 0.5)).all(-1)
        return at.astype(np.float32), np.where(inside, labels, UNUSED).astype(np.int32)


def agreement(
    model: ClickModel,
    tiles: Tiles,
    turn: Turn,
    probability: np.ndarray,
    text: TextPrompt,
    mirrored: TextPrompt | None,
    *,
    axes: Sequence[int],
    repeats: int,
    seed: int = 0,
    mask: np.ndarray | None = None,
) -> float:
    """Mean Dice of a prediction's mask, on its window, with those of its repeats.

    Two empty masks agree.

    Args:
        model: that made the prediction; a repeat costs it the encoding and decoding of every crop.
        tiles: the case's crops.
        turn: the prediction's; its clicks are given again one by one.
        probability: of the turn, on the window.
        text: that the case is told.
        mirrored: that its left-right mirrored image is told; None: it is never mirrored.
        axes: that may be reversed.
        repeats: how many, at least 1.
        seed: of all that is random.
        mask: `[n, m, m, m, 1]`, the mask prompt of the first pass; None: zeros.
    """
    rng = np.random.default_rng(seed)
    allowed = [axis for axis in axes if axis > 0 or mirrored is not None]
    own = probability >= THRESHOLD
    scores = []
    for _ in range(repeats):
        change = Change.draw(rng, allowed)
        told = mirrored if change.reversed[0] and mirrored is not None else text
        again = repeated(model, tiles, turn, told, change, mask=mask)
        scores.append(dice(again >= THRESHOLD, own))
    return float(np.mean(scores))


def repeated(
    model: ClickModel,
    tiles: Tiles,
    turn: Turn,
    text: TextPrompt,
    change: Change,
    *,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """The probability of a changed case, back on the window: float32.

    Arguments are those of `agreement`. A model that is given only its newest click is given the
    last one alone.
    """
    size, corners = tiles.size, tiles.origins + tiles.low
    table, text_id = text
    scan = tiles.scan
    crops = model.encode(
        (change.moved(scan.image, at, size, order=1, fill=scan.background) for at in corners),
        (change.moved(tiles.roi, at, size, order=0, fill=0) for at in corners),
        text_id,
        table,
    )
    crops = _jittered(crops, change.shift, size)
    if mask is not None:
        side = mask.shape[1]
        nowhere = np.zeros(3, int)
        mask = np.stack(
            [
                change.moved(prompt[..., 0], nowhere, side, order=1, fill=float(mask.min()))
                for prompt in mask
            ]
        )[..., None]
    points, labels = change.moved_points(turn.points, turn.labels, size)
    again = _replayed(model, crops, points, labels, mask)
    return tiles.blended(change.returned(again.crop(row)) for row in range(len(tiles)))


def _jittered(crops: Encoded, shift: np.ndarray, size: int) -> Encoded:
    """Crops whose boxes have moved sides. A side on a face is where the crop ends, not the box."""
    if crops.box is None:
        return crops
    own = (crops.box > 0) & (crops.box < size - 1)
    box = np.where(own, np.clip(crops.box + shift, 0, size - 1), crops.box)
    return crops._replace(box=np.sort(box, axis=1).astype(np.float32))


def _replayed(
    model: ClickModel,
    crops: Encoded,
    points: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray | None,
) -> Turn:
    """Clicks of a whole buffer, given one by one as a user gave them."""
    turn = model.first(crops, mask).with_room(labels.shape[1])
    slots = np.arange(labels.shape[1])
    for slot in np.flatnonzero((labels != UNUSED).any(0)):
        rows = np.flatnonzero(labels[:, slot] != UNUSED)
        given = slots <= slot if model.accumulate else slots == slot
        asked = Asked(
            points[rows], np.where(given, labels[rows], UNUSED).astype(np.int32), turn.low_res[rows]
        )
        turn = turn.updated(rows, model.answer(crops.rows(rows), asked))
    return turn
