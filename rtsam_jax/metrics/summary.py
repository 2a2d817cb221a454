"""From cases to means.

Means hide misses unless told not to. An infinite distance (one of the two masks empty) enters a
mean as the diagonal of the case's image, and `n_missed` stands beside the mean; a case with both
masks empty has no surface, is left out of the means of distances and surface Dice, and is counted
in `n_both_empty`. Overlaps, volumes and lesions are defined for every case.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rtsam_jax.metrics.bootstrap import bootstrap_mean
from rtsam_jax.metrics.case import MEASURES, MORE_MEASURES, CaseMetrics

ALL_TASKS = "all"  # the name of the row over every case


class Aggregate(NamedTuple):
    """One measure over several cases."""

    n: int  # cases in the mean
    mean: float  # NaN without a case
    std: float  # of the sample (n - 1); NaN below two cases
    median: float  # NaN without a case
    low: float  # 95 % interval of the mean by patient (`bootstrap_mean`); NaN below two patients
    high: float


@dataclass(frozen=True)
class TaskSummary:
    """The measures over the cases of one task, or of all (`ALL_TASKS`)."""

    task: str
    n: int
    n_missed: int  # one of the two masks empty; the distances' means hold the diagonal for these
    n_both_empty: int  # in the overlaps' means as 1, in the distances' not at all
    measures: dict[str, Aggregate]  # one for each of MEASURES and MORE_MEASURES
    structures: dict[str, Aggregate]  # false-positive mL inside each, over the cases that have it


def _aggregate(values: Sequence[float], patients: Sequence[str]) -> Aggregate:
    kept = np.array([value for value in values if not math.isnan(value)])
    mean, low, high = bootstrap_mean(values, patients)
    std = float(kept.std(ddof=1)) if kept.size > 1 else math.nan
    median = float(np.median(kept)) if kept.size else math.nan
    return Aggregate(int(kept.size), mean, std, median, low, high)


def _summary(task: str, cases: Sequence[CaseMetrics]) -> TaskSummary:
    patients = [case.patient for case in cases]
    structures = dict.fromkeys(name for case in cases for name in case.structures_ml)
    return TaskSummary(
        task=task,
        n=len(cases),
        n_missed=sum(case.missed for case in cases),
        n_both_empty=sum(case.both_empty for case in cases),
        measures={
            name: _aggregate([case.value(name) for case in cases], patients)
            for name in MEASURES + MORE_MEASURES
        },
        structures={
            name: _aggregate([case.structures_ml.get(name, math.nan) for case in cases], patients)
            for name in structures
        },
    )


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
    return {task: _summary(task, cases) for task, cases in groups.items()}


def of_task(cases: Sequence[CaseMetrics], task: str) -> list[CaseMetrics]:
    """The cases of a task, or all (`ALL_TASKS`)."""
    return [case for case in cases if task in (case.task, ALL_TASKS)]


def pooled(scores: Mapping[str, Sequence[CaseMetrics]]) -> list[CaseMetrics]:
    """The cases of several runs, each under a name of its own; its patient stays the same.

    Args:
        scores: by what a run adds to the names of its cases.
    """
    return [
        dataclasses.replace(case, case=f"{case.case} {name}")
        for name, cases in scores.items()
        for case in cases
    ]
