"""Cases corrected by simulated users, click by click, scored on the label's original grid.

A click goes to every crop that holds its voxel; these are decoded again, the others keep their
answer. The blended probability of all, cut at one half, decides the next error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rtsam_jax.data.cases import Case
from rtsam_jax.data.grid import Grid
from rtsam_jax.data.nifti import Volume
from rtsam_jax.data.preprocess import Preprocessed, label_to_grid
from rtsam_jax.evaluation.click_model import Asked, ClickModel, Encoded, Turn
from rtsam_jax.evaluation.scoring import THRESHOLD
from rtsam_jax.evaluation.simulated_user import Click, User
from rtsam_jax.evaluation.tiles import Tiles, resample_window, tile, whole_mask
from rtsam_jax.metrics.case import score_case
from rtsam_jax.metrics.interactive import Interaction, PlacedClick
from rtsam_jax.metrics.overlap import dice
from rtsam_jax.models.text_adapter import TextTable


@dataclass(frozen=True, eq=False)
class OpenCase:
    """A case whose crops are encoded, on the window of the model grid that they lie in."""

    case: Case
    label: Volume  # on its own grid
    tiles: Tiles
    truth: np.ndarray  # bool, on the window
    reach: np.ndarray  # bool, on the window: in some crop
    out_of_reach: float  # share of the truth on the model grid
    crops: Encoded
    first: Turn

    def probability(self, turn: Turn) -> np.ndarray:
        """All crops blended: float32, on the window."""
        return self.tiles.blended(map(turn.crop, range(len(self.tiles))))


def open_case(
    model: ClickModel,
    case: Case,
    scan: Preprocessed,
    label: Volume,
    text_id: int,
    table: TextTable | None = None,
) -> OpenCase:
    """Encodes a case's crops and predicts without clicks.

    Args:
        scan: its image and dose.
        label: mask that covers the image.
        text_id: of its prompt.
        table: of the texts, on the device; None where the model takes none.

    Raises:
        IncompleteCase: it has no dose.
        NoOverlap, LabelNotCovering: the label covers none, or not all, of its image.
    """
    tiles = tile(scan, model.spec.image_size, name=case.id)
    rows = range(len(tiles))
    crops = model.encode(map(tiles.image, rows), map(tiles.region, rows), text_id, table)
    reach = np.zeros(tiles.shape, bool)
    for origin in tiles.origins.tolist():
        reach[tuple(slice(max(at, 0), at + tiles.size) for at in origin)] = True
    truth = label_to_grid(label, scan.grid, name=case.id).astype(bool)
    seen, total = truth[tiles.place], int(truth.sum())
    return OpenCase(
        case=case,
        label=label,
        tiles=tiles,
        truth=seen,
        reach=reach,
        out_of_reach=1 - int((seen & reach).sum()) / total if total else 0.0,
        crops=crops,
        first=model.first(crops),
    )


def play(
    model: ClickModel, opened: OpenCase, user: User, rng: np.random.Generator
) -> Iterator[tuple[Click | None, np.ndarray]]:
    """Yields the first prediction, then each click and the prediction after it.

    A prediction is a probability on the window. Ends after as many clicks as the model has
    slots, or where the user finds nothing to correct.
    """
    turn, probability = opened.first, opened.probability(opened.first)
    yield None, probability
    for slot in range(model.clicks):
        proposed = user.propose(probability >= THRESHOLD, opened.truth, opened.reach, rng)
        if not proposed:
            return
        click, turn, probability = _best(model, opened, turn, slot, proposed)
        yield click, probability


def _best(
    model: ClickModel, opened: OpenCase, turn: Turn, slot: int, proposed: Sequence[Click]
) -> tuple[Click, Turn, np.ndarray]:
    """The click after which Dice on the window is highest, of equals the first; all in one go."""
    held, asked = [], []
    for click in proposed:
        rows, at = opened.tiles.holding(np.array(click.voxel))
        held.append(rows)
        asked.append(turn.with_click(rows, at, click.positive, slot, keep=model.accumulate))
    rows = np.concatenate(held)
    together = Asked(*map(np.concatenate, zip(*asked, strict=True)))
    answers = model.answer(opened.crops.rows(rows), together)
    start, highest = 0, -1.0
    for click, part in zip(proposed, held, strict=True):
        answer = answers.rows(slice(start, start + len(part)))
        start += len(part)
        new = turn.updated(part, answer)
        probability = opened.probability(new)
        score = dice(probability >= THRESHOLD, opened.truth)
        if score > highest:
            highest, best = score, (click, new, probability)
    return best


def interact(model: ClickModel, opened: OpenCase, user: User, *, seed: int) -> Interaction:
    """Plays one user on one case and scores every prediction.

    Where the user finds nothing more to correct, the curves stay at their last value.

    Args:
        seed: with the case's id and the user's name it decides all that is random.
    """
    case, label = opened.case, opened.label
    to_label = label_mask(opened.tiles.window, label)
    digest = hashlib.sha256(f"{seed}/{user.name}/{case.id}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:16]))
    scores: list[tuple[float, float]] = []
    clicks = []
    for number, (click, probability) in enumerate(play(model, opened, user, rng)):
        found = score_case(
            to_label(probability),
            label.array,
            spacing_mm=label.spacing,
            case=case.id,
            patient=case.patient,
            task=case.task,
        )
        scores.append((found.dice, found.nsd_2mm))
        if click is not None:
            x, y, z = opened.tiles.window.to_world(np.array(click.voxel)).tolist()
            clicks.append(PlacedClick(number, (x, y, z), click.positive))
    scores += scores[-1:] * (1 + model.clicks - len(scores))
    dice_curve, nsd_curve = zip(*scores, strict=True)
    return Interaction(
        case=case.id,
        patient=case.patient,
        task=case.task,
        user=user.name,
        dice=dice_curve,
        nsd_2mm=nsd_curve,
        clicks=tuple(clicks),
        out_of_reach=opened.out_of_reach,
    )


def label_mask(window: Grid, label: Volume) -> Callable[[np.ndarray], np.ndarray]:
    """A function from a probability on a window of the model grid to a mask on the label's grid."""

    def to_label(probability: np.ndarray) -> np.ndarray:
        return whole_mask(*resample_window(probability, window, label), label.shape)

    return to_label
