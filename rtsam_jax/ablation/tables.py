"""Results of the studies as tables: one to read, one of differences, one with every number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rtsam_jax.ablation.results import Difference, Result
from rtsam_jax.ablation.variants import Study
from rtsam_jax.data.json_file import finite
from rtsam_jax.metrics.case import MEASURES
from rtsam_jax.metrics.summary import ALL_TASKS
from rtsam_jax.report.results_tables import COMPARED
from rtsam_jax.report.tables import TITLES, Cell, Table, number, p_value, signed

NOTE = (
    "Mean over cases and runs ± standard deviation of the runs' means; in brackets the 95 % "
    "bootstrap interval of the mean, by patient. A missed case (one of prediction and truth empty) "
    "enters HD95 and ASSD as its image's diagonal; misses are counted in every run, cases once. "
    "Differences are of the same cases and runs, with their interval; p is Wilcoxon's, over "
    "patients, for Dice, not corrected for many rows."
)


def study_table(study: Study, results: Sequence[Result], replicates: int) -> Table:
    """The study's rows: runs, misses and the six measures; by task where the study is by task.

    Args:
        results: of this study.
        replicates: that each row should have.
    """
    by_task = study.draws == "tasks"
    titles = (TITLES[m] for m in MEASURES)
    header = ("Task",) * by_task + ("Variant", "Runs", "Cases", "Missed", *titles)
    rows: list[tuple[Cell, ...]] = []
    for task in _tasks(results) if by_task else [ALL_TASKS]:
        found = {result.variant.name: result for result in results if result.task == task}
        for variant in study.variants:
            result = found.get(variant.name)
            first: tuple[Cell, ...] = (task,) * by_task + (variant.title,)
            if result is None:
                rows.append((*first, f"0 of {replicates}", *["-"] * (2 + len(MEASURES))))
                continue
            runs = len(result.runs)
            counts = (
                str(runs) if runs == replicates else f"{runs} of {replicates}",
                str(result.cases),
                f"{result.missed} of {result.scored}",
            )
            rows.append((*first, *counts, *(_estimate(result, m) for m in MEASURES)))
    return Table(header, tuple(rows))


def difference_table(study: Study, results: Sequence[Result]) -> Table | None:
    """Each row less the one it is compared with, in Dice and HD95; None without such a row."""
    titles = {variant.name: variant.title for variant in study.variants}
    by_task = study.draws == "tasks"
    rows = [
        (
            *(result.task,) * by_task,
            result.variant.title,
            titles[result.variant.against],
            *(_difference(result.differences[m], m) for m in COMPARED),
            p_value(result.differences["dice"].p),
        )
        for task in (_tasks(results) if by_task else [ALL_TASKS])
        for result in results
        if result.task == task and result.differences
    ]
    compared = (f"{TITLES[m]} difference" for m in COMPARED)
    header = (*("Task",) * by_task, "Variant", "less", *compared, "p")
    return Table(header, tuple(rows)) if rows else None


def left_out_note(results: Sequence[Result]) -> str:
    """A sentence on the pairs that differences of distances leave out; "" where none does."""
    said = [
        f"{result.variant.title} {result.differences['hd95_mm'].left_out}"
        for result in results
        if result.task == ALL_TASKS
        and result.differences
        and result.differences["hd95_mm"].left_out
    ]
    if not said:
        return ""
    return (
        "Where a mask and the truth are both empty there is no surface, so differences of "
        f"distances leave out pairs of cases: {', '.join(said)}. Dice counts these."
    )


def every_number(results: Sequence[Result]) -> Table:
    """One row per study, variant, task and measure, with all digits: for CSV."""
    header = (
        *("study", "variant", "title", "task", "measure", "runs", "cases", "scored", "missed"),
        *("mean", "std", "low", "high"),
        *("against", "difference", "difference_low", "difference_high", "p", "left_out"),
    )
    return Table(header, tuple(_numbers(results)))


def _numbers(results: Sequence[Result]) -> Iterator[tuple[Cell, ...]]:
    for result in results:
        variant = result.variant
        about = (result.study, variant.name, variant.title, result.task)
        counts = (len(result.runs), result.cases, result.scored, result.missed)
        for measure, estimate in result.estimates.items():
            difference: tuple[Cell, ...] = (None,) * 5
            if measure in result.differences:
                difference = tuple(result.differences[measure])
            yield (*about, measure, *counts, *estimate[:4], variant.against or None, *difference)


def as_json(results: Sequence[Result]) -> list[dict[str, object]]:
    """The results as plain values; what is not finite is None."""
    return [
        {
            "study": result.study,
            "variant": {**vars(result.variant), "changes": dict(result.variant.changes)},
            "task": result.task,
            "cases": result.cases,
            "scored": result.scored,
            "missed": result.missed,
            "runs": list(result.runs),
            "estimates": {m: finite(of._asdict()) for m, of in result.estimates.items()},
            "differences": {m: finite(of._asdict()) for m, of in result.differences.items()},
        }
        for result in results
    ]


def _tasks(results: Sequence[Result]) -> list[str]:
    """In order of appearance, all of them together last."""
    named = dict.fromkeys(result.task for result in results if result.task != ALL_TASKS)
    return [*named, ALL_TASKS]


def _estimate(result: Result, measure: str) -> str:
    of = result.estimates[measure]
    text = number(of.mean, measure)
    if not math.isnan(of.std):
        text += f" ± {number(of.std, measure)}"
    if measure == "dice" and not math.isnan(of.low):
        text += f" [{number(of.low, measure)}, {number(of.high, measure)}]"
    return text


def _difference(of: Difference, measure: str) -> str:
    text = signed(of.mean, measure)
    if not math.isnan(of.low):
        text += f" [{signed(of.low, measure)}, {signed(of.high, measure)}]"
    return text
