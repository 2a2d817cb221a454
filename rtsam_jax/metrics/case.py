"""From the masks of one case to its measures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsam_jax.errors import VolumeError
from rtsam_jax.metrics import overlap
from rtsam_jax.metrics.crop import union_box
from rtsam_jax.metrics.lesions import lesion_counts
from rtsam_jax.metrics.nsd import surface_elements
from rtsam_jax.metrics.surface import checked_spacing, surface_distances

MEASURES = ("dice", "iou", "precision", "recall", "hd95_mm", "assd_mm")  # the six of Sec. 4.2
MORE_MEASURES = (
    "masd_mm",
    "nsd_1mm",
    "nsd_2mm",
    "volume_error_ml",
    "volume_error_abs_ml",
    "lesion_precision",
    "lesion_recall",
    "lesion_f1",
)


@dataclass(frozen=True)
class CaseMetrics:
    """What one case measures, on its label's original grid."""

    case: str
    patient: str
    task: str
    dice: float
    iou: float
    precision: float
    recall: float
    hd95_mm: float  # inf where one mask is empty, NaN where both are
    assd_mm: float  # likewise
    volume_pred_ml: float
    volume_truth_ml: float
    both_empty: bool
    missed: bool  # exactly one of the two masks is empty
    diagonal_mm: float  # of the original image, corner to corner: stands for an infinite distance
    masd_mm: float  # as hd95_mm
    nsd_1mm: float  # surface Dice at 1 mm; 0 where one mask is empty, NaN where both are
    nsd_2mm: float
    lesions_truth: int  # components of the truth
    lesions_pred: int  # components of the prediction
    lesions_found: int  # of the truth, those found (`rtsam_jax.metrics.lesions`)
    lesions_right: int  # of the prediction, those that lie in the truth
    structures_ml: dict[str, float]  # false-positive volume inside each named structure

    @property
    def volume_error_ml(self) -> float:
        """Prediction less truth: above 0 where too much is marked."""
        return self.volume_pred_ml - self.volume_truth_ml

    @property
    def volume_error_abs_ml(self) -> float:
        """The error's size."""
        return abs(self.volume_error_ml)

    @property
    def lesion_precision(self) -> float:
        """Share of the predicted lesions that are right; without any, 1 if the truth has none."""
        return _share(self.lesions_right, self.lesions_pred, self.lesions_truth)

    @property
    def lesion_recall(self) -> float:
        """Share of the true lesions that are found; without any, 1 if none is predicted."""
        return _share(self.lesions_found, self.lesions_truth, self.lesions_pred)

    @property
    def lesion_f1(self) -> float:
        """Harmonic mean of lesion precision and recall; 0 where both are."""
        total = self.lesion_precision + self.lesion_recall
        return 2 * self.lesion_precision * self.lesion_recall / total if total else 0.0

    def value(self, measure: str) -> float:
        """A measure as it enters a mean: an infinite distance is the image's diagonal.

        Args:
          measure: One of `MEASURES` or `MORE_MEASURES`.

        Raises:
          ValueError: Another name.
        """
        if measure not in MEASURES + MORE_MEASURES:
            known = ", ".join(MEASURES + MORE_MEASURES)
            raise ValueError(f"{measure!r} is no measure; choose one of {known}.")
        value = float(getattr(self, measure))
        return self.diagonal_mm if math.isinf(value) else value


def _share(part: int, whole: int, other: int) -> float:
    if whole:
        return part / whole
    return 0.0 if other else 1.0


def score_case(
    prediction: Any,
    truth: Any,
    *,
    spacing_mm: Sequence[float] | NDArray[Any],
    case: str,
    patient: str,
    task: str,
    structures: Mapping[str, Any] | None = None,
    diagonal_mm: float | None = None,
) -> CaseMetrics:
    """Scores one mask.

    Args:
      prediction: Mask [X,Y,Z] on the label's original grid.
      truth: Mask [X,Y,Z], the label.
      spacing_mm: Voxel size along each axis in mm.
      case: Case id.
      patient: Patient id; the unit that bootstraps resample.
      task: Task name.
      structures: Masks [X,Y,Z] of named structures, where prediction beyond the truth is counted.
      diagonal_mm: Of the original image, corner to corner. None: the label's grid is the image's.

    Raises:
      VolumeError: The masks are not 3-D, shapes differ, a mask holds NaN, or the spacing is not
        usable.
    """
    prediction, truth = overlap.as_masks(prediction, truth)
    spacing = checked_spacing(spacing_mm, truth.ndim)
    if diagonal_mm is None:
        diagonal_mm = float(np.linalg.norm(truth.shape * spacing))
    structures = structures or {}
    for name, mask in structures.items():
        if np.shape(mask) != truth.shape:
            raise VolumeError(
                f"Structure {name!r} of case {case} has shape {np.shape(mask)} but the truth has "
                f"{truth.shape}; bring it to the label's grid before scoring."
            )
    box = union_box(prediction, truth)
    prediction, truth = prediction[box], truth[box]  # all below is the same on the box
    beyond = prediction & ~truth
    voxel_ml = float(np.prod(spacing)) / 1000
    distances = surface_distances(prediction, truth, spacing_mm=spacing)
    elements = surface_elements(prediction, truth, spacing_mm=spacing)
    lesions = lesion_counts(prediction, truth)
    _, predicted, true = overlap.overlap_counts(prediction, truth)
    return CaseMetrics(
        case=case,
        patient=patient,
        task=task,
        dice=overlap.dice(prediction, truth),
        iou=overlap.iou(prediction, truth),
        precision=overlap.precision(prediction, truth),
        recall=overlap.recall(prediction, truth),
        hd95_mm=distances.hd95,
        assd_mm=distances.assd,
        volume_pred_ml=predicted * voxel_ml,
        volume_truth_ml=true * voxel_ml,
        both_empty=predicted == 0 and true == 0,
        missed=(predicted == 0) != (true == 0),
        diagonal_mm=diagonal_mm,
        masd_mm=distances.masd,
        nsd_1mm=elements.nsd(1.0),
        nsd_2mm=elements.nsd(2.0),
        lesions_truth=lesions.truth,
        lesions_pred=lesions.prediction,
        lesions_found=lesions.found,
        lesions_right=lesions.right,
        structures_ml={
            name: int(np.count_nonzero(beyond & (np.asarray(mask)[box] != 0))) * voxel_ml
            for name, mask in structures.items()
        },
    )
