"""What it costs to score a case: every measure on volumes of 128^3, with MONAI's two beside them.

Times are of the CPU, in one process: scoring uses one thread, and other processes do not count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rtsam_jax.metrics.case import score_case
from rtsam_jax.report.tables import Table

SIDE = 128  # voxels of 1 mm
CASES = 100  # of each kind
# Half axes of the true lesions in voxels, least and most, and how many a case has at most.
KINDS = {
    "1 to 3 lesions of 0.5 to 30 mL": (5.0, 19.0, 3),
    "one lesion of 270 to 520 mL": (40.0, 50.0, 1),
}
_SPACING = (1.0, 1.0, 1.0)

Pair = tuple[np.ndarray, np.ndarray]  # prediction, truth


@dataclass
class KindTiming:
    """CPU seconds for the cases of a kind.

    Attributes:
        cpu_seconds: of `score_case`, case by case.
        monai_cpu_seconds: of MONAI's HD95 and ASSD alone, on the first cases; none without MONAI.
    """

    kind: str
    cpu_seconds: list[float]
    monai_cpu_seconds: list[float]


@dataclass
class MeasuresTiming:
    """What was measured, kind by kind."""

    kinds: list[KindTiming]


def time_measures(rounds: int) -> MeasuresTiming:
    """Scores `CASES` simulated cases of each kind.

    Args:
        rounds: cases of each kind that MONAI gets too.
    """
    monai = _monai_distances()
    kinds = []
    for kind, (least, most, lesions) in KINDS.items():
        rng = np.random.default_rng(0)
        ours, theirs = [], []
        for number in range(CASES):
            pair = simulated_pair(rng, least, most, lesions=1 + number % lesions)
            ours.append(_cpu_seconds(_score, pair))
            if monai is not None and number < rounds:
                theirs.append(_cpu_seconds(monai, pair))
        kinds.append(KindTiming(kind, ours, theirs))
    return MeasuresTiming(kinds)


def simulated_pair(rng: np.random.Generator, least: float, most: float, *, lesions: int) -> Pair:
    """Lumpy ellipsoids somewhere, and a prediction that misses their outline by a few voxels.

    Every other prediction has an island elsewhere, which makes the box of both masks large.
    """
    prediction, truth = np.zeros((2, SIDE, SIDE, SIDE), bool)
    for _ in range(lesions):
        axes = rng.uniform(least, most, 3)
        centre = rng.uniform(axes, SIDE - axes)
        truth |= _ellipsoid(centre, axes)
        prediction |= _ellipsoid(centre + rng.normal(0, 2, 3), axes * rng.uniform(0.8, 1.2))
    if rng.random() < 0.5:
        prediction |= _ellipsoid(rng.uniform(5, SIDE - 5, 3), np.full(3, 4.0))
    return prediction, truth


def _ellipsoid(centre: np.ndarray, axes: np.ndarray) -> np.ndarray:
    i, j, k = np.ogrid[:SIDE, :SIDE, :SIDE]
    x, y, z = ((at - c) / a for at, c, a in zip((i, j, k), centre, axes, strict=True))
    return x**2 + y**2 + z**2 < 1 + 0.2 * np.sin(i / 2) * np.sin(j / 3) * np.sin(k / 2)


def _score(prediction: np.ndarray, truth: np.ndarray) -> None:
    score_case(prediction, truth, spacing_mm=_SPACING, case="c", patient="p", task="t")


def _monai_distances() -> Callable[[np.ndarray, np.ndarray], None] | None:
    """MONAI's HD95 and ASSD of a pair; None where it is not installed."""
    try:
        from monai import metrics
    except ImportError:
        return None

    def distances(prediction: np.ndarray, truth: np.ndarray) -> None:
        a, b = prediction[None, None], truth[None, None]
        metrics.compute_hausdorff_distance(
            a, b, include_background=True, percentile=95, spacing=_SPACING
        )
        metrics.compute_average_surface_distance(
            a, b, include_background=True, symmetric=True, spacing=_SPACING
        )

    return distances


def _cpu_seconds(run: Callable[[np.ndarray, np.ndarray], None], pair: Pair) -> float:
    began = time.process_time()
    run(*pair)
    return time.process_time() - began


def measures_table(timing: MeasuresTiming) -> Table:
    """A row for each kind of case."""
    header = (
        "Truth", "Cases", "All, CPU (s)", "Median, CPU (ms)", "Slowest, CPU (ms)", "MONAI: cases",
        "Its HD95 and ASSD, median, CPU (ms)",
    )  # fmt: skip
    rows = []
    for each in timing.kinds:
        theirs = each.monai_cpu_seconds
        monai = f"{1e3 * statistics.median(theirs):.0f}" if theirs else None
        milliseconds = (1e3 * of(each.cpu_seconds) for of in (statistics.median, max))
        rows.append(
            (
                each.kind,
                len(each.cpu_seconds),
                f"{sum(each.cpu_seconds):.1f}",
                *(f"{ms:.0f}" for ms in milliseconds),
                len(theirs) or None,
                monai,
            )
        )
    return Table(header, tuple(rows))
