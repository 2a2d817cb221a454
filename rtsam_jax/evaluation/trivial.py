"""Trivial predictors: what a model has to beat, fitted on the training cases only.

* `RoiRule`: the high-dose ROI itself.
* `ThresholdRule`: an intensity threshold inside the ROI, one per task, either direction.
* `AtlasRule`: where the task's training labels lie relative to the dose box.

They work on crops on the model grid, in the model's normalised intensities. For the atlas to mean
anything each crop must be centred on its dose box, which the caller sees to. Fitting maximises the
mean over the training crops of the Dice of the whole crop, on those same crops: no case is left
out, so the fitted Dice flatters the rule, and only its Dice on held-out cases is to be compared.

Crops may come from a generator: each is read once, and only what lies in its ROI or label is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rtsam_jax.errors import EmptyROI, VolumeError

QUANTILES = 4096  # candidate thresholds per task
KEPT_PER_CASE = 20_000  # values per case that the candidates are taken from; cases weigh the same

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class TrainingCrop:
    """One training case on the model grid, centred on its dose box.

    Raises:
      VolumeError: The three arrays differ in shape.
    """

    task: str
    image: NDArray[np.float32]  # [S,S,S], normalised
    label: Mask  # [S,S,S]
    roi: Mask  # [S,S,S], the high-dose ROI

    def __post_init__(self) -> None:
        if not self.image.shape == self.label.shape == self.roi.shape:
            raise VolumeError(
                f"A training crop of task {self.task!r} has an image of {self.image.shape}, a "
                f"label of {self.label.shape} and an ROI of {self.roi.shape}; cut them alike."
            )


class Rule(Protocol):
    """What every trivial predictor does."""

    def predict(self, image: NDArray[Any], roi: NDArray[Any]) -> Mask:
        """The predicted mask of one crop, [S,S,S]; `image` normalised, `roi` non-zero inside."""
        ...


@dataclass(frozen=True)
class RoiRule:
    """Predicts the high-dose ROI."""

    def predict(self, image: NDArray[Any], roi: NDArray[Any]) -> Mask:
        """See `Rule.predict`."""
        return np.asarray(roi) > 0


@dataclass(frozen=True)
class ThresholdRule:
    """Predicts the ROI's voxels at least as bright (or at most as bright) as a threshold."""

    threshold: float  # normalised intensity
    above: bool  # True: image >= threshold; False: image <= threshold
    train_dice: float  # mean over the training crops it was fitted on

    def predict(self, image: NDArray[Any], roi: NDArray[Any]) -> Mask:
        """See `Rule.predict`."""
        image = np.asarray(image)
        inside = image >= self.threshold if self.above else image <= self.threshold
        return inside & (np.asarray(roi) > 0)


@dataclass(frozen=True)
class AtlasRule:
    """Predicts where enough of the training labels lie, whatever the image shows."""

    mean_map: NDArray[np.float32]  # [S,S,S], share of the training labels that hold a voxel
    threshold: float  # on `mean_map`; between two values that it can take
    train_dice: float  # mean over the training crops it was fitted on

    def predict(self, image: NDArray[Any], roi: NDArray[Any]) -> Mask:
        """See `Rule.predict`.

        Raises:
          VolumeError: The crop has another shape than the training crops.
        """
        if np.shape(image) != self.mean_map.shape:
            raise VolumeError(
                f"The atlas was made of crops of shape {self.mean_map.shape}, but this crop has "
                f"{np.shape(image)}; cut it to the same size around the dose box."
            )
        return self.mean_map >= self.threshold


def _dice(both: NDArray[Any], predicted: NDArray[Any], true: int) -> NDArray[np.float64]:
    """Dice by candidate from voxel counts; 1 where both masks are empty (`metrics.overlap`)."""
    total = predicted + true
    return np.divide(2.0 * both, total, out=np.ones(len(predicted)), where=total > 0)


class _Intensities(NamedTuple):
    """What a threshold's Dice on one crop depends on."""

    roi: NDArray[Any]  # ascending values of the ROI's voxels
    label: NDArray[Any]  # ascending values of the label's voxels inside the ROI
    true: int  # label voxels, those outside the ROI too


def fit_threshold(
    crops: Iterable[TrainingCrop], *, quantiles: int = QUANTILES
) -> dict[str, ThresholdRule]:
    """The best intensity threshold inside the ROI for each task.

    Candidates are quantiles of the intensities inside the task's ROIs, pooled with equal weight per
    case, the extremes among them (at least as bright as the lowest is the whole ROI); both
    directions are tried. Of equals the first wins: above before below, low before high.

    Args:
      crops: Training crops of any tasks, each read once.
      quantiles: Candidates per task.

    Raises:
      EmptyROI: No crop of a task has a voxel in its ROI.
    """
    by_task: dict[str, list[_Intensities]] = {}
    for crop in crops:
        label, roi = np.asarray(crop.label, bool), np.asarray(crop.roi, bool)
        kept = _Intensities(
            np.sort(crop.image[roi]), np.sort(crop.image[roi & label]), int(label.sum())
        )
        by_task.setdefault(crop.task, []).append(kept)
    return {task: _best_threshold(task, cases, quantiles) for task, cases in by_task.items()}


def _best_threshold(task: str, cases: list[_Intensities], quantiles: int) -> ThresholdRule:
    pool = [
        case.roi[np.linspace(0, case.roi.size - 1, KEPT_PER_CASE).round().astype(int)]
        for case in cases
        if case.roi.size
    ]
    if not pool:
        raise EmptyROI(
            f"No training crop of task {task!r} has a voxel in its high-dose ROI; lower dose.tau."
        )
    values = np.unique(np.concatenate(pool))
    if values.size > quantiles:
        # Values that occur, so that comparing float32 with the threshold is exact.
        values = np.unique(
            np.quantile(np.concatenate(pool), np.linspace(0, 1, quantiles), method="nearest")
        )
    above, below = np.zeros(values.size), np.zeros(values.size)
    for case in cases:
        above += _dice(
            case.label.size - np.searchsorted(case.label, values, "left"),
            case.roi.size - np.searchsorted(case.roi, values, "left"),
            case.true,
        )
        below += _dice(
            np.searchsorted(case.label, values, "right"),
            np.searchsorted(case.roi, values, "right"),
            case.true,
        )
    scores = np.concatenate([above, below]) / len(cases)
    best = int(scores.argmax())
    return ThresholdRule(
        threshold=float(values[best % values.size]),
        above=best < values.size,
        train_dice=float(scores[best]),
    )


@dataclass
class _Atlas:
    """Sums over one task's crops."""

    count: NDArray[np.int32]  # [S,S,S], labels that hold the voxel
    labels: list[NDArray[np.int64]] = field(default_factory=list)  # flat indices of label voxels


def fit_atlas(crops: Iterable[TrainingCrop]) -> dict[str, AtlasRule]:
    """A location atlas for each task: the mean of its training labels, cut where Dice is best.

    All cuts that differ are tried: a voxel must lie in at least k of the n labels, k = 1 ... n.

    Args:
      crops: Training crops of any tasks, of one size, each centred on its dose box; each read once.

    Raises:
      VolumeError: The crops of a task differ in shape.
    """
    by_task: dict[str, _Atlas] = {}
    for crop in crops:
        label = np.asarray(crop.label, bool)
        atlas = by_task.setdefault(crop.task, _Atlas(np.zeros(label.shape, np.int32)))
        if atlas.count.shape != label.shape:
            raise VolumeError(
                f"The training crops of task {crop.task!r} have shapes {atlas.count.shape} and "
                f"{label.shape}; an atlas needs one size."
            )
        atlas.count += label
        atlas.labels.append(np.flatnonzero(label))
    return {task: _best_atlas(atlas) for task, atlas in by_task.items()}


def _best_atlas(atlas: _Atlas) -> AtlasRule:
    n = len(atlas.labels)
    flat = atlas.count.ravel()

    def at_least(counts: NDArray[np.int32]) -> NDArray[np.int64]:
        """How many of these voxels lie in at least k labels, for k = 1 ... n."""
        return np.bincount(counts, minlength=n + 1)[::-1].cumsum()[::-1][1:]

    predicted = at_least(flat)
    scores = sum(_dice(at_least(flat[label]), predicted, label.size) for label in atlas.labels) / n
    k = int(np.argmax(scores)) + 1
    return AtlasRule(
        mean_map=(atlas.count / n).astype(np.float32),
        threshold=(k - 0.5) / n,  # halfway, so that rounding k / n cannot move a voxel
        train_dice=float(np.asarray(scores)[k - 1]),
    )
