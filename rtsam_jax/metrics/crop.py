"""The part of a pair of masks that measures depend on.

Every measure here is the same on the box of both masks' union as on the whole volume: beyond it
there is background only. A lesion fills a small part of a scan, so the crop decides the cost.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Box = tuple[slice, ...]


def union_box(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Box:
    """The smallest box that holds both masks, as an index; the first voxel where both are empty."""
    union = prediction | truth
    box = []
    for axis in range(union.ndim):
        others = tuple(other for other in range(union.ndim) if other != axis)
        at = np.flatnonzero(union.any(axis=others))
        box.append(slice(int(at[0]), int(at[-1]) + 1) if at.size else slice(0, 1))
    return tuple(box)
