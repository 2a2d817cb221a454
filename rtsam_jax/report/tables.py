"""Tables: a header and rows, printed aligned (which is Markdown as well) or written as CSV.

Text rounds for reading; CSV keeps every digit. Overlaps are shares from 0 to 1, distances mm.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtsam_jax.data.failure import Failure
from rtsam_jax.errors import MissingFile, UnreadableFile
from rtsam_jax.metrics.summary import (
    ALL_TASKS,
    DISTANCES,
    MEASURES,
    CaseMetrics,
    TaskSummary,
    summarise,
)
from rtsam_jax.report.files import written_whole

Cell = str | int | float | bool | None

TITLES = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "Precision",
    "recall": "Recall",
    "hd95_mm": "HD95 (mm)",
    "assd_mm": "ASSD (mm)",
}
MISS_NOTE = (
    "Mean ± standard deviation over cases. A missed case (one of prediction and truth empty) "
    "enters HD95 and ASSD as its volume's diagonal; where both are empty, overlaps are 1 and "
    "distances are left out."
)


@dataclass(frozen=True)
class Table:
    """A header and rows of as many cells."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise ValueError(
                    f"Row {number} has {len(row)} cells, but the header has {len(self.header)}."
                )


def failure_table(failures: Sequence[Failure]) -> str:
    """Cases that could not be used, with each its error."""
    rows = tuple((failure.case, failure.code, failure.message) for failure in failures)
    return render(Table(("Case", "Error", "What is wrong and what to do"), rows))


def render(table: Table) -> str:
    """The table as aligned Markdown, numbers to the right; ends with a newline."""
    cells = [[_text(cell) for cell in row] for row in table.rows]
    header = [_escape(title) for title in table.header]
    widths = [max(3, *map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [
        bool(table.rows) and all(_is_numeric(row[i]) for row in table.rows)
        for i in range(len(widths))
    ]

    def line(values: Sequence[str]) -> str:
        padded = [
            v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True)
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * (w - 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)]
    return "\n".join([line(header), line(rule), *map(line, cells)]) + "\n"


def _escape(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.3f}" if math.isfinite(cell) else {True: "-"}.get(math.isnan(cell), "inf")
    return _escape(str(cell))


def _is_numeric(cell: Cell) -> bool:
    """Numbers, and the texts that begin like one (`0.71 ± 0.10`)."""
    if isinstance(cell, str):
        head = cell.split(" ")[0]
        return head in ("-", "inf") or head.lstrip("-").replace(".", "", 1).isdigit()
    return True


def write_csv(table: Table, path: Path) -> None:
    """Writes the table with every digit; NaN and None are empty cells. Whole or not at all."""
    with (
        written_whole(path) as beside,
        beside.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table.header)
        for row in table.rows:
            missing = [cell is None or (isinstance(cell, float) and cell != cell) for cell in row]
            writer.writerow(["" if m else c for m, c in zip(missing, row, strict=True)])


def case_rows(metrics: Sequence[CaseMetrics]) -> Table:
    """One row per case with every field of `CaseMetrics`: what goes into the CSV."""
    names = tuple(field.name for field in dataclasses.fields(CaseMetrics))
    return Table(names, tuple(tuple(getattr(item, name) for name in names) for item in metrics))


def case_table(metrics: Sequence[CaseMetrics]) -> str:
    """One line per case: its six measures, both volumes, and whether it was missed."""
    header = ("Task", "Case", *TITLES.values(), "Pred. (mL)", "Truth (mL)", "Note")
    rows = []
    for item in metrics:
        note = "missed" if item.missed else "both empty" if item.both_empty else ""
        rows.append(
            (
                item.task,
                item.case,
                *(_number(getattr(item, m), m) for m in MEASURES),
                f"{item.volume_pred_ml:.2f}",
                f"{item.volume_truth_ml:.2f}",
                note,
            )
        )
    return render(Table(header, tuple(rows)))


def task_rows(methods: Mapping[str, Sequence[CaseMetrics]]) -> Table:
    """One row per task and method: n, misses, and mean, std, median of each measure. For CSV."""
    header = ["task", "method", "n", "n_missed", "n_both_empty"]
    for m in MEASURES:
        header += [f"{m}_{part}" for part in ("n", "mean", "std", "median")]
    rows: list[tuple[Cell, ...]] = []
    for task, method, summary in _summaries(methods):
        row: list[Cell] = [task, method, summary.n, summary.n_missed, summary.n_both_empty]
        for m in MEASURES:
            row += list(summary.measures[m])
        rows.append(tuple(row))
    return Table(tuple(header), tuple(rows))


def task_table(methods: Mapping[str, Sequence[CaseMetrics]]) -> str:
    """The methods side by side, task by task: mean ± standard deviation, and the misses.

    Args:
      methods: Name of a method (the model, a trivial predictor) -> its cases. The methods stand in
        this order below each task; the last task is `all`, left out where there is one task only.
    """
    header = ("Task", "Method", "n", "Missed", "Both empty", *TITLES.values())
    listed = _summaries(methods)
    several = len({task for task, _, _ in listed}) > 2
    rows: list[tuple[Cell, ...]] = []
    for task, method, summary in listed:
        if task != ALL_TASKS or several:
            spread = []
            for m in MEASURES:
                of = summary.measures[m]
                std = f" ± {_number(of.std, m)}" if not math.isnan(of.std) else ""
                spread.append(_number(of.mean, m) + std)
            counts = (summary.n, summary.n_missed, summary.n_both_empty)
            rows.append((task, method, *counts, *spread))
    return render(Table(header, tuple(rows))) + f"\n{MISS_NOTE}\n"


def _summaries(
    methods: Mapping[str, Sequence[CaseMetrics]],
) -> list[tuple[str, str, TaskSummary]]:
    """(task, method, summary), task by task in order of appearance, `all` last."""
    by_method = {name: summarise(cases) for name, cases in methods.items()}
    tasks = dict.fromkeys(t for s in by_method.values() for t in s if t != ALL_TASKS)
    return [
        (task, name, summaries[task])
        for task in [*tasks, ALL_TASKS]
        for name, summaries in by_method.items()
        if task in summaries
    ]


def _number(value: float, measure: str) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if measure in DISTANCES else f"{value:.3f}"


def read_cases(path: Path) -> list[CaseMetrics]:
    """Reads what `write_csv(case_rows(...))` wrote.

    Raises:
        MissingFile: there is no such file.
        UnreadableFile: it is not such a table.
    """
    if not path.is_file():
        raise MissingFile(f"{path} does not exist; evaluate that run on the same split first.")
    parse: dict[str, Callable[[str], Any]]
    parse = {"str": str, "float": float, "bool": "True".__eq__}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                CaseMetrics(
                    **{
                        field.name: parse[str(field.type)](row[field.name] or "nan")
                        for field in dataclasses.fields(CaseMetrics)
                    }
                )
                for row in csv.DictReader(file)
            ]
    except (KeyError, ValueError) as error:
        raise UnreadableFile(
            f"{path} is not a table of cases ({error}); write it again."
        ) from error
