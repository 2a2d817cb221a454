"""How far a mask can be relied on, said with every mask, without its truth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import special

from rtsam_jax.data.nifti import Volume
from rtsam_jax.errors import ConfigError, UnreadableFile
from rtsam_jax.evaluation.click_model import ClickModel, Turn
from rtsam_jax.evaluation.scoring import THRESHOLD
from rtsam_jax.prediction.augmented import TextPrompt, agreement
from rtsam_jax.prediction.calibration import GOOD, RELIABLE, Calibration, Signals
from rtsam_jax.prediction.distance import Reference, pooled
from rtsam_jax.prediction.opened import Opened
from rtsam_jax.prediction.predicted import Prediction
from rtsam_jax.prediction.temperature import Spectrum, tempered
from rtsam_jax.prediction.trained import Trained
from rtsam_jax.prompts.clicks import UNUSED
from rtsam_jax.prompts.record import Scalar
from rtsam_jax.prompts.text import mirror, mirror_prompt

ACCEPT, REVIEW, REJECT = "accept", "review", "reject"
REPEATS = 8

# What contradicts an empty mask: voxels that nearly reached one half, repeats that find something,
# an image unlike those that the model knows.
_NEARLY = 0.25  # probability
_DISAGREE = 0.5  # mean Dice
_UNLIKE = 95.0  # percentile


@dataclass(frozen=True)
class Confidence:
    """What speaks for a mask and against it.

    Attributes:
        mean_probability: calibrated, of the mask on the original grid (`judge` knows the model's
            grid alone); NaN for an empty one.
        expected_dice: 2 sum_{mask} p / (|mask| + sum p) of calibrated p; 0 for an empty mask.
        agreement: mean Dice with predictions of the case flipped, turned, scaled and with another
            box; None: not repeated.
        predicted_iou: the model's own estimate; None: not trained.
        distance: of the image from the task's training cases, as the encoder sees them: per cent
            of all training cases that lie no farther from theirs; None: not measured.
        quality: chance that Dice is at least 0.5; None: not calibrated for these measures.
        flag: "accept" | "review" | "reject".
        reasons: sentences on what the flag is due to.
    """

    mean_probability: float
    expected_dice: float
    agreement: float | None
    predicted_iou: float | None
    distance: float | None
    quality: float | None
    flag: str
    reasons: tuple[str, ...]


def assess(
    trained: Trained,
    model: ClickModel,
    prediction: Prediction,
    *,
    repeats: int = REPEATS,
    seed: int = 0,
    record: Mapping[str, Scalar] | None = None,
    mask: Volume | None = None,
    native: np.ndarray | None = None,
) -> Confidence:
    """Judges a prediction.

    Args:
        trained: what predicted, with its calibration where it has one.
        model: of `trained`.
        prediction: of `model`.
        repeats: augmented repeats, each of which costs what opening the case did; 0 leaves them
            out, and with them the quality where the calibration had them.
        seed: of the repeats.
        record: that the case's text was made of. Without it a model that is told texts is never
            shown a left-right mirrored case, since the text would lie.
        mask: the initial mask that was given, if any.
        native: the prediction's probability on the original grid, where the caller has it already.

    Raises:
        ConfigError: repeats or seed is no whole number, or below 0.
        UnreadableFile: the calibration is damaged.
    """
    for name, number in (("repeats", repeats), ("seed", seed)):
        whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
        if not whole or number < 0:
            raise ConfigError(f"{name} is {number!r}, but it must be a whole number, 0 or above.")
    opened = prediction.opened
    known = trained.known
    lost: tuple[str, ...] = ()
    try:
        reference = trained.reference
    except UnreadableFile as cause:
        reference, lost = None, (str(cause),)
    if native is None:
        native = prediction.native_probability().array
    inside = native[native >= THRESHOLD]
    signals = observe(
        trained,
        model,
        opened,
        prediction.turn,
        prediction.probability,
        empty=not inside.size,
        reference=reference,
        repeats=repeats,
        seed=seed,
        record=record,
        mask=None if mask is None else opened.mask_prompt(mask, model.spec.mask_size),
    )
    found = judge(signals, known, lost)
    if inside.size:
        mean = calibrated(inside, trained).mean(dtype=np.float64)
        found = dataclasses.replace(found, mean_probability=float(mean))
    if known is None or not (unknown := _not_calibrated_for(prediction, mask)):
        return found
    said = f"the calibration's cases had {unknown}: what the flag is worth here was not measured"
    return dataclasses.replace(found, reasons=(*found.reasons, said))


def calibrated(probability: np.ndarray, trained: Trained) -> np.ndarray:
    """A prediction's probability with the temperature of its calibration; float32.

    Unchanged where there is none. One half stays one half: no mask changes.
    """
    if trained.known is None:
        return np.asarray(probability, np.float32)
    return tempered(probability, trained.known.fit.temperature)


def entropy(probability: np.ndarray) -> np.ndarray:
    """Of foreground against background, in bits: float32, from 0 to 1 at one half.

    Args:
        probability: calibrated.
    """
    out = np.asarray(probability, np.float32)
    out = special.entr(out) + special.entr(1 - out)
    out /= np.float32(np.log(2))
    return out


def observe(
    trained: Trained,
    model: ClickModel,
    opened: Opened,
    turn: Turn,
    probability: np.ndarray,
    *,
    empty: bool,
    reference: Reference | None,
    repeats: int,
    seed: int = 0,
    record: Mapping[str, Scalar] | None = None,
    mask: np.ndarray | None = None,
) -> Signals:
    """What a prediction shows of itself.

    Args:
        trained: what predicted.
        model: of `trained`.
        opened: the case.
        turn: the decoder's last answer.
        probability: of the turn, on the window.
        empty: whether the mask on the original grid is.
        reference: the training cases; None leaves the distance out.
        repeats: 0 leaves the agreement out.
        seed: of the repeats.
        record: see `assess`.
        mask: `[n, m, m, m, 1]`, the mask prompt that was given, if any.
    """
    tiles = opened.tiles
    region = probability[tiles.roi[tiles.place] > 0]
    distance = percentile = None
    if reference is not None:
        feature = pooled(opened.crops.embedding, opened.rois, trained.cfg.dose.source)
        distance = reference.distance(feature, opened.task.name)
        percentile = reference.percentile(distance)
    agreed = None
    if repeats > 0:
        axes = trained.cfg.augment.flip_axes if trained.cfg.augment.flip > 0 else ()
        agreed = agreement(
            model,
            tiles,
            turn,
            probability,
            (opened.table, int(opened.crops.text_id[0])),
            _mirrored(trained, opened, record) if 0 in axes else None,
            axes=axes,
            repeats=repeats,
            seed=seed,
            mask=mask,
        )
    return Signals(
        spectrum=Spectrum.of(probability),
        largest=float((region if region.size else probability).max()),
        empty=empty,
        agreement=agreed,
        predicted_iou=_predicted_iou(turn) if trained.cfg.loss.iou_head > 0 else None,
        distance=distance,
        percentile=percentile,
        repeats=repeats,
    )


def judge(signals: Signals, known: Calibration | None, reasons: tuple[str, ...] = ()) -> Confidence:
    """Says what signals are worth.

    Args:
        signals: of `observe`.
        known: the run's calibration; None: everything is to be reviewed.
        reasons: to give first.
    """
    temperature = 1.0 if known is None else known.fit.temperature
    fewer = known is not None and _fewer_repeats(signals, known)
    chance = None if known is None or fewer else known.fit.chance(signals)
    if signals.empty:
        flag, why = _judge_empty(signals, temperature)
    else:
        flag, why = REVIEW, []
    if known is None:
        flag = REVIEW
        why.append(
            "nothing says yet what the confidence of this run is worth; "
            "`python -m rtsam_jax.evaluate --run RUN --calibrate` finds it out"
        )
    elif not signals.empty:
        flag, said = _judge_mask(signals, known, chance)
        why.append(said)
    spectrum = signals.spectrum  # of the model's grid, where a speck may be that the image's misses
    return Confidence(
        mean_probability=math.nan if signals.empty else spectrum.mean_probability(temperature),
        expected_dice=0.0 if signals.empty else spectrum.expected_dice(temperature),
        agreement=signals.agreement,
        predicted_iou=signals.predicted_iou,
        distance=signals.percentile,
        quality=chance,
        flag=flag,
        reasons=(*reasons, *why),
    )


def _judge_mask(signals: Signals, known: Calibration, chance: float | None) -> tuple[str, str]:
    if _fewer_repeats(signals, known):
        return REVIEW, (
            f"the calibration was made with {known.repeats} repeats of every prediction, and this "
            f"has {signals.repeats}, so its quality is not measured; ask for as many with --repeats"
        )
    if chance is None:
        features = signals.features(known.fit.temperature)
        lacking = [name for name in known.fit.quality.features if features[name] is None]
        return REVIEW, f"not measured, though the calibration needs it: {', '.join(lacking)}"
    if known.accept is None and known.reject is None:
        return REVIEW, (
            f"no threshold could be set: of {known.cases} calibration cases {known.good} have "
            f"Dice of at least {GOOD:g}"
        )
    said = f"the chance that Dice is at least {GOOD:g} is {chance:.2f}"
    if known.reject is not None and chance <= known.reject:
        return REJECT, (
            f"{said}; at or below {known.reject:.2f}, {RELIABLE:.0%} or more of the calibration "
            "cases do not reach it"
        )
    if known.accept is None or chance < known.accept:
        return REVIEW, f"{said}, for which masks are neither accepted nor rejected"
    if known.farthest is not None and signals.distance is not None:
        if signals.distance > known.farthest:
            return REVIEW, (
                f"{said}, but the image lies farther from the training cases than any on which "
                "that was learnt"
            )
    return ACCEPT, (
        f"{said}; at or above {known.accept:.2f}, {RELIABLE:.0%} or more of the calibration cases "
        "reach it"
    )


def _fewer_repeats(signals: Signals, known: Calibration) -> bool:
    """Whether the agreement is less certain than those that the quality was fitted on.

    An empty mask's quality does not depend on it.
    """
    needed = not signals.empty and "agreement" in known.fit.quality.features
    return needed and signals.repeats < known.repeats


def _not_calibrated_for(prediction: Prediction, mask: Volume | None) -> str:
    """What a prediction was told that no case of a calibration is, as "no clicks and no ..."."""
    told = {
        "clicks": bool((prediction.turn.labels != UNUSED).any()),
        "given box": prediction.opened.boxed,
        "initial mask": mask is not None,
    }
    return " and ".join(f"no {what}" for what, was in told.items() if was)


def _judge_empty(signals: Signals, temperature: float) -> tuple[str, list[str]]:
    """An empty mask is never accepted, and rejected where something contradicts it."""
    largest = float(tempered(np.array([signals.largest]), temperature)[0])
    why = [
        f"the mask is empty: no voxel of the image reaches {THRESHOLD:g}, and the largest "
        f"probability in the high-dose region is {largest:.2f} on the model's grid"
    ]
    doubts = []
    if largest >= _NEARLY:
        doubts.append("that is near enough to doubt it")
    if signals.agreement is not None and signals.agreement < _DISAGREE:
        doubts.append("most repeats of the prediction are not empty")
    if signals.percentile is not None and signals.percentile > _UNLIKE:
        doubts.append(
            f"the image lies farther from the training cases than {_UNLIKE:.0f} % of these do"
        )
    return (REJECT if doubts else REVIEW), why + doubts


def _predicted_iou(turn: Turn) -> float:
    """Mean over crops, each by how much of the mask is in it."""
    marked = [np.count_nonzero(turn.crop(row) >= THRESHOLD) for row in range(len(turn.iou))]
    return float(np.average(turn.iou, weights=marked if any(marked) else None))


def _mirrored(
    trained: Trained, opened: Opened, record: Mapping[str, Scalar] | None
) -> TextPrompt | None:
    """What the mirrored case is told; None where it cannot be told the truth."""
    task = opened.task
    if trained.cfg.prompt.task != "text":  # a task's tokens know no mirror image
        sided = mirror(task.sentence) != task.sentence
        return None if sided else (None, int(opened.crops.text_id[0]))
    text = None if record is None else mirror_prompt(trained.prompt(task.name, record))
    if text is None:
        return None
    told = trained.tell(task.name, text)
    return told.table, told.text_id
