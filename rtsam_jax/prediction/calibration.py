"""What a prediction's confidence is worth: fitted on cases with truth, kept in `model.json`.

A temperature makes probabilities honest, a logistic regression turns what a prediction shows of
itself into the chance that its Dice is at least one half, and two thresholds on that chance accept
or reject a mask. The thresholds are chosen on chances from fits that did not see the case's
patient, since a fit flatters the cases it saw.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, special, stats

from rtsam_jax.data.splits import inner_split
from rtsam_jax.errors import SplitError, UnreadableFile
from rtsam_jax.prediction.temperature import RANGE, Spectrum, Voxels, fit_temperature

GOOD = 0.5  # Dice from which a mask is a success
RELIABLE = 0.9  # share of the accepted that must be one, and of the rejected that must not
# What that share must exceed by a one-sided Clopper-Pearson bound of this confidence. Of as many
# levels as there are cases each may pass by luck, so 0.95 would be too little.
ASSURED, CONFIDENCE = 0.8, 0.99
FOLDS = 5  # of the patients
# And what more of each may do to the chance of a success: raise it, or lower it.
FEATURES = {"expected_dice": 1, "agreement": 1, "distance": -1, "predicted_iou": 1}
_FLAT = 1e-9  # spread below which a feature is constant


@dataclass(frozen=True, eq=False)
class Signals:
    """What a prediction shows of itself, without truth and before any calibration."""

    spectrum: Spectrum  # of its probability, on the model grid
    largest: float  # probability in the high-dose region
    empty: bool  # its mask, on the original grid
    agreement: float | None  # mean Dice with its augmented repeats; None: not repeated
    predicted_iou: float | None  # None: not trained
    distance: float | None  # from the training cases; None: nothing to measure it by
    percentile: float | None  # of that distance among the training cases' own
    repeats: int  # that the agreement is the mean of

    def features(self, temperature: float) -> dict[str, float | None]:
        """What `FEATURES` name."""
        return {
            "expected_dice": self.spectrum.expected_dice(temperature),
            "agreement": self.agreement,
            "distance": self.percentile,
            "predicted_iou": self.predicted_iou,
        }


@dataclass(frozen=True, eq=False)
class Observed:
    """A case whose truth is known, and what its prediction shows."""

    case: str
    patient: str
    task: str
    dice: float  # on the label's original grid
    absent: bool  # its truth is empty
    signals: Signals
    voxels: Voxels

    @property
    def good(self) -> bool:
        return self.dice >= GOOD


@dataclass(frozen=True)
class Quality:
    """A logistic regression on standardised features; constant where it has none.

    No feature works against its sign in `FEATURES`, whatever few cases seem to say: an image that
    the model knows less of never gains by that.
    """

    features: tuple[str, ...]
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float

    @classmethod
    def fit(cls, rows: Sequence[Mapping[str, float | None]], good: Sequence[bool]) -> Quality:
        """The least sum of log losses plus half the weights' squares, over features all rows have.

        Where all cases are good, or none is, there is nothing to tell apart: the chance is then
        (successes + 1) / (cases + 2) for all.
        """
        truth = np.array(good, np.float64)
        names = tuple(name for name in FEATURES if all(row[name] is not None for row in rows))
        if not names or truth.all() or not truth.any():
            odds = (truth.sum() + 1) / ((1 - truth).sum() + 1)
            return cls((), (), (), (), float(np.log(odds)))
        values = np.array([[row[name] for name in names] for row in rows], np.float64)
        centre, scale = values.mean(0), values.std(0)
        scale[scale < _FLAT] = 1.0
        values = (values - centre) / scale
        side = 2 * truth - 1

        def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            intercept, weights = parameters[0], parameters[1:]
            margin = side * (values @ weights + intercept)
            slope = -side * special.expit(-margin)
            cost = np.logaddexp(0, -margin).sum() + 0.5 * weights @ weights
            return float(cost), np.concatenate([[slope.sum()], slope @ values + weights])

        sides = [(0.0, None) if FEATURES[name] > 0 else (None, 0.0) for name in names]
        found = optimize.minimize(
            loss,
            np.zeros(1 + len(names)),
            jac=True,
            method="L-BFGS-B",
            bounds=[(None, None), *sides],
            options={"ftol": 1e-14, "gtol": 1e-9},
        ).x
        middle, spread, weights = (tuple(column.tolist()) for column in (centre, scale, found[1:]))
        return cls(names, middle, spread, weights, float(found[0]))

    def __call__(self, row: Mapping[str, float | None]) -> float | None:
        """The chance of a success; None where `row` lacks a feature."""
        score = self.intercept
        for name, centre, scale, weight in zip(
            self.features, self.centre, self.scale, self.weights, strict=True
        ):
            value = row[name]
            if value is None:
                return None
            score += weight * (value - centre) / scale
        return float(special.expit(score))


@dataclass(frozen=True)
class Fit:
    """What was learnt of some cases."""

    temperature: float
    quality: Quality  # of masks that are not empty
    empty: float  # chance that the truth of an empty mask is empty too

    @classmethod
    def of(cls, cases: Sequence[Observed]) -> Fit:
        """Temperature first: the regression sees calibrated probabilities.

        Empty masks have no shape to judge by. Their chance is how many were right, with one more
        case that is right as often as truths are empty.
        """
        temperature = fit_temperature([case.voxels for case in cases])
        shown = [case for case in cases if not case.signals.empty]
        blank = [case for case in cases if case.signals.empty]
        quality = Quality.fit(
            [case.signals.features(temperature) for case in shown], [case.good for case in shown]
        )
        rate = sum(case.absent for case in cases) / len(cases)
        return cls(
            temperature, quality, (sum(case.good for case in blank) + rate) / (len(blank) + 1)
        )

    def chance(self, signals: Signals) -> float | None:
        """That the mask's Dice is at least one half; None where a signal it needs is lacking."""
        if signals.empty:
            return self.empty
        return self.quality(signals.features(self.temperature))


def cross_fit(cases: Sequence[Observed]) -> list[Fit]:
    """For each case a fit of the folds that hold none of its patient's cases.

    Patients are spread over the folds by their tasks and successes: a fold of failures alone would
    be judged by a fit of too many successes, and the reverse, which turns a ranking around.

    Raises:
        SplitError: they are all of one patient.
    """
    patients = {case.case: case.patient for case in cases}
    count = min(FOLDS, len(set(patients.values())))
    if count < 2:
        raise SplitError(
            "confidence is calibrated across patients, but the labelled cases are all of one; "
            "name a split of more with --split."
        )
    kinds = {case.case: f"{case.task}/{case.good}" for case in cases}
    fits: dict[str, Fit] = {}
    for fold in range(count):
        kept, held = (set(ids) for ids in inner_split(patients, count, fold, 0, kinds))
        fits |= dict.fromkeys(held, Fit.of([case for case in cases if case.case in kept]))
    return [fits[case.case] for case in cases]


def choose_thresholds(
    chances: Sequence[float], good: Sequence[bool]
) -> tuple[float | None, float | None]:
    """The lowest chance to accept at and the highest to reject at; None where there is none.

    Of the cases at or above the first at least 90 % are good, of those at or below the second at
    least 90 % are not, and of as many that it is hardly luck: see `is_reliable`. Rejecting comes
    first: where both sides would meet, the mask is not accepted.
    """
    chance, right = np.array(chances, np.float64), np.array(good, bool)
    levels = np.unique(chance).tolist()
    reject = max((at for at in levels if is_reliable(~right[chance <= at])), default=None)
    above = [at for at in levels if reject is None or at > reject]
    return min((at for at in above if is_reliable(right[chance >= at])), default=None), reject


def is_reliable(right: np.ndarray) -> bool:
    """Whether cases beyond a threshold, bool [n], speak for it.

    At least 90 % are rightly there, and with 99 % confidence more than 80 % of all such cases
    would be (Clopper and Pearson, Biometrika 1934); fewer than 21 cases never show that.
    """
    count, hits = len(right), int(np.count_nonzero(right))
    if not hits or hits < RELIABLE * count:
        return False
    return float(stats.beta.ppf(1 - CONFIDENCE, hits, count - hits + 1)) > ASSURED


@dataclass(frozen=True)
class Calibration:
    """What `model.json` keeps of a calibration for predictions to use."""

    fit: Fit
    accept: float | None  # lowest chance to accept at
    reject: float | None  # highest to reject at
    farthest: float | None  # distance beyond which no case was seen
    cases: int
    good: int
    repeats: int  # augmented, of each case
    arrays: str | None  # SHA-256 of calibration.npz; None: no distances

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Calibration:
        """What `to_dict` made, of a document that may hold more.

        Raises:
            UnreadableFile: a field is lacking, of another kind or beyond its range.
        """
        try:
            own = {field.name: content[field.name] for field in dataclasses.fields(cls)}
            fit = own["fit"]
            quality: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in fit["quality"].items()
            }
            own["fit"] = Fit(**(fit | {"quality": Quality(**quality)}))
            known = cls(**own)
            known._check()
        except (KeyError, TypeError, AttributeError, ValueError) as cause:
            raise UnreadableFile(
                f"the calibration in model.json is damaged or of another version ({cause!r}); "
                "make it anew with python -m rtsam_jax.evaluate --run RUN --calibrate."
            ) from cause
        return known

    def _check(self) -> None:
        """Raises `ValueError` naming a field that no calibration has such a value in."""
        quality, chances = self.fit.quality, (self.accept, self.reject, self.fit.empty)
        columns = (quality.centre, quality.scale, quality.weights)
        distance = 0.0 if self.farthest is None else self.farthest
        for name, holds in {
            "fit.temperature": _is_number(self.fit.temperature)
            and RANGE[0] <= self.fit.temperature <= RANGE[1],
            "fit.quality.intercept": _is_number(quality.intercept),
            "fit.quality.features": set(quality.features) <= set(FEATURES),
            "fit.quality": all(len(column) == len(quality.features) for column in columns)
            and all(_is_number(value) for column in columns for value in column)
            and all(scale > 0 for scale in quality.scale),
            "accept, reject or fit.empty": all(
                chance is None or (_is_number(chance) and 0 <= chance <= 1) for chance in chances
            )
            and self.fit.empty is not None,
            "farthest": _is_number(distance) and distance >= 0,
            "cases, good or repeats": all(
                type(count) is int for count in (self.cases, self.good, self.repeats)
            ),
            "arrays": isinstance(self.arrays, str | None),
        }.items():
            if not holds:
                raise ValueError(f"{name} has no such value")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and bool(np.isfinite(value))
