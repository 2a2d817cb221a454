"""Whether probabilities mean what they say: their reliability and expected calibration error.

Binary calibration of the foreground probability (not of the winning class): of all voxels given a
probability near p, a share of p should be foreground.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BINS = 15  # of equal width, as Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017)


class Reliability(NamedTuple):
    """A reliability diagram; every field is float64 [bins], bin b from b / bins to (b + 1) / bins.

    Attributes:
      share: Of the weight, in each bin; sums to 1.
      probability: Mean in the bin; NaN where it is empty.
      frequency: Of foreground in the bin; NaN where it is empty.
    """

    share: NDArray[np.float64]
    probability: NDArray[np.float64]
    frequency: NDArray[np.float64]

    @property
    def ece(self) -> float:
        """Expected calibration error: mean distance of probability and frequency, by weight."""
        gaps = np.abs(self.probability - self.frequency)
        return float(np.nansum(self.share * gaps))


def reliability(probability: Any, truth: Any, weight: Any, *, bins: int = BINS) -> Reliability:
    """Bins voxels by their probability of foreground; one of exactly 1 is in the last bin.

    Args:
      probability: [n], from 0 to 1.
      truth: [n], non-zero is foreground.
      weight: [n], of each voxel, such as the inverse of how many of its case there are.
      bins: Of equal width.

    Raises:
      ValueError: There is no voxel with a weight.
    """
    probability, weight = np.asarray(probability, np.float64), np.asarray(weight, np.float64)
    total = weight.sum()
    if not total > 0:
        raise ValueError("reliability needs at least one voxel with a weight")
    index = np.minimum((probability * bins).astype(int), bins - 1)
    held, of_probability, of_truth = (
        np.bincount(index, values, minlength=bins)
        for values in (weight, weight * probability, weight * (np.asarray(truth) != 0))
    )
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin
        return Reliability(held / total, of_probability / held, of_truth / held)
