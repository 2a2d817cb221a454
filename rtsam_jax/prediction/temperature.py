"""Probabilities brought to mean what they say: one temperature on their logit.

Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), for the foreground alone. One
half stays one half, so that no mask depends on the temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from rtsam_jax.metrics.reliability import Reliability, reliability

RANGE = (0.05, 20.0)  # of temperatures; a fit that ends there says that no finite one is best
# Logits that float32 probabilities have: -103.3 of the least that is not 0, 16.6 of the largest
# below 1. What is rounded to 1 counts as the second: near enough to be its neighbour.
_LEAST, _SATURATED = -104, 20
_STEPS = 64  # bins of the spectrum per unit of the logit
_NEGATIVE = -_LEAST * _STEPS  # bins below one half
_BINS = _NEGATIVE + _SATURATED * _STEPS
_AT_ONCE = 2**22  # voxels that are float64 at a time
_BELOW_HALF = np.nextafter(np.float32(0.5), np.float32(0))


class Voxels(NamedTuple):
    """Voxels of one case's high-dose region, on its label's grid."""

    logits: np.ndarray  # float32 [n], of the blended probability; finite
    truth: np.ndarray  # bool [n]

    @classmethod
    def of(cls, probability: np.ndarray, truth: np.ndarray) -> Voxels:
        """Takes probabilities `[n]` and truth `[n]`."""
        return cls(_logits(probability).astype(np.float32), np.asarray(truth, bool))


def fit_temperature(cases: Sequence[Voxels]) -> float:
    """The T of the least mean negative log-likelihood of sigmoid(logit / T).

    Every case has the same weight, however many voxels it has; 1 where no case has any. The
    likelihood is concave in 1 / T, so there is one best, or none within `RANGE`: see `bound`.
    """
    logits, truth, weight = _pooled(cases)
    if not len(logits):
        return 1.0
    against = np.where(truth, -logits, logits)

    def loss(log_temperature: float) -> float:
        return float(weight @ np.logaddexp(0, against * np.exp(-log_temperature)))

    found = optimize.minimize_scalar(
        loss, bounds=np.log(RANGE), method="bounded", options={"xatol": 1e-5}
    )
    return float(np.exp(found.x))


def bound(temperature: float) -> str:
    """At which end of its range a fit ended, "lowest" or "highest"; "" where at neither."""
    for name, end in zip(("lowest", "highest"), RANGE, strict=True):
        if np.isclose(temperature, end, rtol=1e-3):
            return name
    return ""


def tempered(probability: np.ndarray, temperature: float) -> np.ndarray:
    """sigmoid(logit(p) / T): float32, of the same shape; no mask changes.

    A probability that float32 rounded to 1 has the logit that the fit takes it for; 0, which is
    what lies outside the crops, stays 0.
    """
    probability = np.asarray(probability, np.float32)
    out = np.asarray(special.logit(probability))
    np.minimum(out, np.float32(_SATURATED), out=out)
    out /= np.float32(temperature)
    special.expit(out, out=out)
    foreground = probability >= 0.5
    # Rounding must not carry a voxel across.
    np.maximum(out, np.float32(0.5), out=out, where=foreground)
    np.minimum(out, _BELOW_HALF, out=out, where=~foreground)
    return out


def reliability_at(cases: Sequence[Voxels], temperatures: Sequence[float]) -> Reliability:
    """Reliability inside the region, each case with its own temperature and the same weight.

    Raises:
        ValueError: no case has a voxel.
    """
    _, truth, weight = _pooled(cases)
    probability = [
        special.expit(case.logits.astype(np.float64) / temperature)
        for case, temperature in zip(cases, temperatures, strict=True)
    ]
    return reliability(np.concatenate(probability), truth, weight)


def _pooled(cases: Sequence[Voxels]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, truth and weights of all voxels, [n] each; the weights sum to 1."""
    filled = [case for case in cases if len(case.logits)]
    if not filled:
        return np.zeros(0), np.zeros(0, bool), np.zeros(0)
    weight = [np.full(len(case.logits), 1 / len(case.logits) / len(filled)) for case in filled]
    logits, truth = (np.concatenate(leaf) for leaf in zip(*filled, strict=True))
    return logits.astype(np.float64), truth, np.concatenate(weight)


def _logits(probability: np.ndarray) -> np.ndarray:
    return np.clip(special.logit(np.asarray(probability, np.float64)), _LEAST, _SATURATED)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """How many voxels have which logit: all of a prediction that a temperature acts on.

    A probability volume takes megabytes; for every fold of a cross-fit it is needed at another
    temperature. Bins are 1/64 wide, and one of their edges is that of the mask.
    """

    counts: np.ndarray  # int64 [bins], ascending

    @classmethod
    def of(cls, probability: np.ndarray) -> Spectrum:
        """Takes a probability volume; voxels of exactly 0, which no crop reached, do not count."""
        counts = np.zeros(_BINS, np.int64)
        flat = probability.ravel()
        for part in np.array_split(flat, 1 + flat.size // _AT_ONCE):
            steps = np.floor(_logits(part[part > 0]) * _STEPS).astype(np.int64) + _NEGATIVE
            counts += np.bincount(np.minimum(steps, _BINS - 1), minlength=_BINS)
        return cls(counts)

    @property
    def foreground(self) -> int:
        """Voxels of one half or more."""
        return int(self.counts[_NEGATIVE:].sum())

    def mean_probability(self, temperature: float) -> float:
        """Of the foreground; NaN where there is none."""
        inside, _ = self._sums(temperature)
        return inside / self.foreground if self.foreground else float("nan")

    def expected_dice(self, temperature: float) -> float:
        """2 sum_{mask} p / (|mask| + sum p); 0 for an empty mask.

        If voxels were independent and p their chance of being foreground, this would be the ratio
        of the expectations of Dice's numerator and denominator.
        """
        inside, everywhere = self._sums(temperature)
        return 2 * inside / (self.foreground + everywhere) if self.foreground else 0.0

    def _sums(self, temperature: float) -> tuple[float, float]:
        """Sum of p over the foreground, and over all voxels."""
        centres = (np.arange(_BINS) - _NEGATIVE + 0.5) / _STEPS
        mass = self.counts * special.expit(centres / temperature)
        return float(mass[_NEGATIVE:].sum()), float(mass.sum())
