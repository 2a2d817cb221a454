"""From masks to one case's measures, from cases to means, from two methods to an interval.

Means hide misses unless told not to. An infinite distance (one of the two masks empty) enters a
mean as the length of its volume's diagonal, and `n_missed` stands beside the mean; a case with both
masks empty has no distance, is left out of the distances' means, and is counted in `n_both_empty`.
Overlaps are defined for every case and average over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rtsam_jax.metrics import overlap
from rtsam_jax.metrics.surface import checked_spacing, surface_distances

OVERLAPS = ("dice", "iou", "precision", "recall")  # 0 to 1, higher is better
DISTANCES = ("hd95_mm", "assd_mm")  # mm, lower is better
MEASURES = OVERLAPS + DISTANCES  # the six of Sec. 4.2
ALL_TASKS = "all"  # the name of the row over every case


@dataclass(frozen=True)
class CaseMetrics:
    """The six measures of one case, on its label's original grid."""

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
    diagonal_mm: float  # of the whole volume, corner to corner: stands for an infinite distance

    def value(self, measure: str) -> float:
        """A measure as it enters a mean: an infinite distance is the volume's diagonal.

        Args:
          measure: One of `MEASURES`.

        Raises:
          ValueError: Another name.
        """
        if measure not in MEASURES:
            raise ValueError(f"{measure!r} is no measure; choose one of {', '.join(MEASURES)}.")
        value = float(getattr(self, measure))
        return self.diagonal_mm if math.isinf(value) else value


def score_case(
    prediction: Any,
    truth: Any,
    *,
    spacing_mm: Sequence[float] | NDArray[Any],
    case: str,
    patient: str,
    task: str,
) -> CaseMetrics:
    """Scores one mask.

    Args:
      prediction: Mask [X,Y,Z] on the label's original grid.
      truth: Mask [X,Y,Z], the label.
      spacing_mm: Voxel size along each axis in mm.
      case: Case id.
      patient: Patient id; the unit that `paired_bootstrap` resamples.
      task: Task name.

    Raises:
      VolumeError: The shapes differ, a mask holds NaN, or the spacing is not usable.
    """
    prediction, truth = overlap.as_masks(prediction, truth)
    spacing = checked_spacing(spacing_mm, truth.ndim)
    distances = surface_distances(prediction, truth, spacing_mm=spacing)
    _, predicted, true = overlap.overlap_counts(prediction, truth)
    voxel_ml = float(np.prod(spacing)) / 1000
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
        diagonal_mm=float(np.linalg.norm(np.asarray(truth.shape) * spacing)),
    )


class Aggregate(NamedTuple):
    """One measure over several cases."""

    n: int  # cases in the mean
    mean: float  # NaN without a case
    std: float  # of the sample (n - 1); NaN below two cases
    median: float  # NaN without a case


@dataclass(frozen=True)
class TaskSummary:
    """The six measures over the cases of one task, or of all (`ALL_TASKS`)."""

    task: str
    n: int
    n_missed: int  # one of the two masks empty; the distances' means hold the diagonal for these
    n_both_empty: int  # in the overlaps' means as 1, in the distances' not at all
    measures: dict[str, Aggregate]  # one for each of MEASURES


def _aggregate(values: Iterable[float]) -> Aggregate:
    kept = np.array([v for v in values if not math.isnan(v)], dtype=np.float64)
    if not kept.size:
        return Aggregate(0, math.nan, math.nan, math.nan)
    std = float(kept.std(ddof=1)) if kept.size > 1 else math.nan
    return Aggregate(int(kept.size), float(kept.mean()), std, float(np.median(kept)))


def summarise(metrics: Sequence[CaseMetrics]) -> dict[str, TaskSummary]:
    """Summaries per task, in the tasks' order of appearance, then over all cases.

    The last one averages over cases (not over the tasks' means) and is called `ALL_TASKS`, also
    where there is one task only.
    """
    groups: dict[str, list[CaseMetrics]] = {}
    for item in metrics:
        groups.setdefault(item.task, []).append(item)
    if ALL_TASKS in groups:
        raise ValueError(f"{ALL_TASKS!r} names the summary over all tasks; rename that task.")
    groups[ALL_TASKS] = list(metrics)
    return {
        task: TaskSummary(
            task=task,
            n=len(items),
            n_missed=sum(item.missed for item in items),
            n_both_empty=sum(item.both_empty for item in items),
            measures={m: _aggregate(item.value(m) for item in items) for m in MEASURES},
        )
        for task, items in groups.items()
    }


class MeanDifference(NamedTuple):
    """Mean of (a - b) over the cases, and its 95 % interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(
    a: Sequence[CaseMetrics],
    b: Sequence[CaseMetrics],
    measure: str,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> MeanDifference:
    """The mean of (a - b) over paired cases with its 95 % percentile bootstrap interval.

    Patients are drawn with replacement, each with all of its cases, since the cases of one patient
    are not independent. A pair is left out where either distance is NaN (both masks empty).

    Args:
      a: One method's cases.
      b: Another method's measures of the same cases (same ids and tasks), in any order.
      measure: One of `MEASURES`.
      resamples: Bootstrap samples.
      seed: Of the resampling; the same seed gives the same interval.

    Returns:
      Mean, 2.5th and 97.5th percentile; all NaN if no pair is left.

    Raises:
      ValueError: The two lists hold different cases, one twice, or no case at all.
    """
    indexed: list[dict[tuple[str, str], CaseMetrics]] = []
    for items in (a, b):
        indexed.append({(item.task, item.case): item for item in items})
        if len(indexed[-1]) != len(items):
            raise ValueError("A case occurs twice in one list; a paired test needs each case once.")
    if not indexed[0] or indexed[0].keys() != indexed[1].keys():
        odd = sorted(indexed[0].keys() ^ indexed[1].keys())
        where = f"{odd[0][1]!r} of task {odd[0][0]!r} is in one only" if odd else "both are empty"
        raise ValueError(f"A paired test needs the same cases in both lists, but {where}.")
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for key, item in sorted(indexed[0].items()):
        other = indexed[1][key]
        if item.patient != other.patient:
            raise ValueError(
                f"Case {item.case!r} belongs to patient {item.patient!r} in one list "
                f"and to {other.patient!r} in the other."
            )
        difference = item.value(measure) - other.value(measure)
        if not math.isnan(difference):
            sums[item.patient] = sums.get(item.patient, 0.0) + difference
            counts[item.patient] = counts.get(item.patient, 0) + 1
    if not sums:
        return MeanDifference(math.nan, math.nan, math.nan)
    patients = sorted(sums)  # the interval must not depend on the order of the lists
    total = np.array([sums[p] for p in patients])
    count = np.array([counts[p] for p in patients], dtype=np.float64)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(patients), np.full(len(patients), 1 / len(patients)), resamples)
    low, high = np.percentile((drawn @ total) / (drawn @ count), [2.5, 97.5])
    return MeanDifference(float(total.sum() / count.sum()), float(low), float(high))
