"""What the runs of a plan measured: means over cases and replicates, and differences of rows.

A case that several replicates score enters once for each. So a mean is one over cases and
replicates, and an interval that resamples patients, each with all of that, takes neither the seeds
of a case nor the cases of a patient for independent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rtsam_jax.ablation.plan import Plan, Run
from rtsam_jax.ablation.variants import Study, Variant
from rtsam_jax.errors import UnreadableFile
from rtsam_jax.metrics.case import MEASURES, MORE_MEASURES, CaseMetrics
from rtsam_jax.metrics.paired import left_out, paired_bootstrap, wilcoxon
from rtsam_jax.metrics.summary import Aggregate, of_task, pooled, summarise
from rtsam_jax.report.tables import read_cases

Scores = Mapping[str, Sequence[CaseMetrics]]  # by replicate: its cases


class Estimate(NamedTuple):
    """One measure of a row."""

    mean: float  # over cases and replicates
    std: float  # of the replicates' means (n - 1); NaN below two
    low: float  # 95 % interval of the mean, by patient
    high: float
    of_runs: tuple[float, ...]  # each replicate's mean; NaN where no case has the measure


class TimeTaken(NamedTuple):
    """What a run took that went from start to end in one piece."""

    seconds: float
    cores: int | None  # that it had; None where an earlier version trained it


class Difference(NamedTuple):
    """A row less the row that it is compared with, on the replicates that both have."""

    mean: float
    low: float  # 95 % interval, by patient
    high: float
    p: float  # Wilcoxon, of the patients' mean differences
    left_out: int  # pairs without the measure, since one of both has neither mask nor truth


@dataclass(frozen=True)
class Result:
    """A row on one task, or on all.

    Attributes:
        cases: different ones.
        scored: those of every replicate, one that several score counted for each.
        missed: of the scored ones, those with one of prediction and truth empty.
        runs: replicates that are there, the names of.
        estimates: by measure.
        differences: by measure; empty where there is nothing to compare with.
    """

    study: str
    variant: Variant
    task: str
    cases: int
    scored: int
    missed: int
    runs: tuple[str, ...]
    estimates: Mapping[str, Estimate]
    differences: Mapping[str, Difference]


def read_scores(plan: Plan, study: Study) -> dict[str, dict[str, list[CaseMetrics]]]:
    """By variant's name and replicate, what its finished runs measured.

    Raises:
        UnreadableFile: a table of cases is damaged or of an earlier version.
    """
    return {
        variant.name: {
            run.replicate.name: read_cases(run.cases_file) for run in plan.of(variant) if run.done
        }
        for variant in study.variants
    }


def results_of(study: Study, scores: Mapping[str, Scores]) -> list[Result]:
    """Every row of a study on every task and on all, in the study's order; rows not run are absent.

    Args:
        scores: by variant's name.
    """
    found = []
    for variant in study.variants:
        own = scores[variant.name]
        other = scores.get(variant.against, {})
        common = [name for name in own if name in other]
        a, b = (pooled({name: of[name] for name in common}) for of in (own, other))
        every = pooled(own)
        for task, summary in summarise(every).items() if every else ():
            mine, theirs = (of_task(cases, task) for cases in (a, b))
            found.append(
                Result(
                    study=study.name,
                    variant=variant,
                    task=task,
                    cases=len({c.case for cases in own.values() for c in of_task(cases, task)}),
                    scored=summary.n,
                    missed=summary.n_missed,
                    runs=tuple(own),
                    estimates={
                        m: _estimate(of, [_mean(cases, task, m) for cases in own.values()])
                        for m, of in summary.measures.items()
                    },
                    differences={
                        m: _differ(mine, theirs, m)
                        for m in (MEASURES + MORE_MEASURES if mine else ())
                    },
                )
            )
    return found


def _differ(mine: Sequence[CaseMetrics], theirs: Sequence[CaseMetrics], measure: str) -> Difference:
    interval, p = paired_bootstrap(mine, theirs, measure), wilcoxon(mine, theirs, measure)
    return Difference(*interval, p, left_out(mine, theirs, measure).pairs)


def _mean(cases: Sequence[CaseMetrics], task: str, measure: str) -> float:
    values = [case.value(measure) for case in of_task(cases, task)]
    kept = [value for value in values if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else math.nan


def _estimate(of: Aggregate, means: Sequence[float]) -> Estimate:
    kept = [mean for mean in means if not math.isnan(mean)]
    std = float(np.std(kept, ddof=1)) if len(kept) > 1 else math.nan
    return Estimate(of.mean, std, of.low, of.high, tuple(means))


def times_of(runs: Sequence[Run]) -> list[TimeTaken]:
    """How long those runs took that went from start to end in one piece.

    Raises:
        UnreadableFile: the note of a run's end is damaged.
    """
    found = []
    for run in runs:
        if not run.done:
            continue
        try:
            about: dict[str, Any] = json.loads(run.done_file.read_text(encoding="utf-8"))
            if not about["resumed"]:
                found.append(TimeTaken(float(about["seconds"]), about.get("cores")))
        except (ValueError, KeyError, TypeError) as cause:
            raise UnreadableFile(
                f"{run.done_file} is damaged ({cause}); delete it, and the run is scored again."
            ) from cause
    return found
