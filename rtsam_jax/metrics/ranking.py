"""Whether a case's quality, foretold without its truth, tells failures from successes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rtsam_jax.metrics.bootstrap import RESAMPLES, patient_draws


class AUROC(NamedTuple):
    """Area under the receiver operating characteristic, with its 95 % interval by patient."""

    value: float  # NaN where all cases failed or none did
    low: float  # 2.5th percentile; NaN where resamples hold one kind of case alone
    high: float  # 97.5th
    n: int  # cases
    n_failed: int
    n_patients: int


def auroc(quality: Any, failed: Any) -> float:
    """Probability that a failure is of lower quality than a success; a tie counts one half.

    This is the Mann-Whitney statistic over the number of pairs. 1: every failure is foretold; 0.5:
    quality says nothing.

    Args:
      quality: [n].
      failed: [n], non-zero where the case is one.

    Returns:
      NaN where there is no failure or no success.
    """
    failed = np.asarray(failed) != 0
    failures, successes = int(failed.sum()), int((~failed).sum())
    if not failures or not successes:
        return math.nan
    ranks = stats.rankdata(np.asarray(quality, np.float64))
    above = ranks[~failed].sum() - successes * (successes + 1) / 2
    return float(above / (failures * successes))


def bootstrap_auroc(
    quality: Sequence[float],
    failed: Sequence[bool],
    patients: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> AUROC:
    """`auroc` with a percentile bootstrap over patients, each drawn with all of its cases.

    A resample without a failure or without a success has no AUROC and is left out.

    Args:
      quality: One for each case.
      failed: Whether it is a failure.
      patients: Whose it is.
      resamples: Bootstrap samples.
      seed: Of the resampling; the same seed gives the same interval, whatever the cases' order.
    """
    values, failures = np.asarray(quality, np.float64), np.asarray(failed, bool)
    names, owner = np.unique(np.asarray(patients, str), return_inverse=True)
    value, low, high = auroc(values, failures), math.nan, math.nan
    if not math.isnan(value) and len(names) > 1:
        # Pairs by patient, so that a resample is a quadratic form in how often each was drawn.
        bad, good = values[failures], values[~failures]
        won = (bad[:, None] < good) + 0.5 * (bad[:, None] == good)
        of_bad, of_good = (np.eye(len(names))[owner[side]] for side in (failures, ~failures))
        pairs = of_bad.T @ won @ of_good
        drawn = patient_draws(len(names), resamples, seed).astype(np.float64)
        counts = (drawn @ of_bad.sum(0)) * (drawn @ of_good.sum(0))
        found = ((drawn @ pairs) * drawn).sum(1)[counts > 0] / counts[counts > 0]
        low, high = np.percentile(found, [2.5, 97.5]).tolist()
    return AUROC(value, low, high, len(values), int(failures.sum()), len(names))


class RiskCoverage(NamedTuple):
    """What remains wrong if only the cases of the highest quality are taken; float64 [m]."""

    coverage: NDArray[np.float64]  # share of cases taken, rising to 1
    risk: NDArray[np.float64]  # mean risk of those


def risk_coverage(quality: Any, risk: Any) -> RiskCoverage:
    """Mean risk of the best cases by quality, for every number of them; ties are taken together.

    Args:
      quality: [n], n at least 1.
      risk: [n], such as 1 - Dice, or 1 for a failure.
    """
    quality, risk = np.asarray(quality, np.float64), np.asarray(risk, np.float64)
    order = np.argsort(-quality, kind="stable")
    last = np.flatnonzero(np.diff(quality[order], append=-np.inf))  # of each group of ties
    return RiskCoverage(
        (last + 1) / len(quality), np.cumsum(risk[order])[last] / (last + 1).astype(np.float64)
    )
