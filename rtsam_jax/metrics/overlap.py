"""Overlap of two binary masks: Dice, IoU, precision and recall.

Masks are arrays of one shape; non-zero is foreground. What a ratio of nothing means is decided here
once, so that no mean can hide a miss:

| prediction | truth     | Dice, IoU | precision | recall |
|------------|-----------|-----------|-----------|--------|
| empty      | empty     | 1         | 1         | 1      |
| empty      | not empty | 0         | 0         | 0      |
| not empty  | empty     | 0         | 0         | 0      |
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsam_jax.errors import VolumeError


def as_masks(prediction: Any, truth: Any) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Both masks as boolean arrays.

    Raises:
      VolumeError: Their shapes differ, or a mask holds NaN (which would count as foreground).
    """
    masks = []
    for name, value in (("prediction", prediction), ("truth", truth)):
        array = np.asarray(value)
        if array.dtype != np.bool_ and np.isnan(array).any():
            raise VolumeError(f"The {name} mask holds NaN voxels; threshold it before scoring.")
        masks.append(array.astype(bool))
    if masks[0].shape != masks[1].shape:
        raise VolumeError(
            f"The prediction has shape {masks[0].shape} but the truth has {masks[1].shape}; "
            "bring the prediction to the label's grid before scoring."
        )
    return masks[0], masks[1]


def overlap_counts(prediction: Any, truth: Any) -> tuple[int, int, int]:
    """Voxels of (both masks, the prediction, the truth)."""
    prediction, truth = as_masks(prediction, truth)
    both = int(np.count_nonzero(prediction & truth))
    return both, int(np.count_nonzero(prediction)), int(np.count_nonzero(truth))


def _ratio(part: int, whole: int, *, both_empty: bool) -> float:
    if both_empty:
        return 1.0
    return part / whole if whole else 0.0


def dice(prediction: Any, truth: Any) -> float:
    """2 |P and T| / (|P| + |T|); 1 where both masks are empty."""
    both, predicted, true = overlap_counts(prediction, truth)
    return _ratio(2 * both, predicted + true, both_empty=predicted + true == 0)


def iou(prediction: Any, truth: Any) -> float:
    """|P and T| / |P or T|; 1 where both masks are empty."""
    both, predicted, true = overlap_counts(prediction, truth)
    return _ratio(both, predicted + true - both, both_empty=predicted + true == 0)


def precision(prediction: Any, truth: Any) -> float:
    """|P and T| / |P|; an empty prediction has 1 if the truth is empty as well, else 0."""
    both, predicted, true = overlap_counts(prediction, truth)
    return _ratio(both, predicted, both_empty=predicted + true == 0)


def recall(prediction: Any, truth: Any) -> float:
    """|P and T| / |T|; an empty truth has 1 if the prediction is empty as well, else 0."""
    both, predicted, true = overlap_counts(prediction, truth)
    return _ratio(both, true, both_empty=predicted + true == 0)
