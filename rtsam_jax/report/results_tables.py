"""The tables of a results folder, once for Markdown, LaTeX and HTML alike.

Every table sets methods side by side, task by task; the row `all` averages over the cases of all
tasks and is left out where there is one task only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rtsam_jax.metrics.case import MEASURES, MORE_MEASURES, CaseMetrics
from rtsam_jax.metrics.paired import left_out, paired_bootstrap, wilcoxon
from rtsam_jax.metrics.strata import STRATA, size_strata
from rtsam_jax.metrics.summary import ALL_TASKS, Aggregate, TaskSummary, of_task, summarise
from rtsam_jax.report.tables import (
    MISS_NOTE,
    TITLES,
    Cell,
    Table,
    number,
    p_value,
    render,
    signed,
    task_summaries,
)

Methods = Mapping[str, Sequence[CaseMetrics]]
_Listed = tuple[str, str, TaskSummary]  # task, method, what was found

INTERVAL_NOTE = (
    "Percentile bootstrap over patients, each drawn with all of its cases; with few patients it is "
    "too narrow."
)
STRATA_NOTE = (
    "Cases by the volume of their truth. A mean over cases is ruled by whatever size "
    "is most frequent; a small lesion loses more Dice by the same error in mm."
)
STRUCTURES_NOTE = (
    "Predicted volume outside the truth and inside a structure that should hold none; over the "
    "cases that come with the structure."
)
DIFFERENCE_NOTE = (
    "First method less the other on the same cases: pairs compared (n), mean, 95 % bootstrap "
    "interval over patients, and p of a two-sided Wilcoxon signed-rank test over patients; not "
    "corrected for the number of comparisons."
)
_STRATA_MEASURES = ("recall", "hd95_mm", "nsd_2mm", "lesion_recall")
COMPARED = ("dice", "hd95_mm")  # in tables of differences; a CSV holds all measures


class TitledTable(NamedTuple):
    """A table with what must be known to read it."""

    title: str
    note: str
    table: Table


class Difference(NamedTuple):
    """One measure of the first method less another's, over the same cases of a task."""

    task: str
    method: str
    other: str
    measure: str
    n: int  # pairs compared
    left_out: int  # pairs beside these: a method's mask and the truth are both empty
    left_out_missed: int  # of these, where the other method marks something
    mean: float
    low: float
    high: float
    p: float  # NaN where no test is possible


def results_tables(methods: Methods, differences: Sequence[Difference]) -> list[TitledTable]:
    """All tables that hold something, in the order to show them, but the list of cases."""
    listed = task_summaries(methods)
    if len({task for task, _, _ in listed}) == 2:  # one task, and the same over again
        listed = [row for row in listed if row[0] != ALL_TASKS]
    tables = [
        TitledTable("Measures", MISS_NOTE, _measure_table(listed)),
        TitledTable("95 % intervals of the means", INTERVAL_NOTE, _interval_table(listed)),
        TitledTable(
            "Further measures",
            "Mean ± standard deviation over cases, as above; docs/measures.md defines them.",
            _further_table(listed),
        ),
        TitledTable("By lesion size", STRATA_NOTE, _strata_table(methods)),
        TitledTable("False positives in structures", STRUCTURES_NOTE, _structure_table(methods)),
        TitledTable(
            "Paired differences",
            " ".join([DIFFERENCE_NOTE, *_left_out_note(differences)]),
            difference_table(differences),
        ),
    ]
    return [table for table in tables if table.table.rows]


def find_differences(
    methods: Methods, measures: Sequence[str] = MEASURES + MORE_MEASURES
) -> list[Difference]:
    """The first method against every other one that is scored on the same cases.

    Args:
      measures: `COMPARED` are enough for `difference_table`.

    Returns:
      Per other method, task and measure; nothing for a method with other cases or patients.
    """
    (first, own), *others = methods.items()
    tasks = list(dict.fromkeys(item.task for item in own))
    found = []
    for name, theirs in others:
        if not same_cases(own, theirs):
            continue
        for task in [*tasks, *([ALL_TASKS] if len(tasks) > 1 else [])]:
            a, b = of_task(own, task), of_task(theirs, task)
            for measure in measures:
                mean, low, high = paired_bootstrap(a, b, measure)
                p, out = wilcoxon(a, b, measure), left_out(a, b, measure)
                numbers = (len(a) - out.pairs, *out, mean, low, high, p)
                found.append(Difference(task, first, name, measure, *numbers))
    return found


def same_cases(a: Sequence[CaseMetrics], b: Sequence[CaseMetrics]) -> bool:
    """Whether two methods are scored on the same cases, tasks and patients, and on any at all."""
    keys = [sorted((item.task, item.case, item.patient) for item in items) for items in (a, b)]
    return bool(a) and keys[0] == keys[1]


def difference_table(differences: Sequence[Difference]) -> Table:
    """One row per task and other method: the difference in Dice and HD95, each with its n."""
    header = ["Task", "Difference"]
    for measure in COMPARED:
        header += ["n", TITLES[measure], "95 % interval", "p"]
    rows: dict[tuple[str, str], list[Cell]] = {}
    # Task by task, as in the other tables.
    tasks = list(dict.fromkeys(found.task for found in differences))
    for found in sorted(differences, key=lambda found: tasks.index(found.task)):
        if found.measure in COMPARED:
            key = (found.task, f"{found.method} - {found.other}")
            row = rows.setdefault(key, [*key])
            row += [
                found.n,
                signed(found.mean, found.measure),
                _interval(found, found.measure, signed),
                p_value(found.p),
            ]
    return Table(tuple(header), tuple(map(tuple, rows.values())))


def _left_out_note(differences: Sequence[Difference]) -> list[str]:
    """A sentence on the pairs that differences of distances leave out, if any does."""
    # What comes last is over all tasks.
    last = {(d.method, d.other): d for d in differences if d.measure == "hd95_mm"}
    said = [
        f"{d.method} - {d.other} {d.left_out} of {d.n + d.left_out} pairs, {d.left_out_missed} of "
        "them with a miss of the other method"
        for d in last.values()
        if d.left_out
    ]
    return said and [
        "Where a method's mask and the truth are both empty there is no surface, so HD95, ASSD, "
        f"MASD and NSD leave out: {'; '.join(said)}. Dice counts these."
    ]


def render_differences(methods: Methods) -> str:
    """`difference_table` of the first method and every other one, and what it leaves out."""
    differences = find_differences(methods, COMPARED)
    return render(difference_table(differences)) + "".join(
        f"\n{sentence}\n" for sentence in _left_out_note(differences)
    )


def difference_rows(differences: Sequence[Difference]) -> Table:
    """One row per task, other method and measure, for CSV."""
    return Table(Difference._fields, tuple(tuple(found) for found in differences))


def _measure_table(listed: Sequence[_Listed]) -> Table:
    header = ("Task", "Method", "n", "Missed", "Both empty", *(TITLES[m] for m in MEASURES))
    rows: list[tuple[Cell, ...]] = []
    for task, method, summary in listed:
        counts = (summary.n, summary.n_missed, summary.n_both_empty)
        rows.append((task, method, *counts, *(_spread(summary.measures[m], m) for m in MEASURES)))
    return Table(header, tuple(rows))


def _further_table(listed: Sequence[_Listed]) -> Table:
    header = ("Task", "Method", *(TITLES[m] for m in MORE_MEASURES))
    rows = tuple(
        (task, method, *(_spread(summary.measures[m], m) for m in MORE_MEASURES))
        for task, method, summary in listed
    )
    return Table(header, rows)


def _interval_table(listed: Sequence[_Listed]) -> Table:
    header = ("Task", "Method", *(TITLES[m] for m in MEASURES))
    rows = tuple(
        (task, method, *(_interval(summary.measures[m], m) for m in MEASURES))
        for task, method, summary in listed
    )
    return Table(header, rows)


def _strata_table(methods: Methods) -> Table:
    """Sizes, small ones first; of each every task and, where there are several, all together."""
    header = ("Truth", "Task", "Method", "n", "Missed", "Dice", "95 % interval")
    rows: dict[tuple[int, str], list[tuple[Cell, ...]]] = {}
    tasks = [*dict.fromkeys(case.task for cases in methods.values() for case in cases)]
    shown = [*tasks, ALL_TASKS] if len(tasks) > 1 else tasks
    for name, cases in methods.items():
        for label, items in size_strata(list(cases)).items():
            found = summarise(items)
            for task in (task for task in shown if task in found):
                summary, place = found[task], (STRATA.index(label), task)
                dice = summary.measures["dice"]
                rows.setdefault(place, []).append(
                    (
                        *(label, task, name, summary.n, summary.n_missed),
                        *(_spread(dice, "dice"), _interval(dice, "dice")),
                        *(_spread(summary.measures[m], m) for m in _STRATA_MEASURES),
                    )
                )
    places = [(size, task) for size in range(len(STRATA)) for task in shown]
    titles = (*header, *(TITLES[m] for m in _STRATA_MEASURES))
    return Table(titles, tuple(row for place in places for row in rows.get(place, ())))


def _structure_table(methods: Methods) -> Table:
    overall = {name: summarise(cases)[ALL_TASKS].structures for name, cases in methods.items()}
    structures = dict.fromkeys(name for of in overall.values() for name in of)
    rows = []
    for structure in structures:
        for method, cases in methods.items():
            held = [case.structures_ml.get(structure, math.nan) for case in cases]
            if structure in overall[method]:
                of = overall[method][structure]
                touched = sum(volume > 0 for volume in held)
                spread = _spread(of, "_ml"), _interval(of, "_ml"), number(np.nanmax(held), "_ml")
                rows.append((structure, method, of.n, touched, *spread))
    header = ("Structure", "Method", "n", "Touched", "Mean (mL)", "95 % interval", "Largest (mL)")
    return Table(header, tuple(rows))


def case_table(cases: Sequence[CaseMetrics]) -> Table:
    """One line per case: its six measures, both volumes, and whether it was missed."""
    header = ("Task", "Case", *(TITLES[m] for m in MEASURES), "Pred. (mL)", "Truth (mL)", "Note")
    rows = []
    for case in cases:
        note = "missed" if case.missed else "both empty" if case.both_empty else ""
        values = (number(getattr(case, m), m) for m in MEASURES)
        volumes = (f"{case.volume_pred_ml:.2f}", f"{case.volume_truth_ml:.2f}")
        rows.append((case.task, case.case, *values, *volumes, note))
    return Table(header, tuple(rows))


def _spread(of: Aggregate, measure: str) -> str:
    std = "" if math.isnan(of.std) else f" ± {number(of.std, measure)}"
    return number(of.mean, measure) + std


def _interval(
    of: Aggregate | Difference, measure: str, show: Callable[[float, str], str] = number
) -> str:
    return "-" if math.isnan(of.low) else f"{show(of.low, measure)} to {show(of.high, measure)}"
