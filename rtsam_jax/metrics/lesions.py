"""Detection, lesion by lesion: is it found, whatever its outline?

A lesion is a 26-connected component. One of the truth is found if the prediction covers at least a
tenth of its voxels; one of the prediction is right if at least a tenth of its voxels lie in the
truth. A tenth: a voxel shared at two blurred borders is no detection, and a larger share would make
the detection of a small lesion depend on its outline, which Dice measures already. Neither mask
needs to be matched one to one: two lesions under one predicted component are both found, and pieces
of one lesion are all right.

Precision, recall and F1 of counts follow the conventions of `overlap` for empty masks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rtsam_jax.metrics.crop import union_box
from rtsam_jax.metrics.overlap import as_masks

_TOUCHING = np.ones((3, 3, 3), bool)  # faces, edges and corners
_ONE_IN = 10  # voxels of a lesion that must be covered


class LesionCounts(NamedTuple):
    """Lesions of a case."""

    truth: int  # components of the truth
    prediction: int  # components of the prediction
    found: int  # of the truth, those that the prediction covers
    right: int  # of the prediction, those that lie in the truth


def lesion_counts(prediction: Any, truth: Any) -> LesionCounts:
    """Counts the lesions of two masks [X,Y,Z].

    Raises:
      VolumeError: The shapes differ, or a mask holds NaN.
    """
    prediction, truth = as_masks(prediction, truth)
    box = union_box(prediction, truth)
    prediction, truth = prediction[box], truth[box]
    true, found = _covered(truth, prediction)
    predicted, right = _covered(prediction, truth)
    return LesionCounts(true, predicted, found, right)


def _covered(mask: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[int, int]:
    """How many components a mask has, and how many of them the other mask covers."""
    if not mask.any():
        return 0, 0
    components, count = ndimage.label(mask, _TOUCHING)
    sizes = np.bincount(components[mask], minlength=count + 1)[1:]
    shared = np.bincount(components[mask & other], minlength=count + 1)[1:]
    return int(count), int(np.count_nonzero(_ONE_IN * shared >= sizes))
