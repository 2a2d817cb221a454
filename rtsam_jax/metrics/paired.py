"""Two methods on the same cases: the mean difference with its interval, and a test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from rtsam_jax.metrics.bootstrap import RESAMPLES, MeanInterval, bootstrap_mean
from rtsam_jax.metrics.case import CaseMetrics

_Pair = tuple[CaseMetrics, CaseMetrics]


class LeftOut(NamedTuple):
    """Pairs that are in no difference of a measure, since one of the two values does not exist."""

    pairs: int
    missed: int  # of these, where one method marks something though there is nothing


def left_out(a: Sequence[CaseMetrics], b: Sequence[CaseMetrics], measure: str) -> LeftOut:
    """How many pairs `paired_bootstrap` and `wilcoxon` of a measure leave out.

    Args:
      a: One method's cases.
      b: Another method's measures of the same cases (same ids and tasks), in any order.
      measure: One of `MEASURES` or `MORE_MEASURES`.

    Raises:
      ValueError: As `paired_bootstrap`.
    """
    out = [pair for pair in _pairs(a, b) if math.isnan(_difference(pair, measure))]
    return LeftOut(len(out), sum(mine.missed or other.missed for mine, other in out))


def paired_bootstrap(
    a: Sequence[CaseMetrics],
    b: Sequence[CaseMetrics],
    measure: str,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> MeanInterval:
    """The mean of (a - b) over paired cases with its interval, patients resampled.

    A pair is left out where either value is NaN (both masks empty); `left_out` counts these.

    Args:
      a: One method's cases.
      b: Another method's measures of the same cases (same ids and tasks), in any order.
      measure: One of `MEASURES` or `MORE_MEASURES`.
      resamples: Bootstrap samples.
      seed: Of the resampling; the same seed gives the same interval.

    Raises:
      ValueError: The two lists hold different cases, one twice, or no case at all; a case's patient
        differs; there is no such measure.
    """
    values, patients = _differences(a, b, measure)
    return bootstrap_mean(values, patients, resamples=resamples, seed=seed)


def wilcoxon(a: Sequence[CaseMetrics], b: Sequence[CaseMetrics], measure: str) -> float:
    """P value of the two-sided Wilcoxon signed-rank test of (a - b).

    A patient enters with the mean difference of its cases, since the test takes its values for
    independent; patients without a difference are left out, and with none left p is 1. Ties in size
    make the p value an approximation.

    Args:
      a: One method's cases.
      b: Another method's measures of the same cases (same ids and tasks), in any order.
      measure: One of `MEASURES` or `MORE_MEASURES`.

    Returns:
      NaN if every pair holds a NaN.

    Raises:
      ValueError: As `paired_bootstrap`.
    """
    by_patient: dict[str, list[float]] = {}
    for value, patient in zip(*_differences(a, b, measure), strict=True):
        if not math.isnan(value):
            by_patient.setdefault(patient, []).append(value)
    if not by_patient:
        return math.nan
    means = np.array([np.mean(values) for values in by_patient.values()])
    means = means[means != 0]
    return float(stats.wilcoxon(means).pvalue) if means.size else 1.0


def _differences(
    a: Sequence[CaseMetrics], b: Sequence[CaseMetrics], measure: str
) -> tuple[list[float], list[str]]:
    """(a - b) of each case, and whose it is; cases sorted by task and id."""
    pairs = _pairs(a, b)
    return [_difference(pair, measure) for pair in pairs], [mine.patient for mine, _ in pairs]


def _difference(pair: _Pair, measure: str) -> float:
    mine, other = pair
    return mine.value(measure) - other.value(measure)


def _pairs(a: Sequence[CaseMetrics], b: Sequence[CaseMetrics]) -> list[_Pair]:
    """The two measures of each case, sorted by task and id."""
    indexed: list[dict[tuple[str, str], CaseMetrics]] = []
    for items in (a, b):
        indexed.append({(item.task, item.case): item for item in items})
        if len(indexed[-1]) != len(items):
            raise ValueError("A case occurs twice in one list; a paired test needs each case once.")
    ours, theirs = indexed
    if not ours or ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        where = f"{odd[0][1]!r} of task {odd[0][0]!r} is in one only" if odd else "both are empty"
        raise ValueError(f"A paired test needs the same cases in both lists, but {where}.")
    pairs = [(item, theirs[key]) for key, item in sorted(ours.items())]
    for item, other in pairs:
        if item.patient != other.patient:
            raise ValueError(
                f"Case {item.case!r} belongs to patient {item.patient!r} in one list "
                f"and to {other.patient!r} in the other."
            )
    return pairs
