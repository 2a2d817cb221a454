"""Means over cases with 95 % percentile bootstrap intervals.

Patients are drawn with replacement, each with all of its cases, since the cases of one patient are
not independent. The mean weighs cases, not patients.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000


class MeanInterval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float  # NaN without a value
    low: float  # 2.5th percentile; NaN below two patients, who cannot be resampled
    high: float  # 97.5th


def bootstrap_mean(
    values: Sequence[float],
    patients: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> MeanInterval:
    """The mean of the values that are not NaN, and its interval.

    Args:
      values: One for each case.
      patients: Whose each is.
      resamples: Bootstrap samples.
      seed: Of the resampling; the same seed gives the same interval, whatever the cases' order.
    """
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for value, patient in zip(values, patients, strict=True):
        if not math.isnan(value):
            sums[patient] = sums.get(patient, 0.0) + value
            counts[patient] = counts.get(patient, 0) + 1
    if not sums:
        return MeanInterval(math.nan, math.nan, math.nan)
    names = sorted(sums)
    total = np.array([sums[name] for name in names])
    count = np.array([counts[name] for name in names], np.float64)
    mean = float(total.sum() / count.sum())
    if len(names) < 2:
        return MeanInterval(mean, math.nan, math.nan)
    drawn = patient_draws(len(names), resamples, seed)
    low, high = np.percentile((drawn @ total) / (drawn @ count), [2.5, 97.5])
    return MeanInterval(mean, float(low), float(high))


@functools.lru_cache(maxsize=16)  # measures, methods and tables of the same cases share them
def patient_draws(patients: int, resamples: int, seed: int) -> NDArray[np.uint16]:
    """How often each patient is drawn in each sample: [resamples, patients]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(patients, np.full(patients, 1 / patients), resamples).astype(np.uint16)
