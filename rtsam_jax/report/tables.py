"""Tables: a header and rows, printed aligned (which is Markdown as well) or written as CSV.

Text rounds for reading; CSV keeps every digit. Overlaps are shares from 0 to 1, distances mm.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtsam_jax.data.failure import Failure
from rtsam_jax.errors import MissingFile, UnreadableFile
from rtsam_jax.metrics.case import MEASURES, MORE_MEASURES, CaseMetrics
from rtsam_jax.metrics.summary import ALL_TASKS, Aggregate, TaskSummary, summarise
from rtsam_jax.report.files import written_whole

Cell = str | int | float | bool | None

TITLES = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "Precision",
    "recall": "Recall",
    "hd95_mm": "HD95 (mm)",
    "assd_mm": "ASSD (mm)",
    "masd_mm": "MASD (mm)",
    "nsd_1mm": "NSD at 1 mm",
    "nsd_2mm": "NSD at 2 mm",
    "volume_error_ml": "Volume error (mL)",
    "volume_error_abs_ml": "Absolute volume error (mL)",
    "lesion_precision": "Lesion precision",
    "lesion_recall": "Lesion recall",
    "lesion_f1": "Lesion F1",
}
MISS_NOTE = (
    "Mean ± standard deviation over cases. A missed case (one of prediction and truth empty) "
    "enters HD95, ASSD and MASD as its image's diagonal; where both are empty, overlaps are 1 and "
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
    right = numeric_columns(table)

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
    return _escape(shown(cell))


def shown(cell: Cell) -> str:
    """A cell as a reader sees it: numbers rounded, what is missing as a dash."""
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.3f}" if math.isfinite(cell) else {True: "-"}.get(math.isnan(cell), "inf")
    return str(cell)


def numeric_columns(table: Table) -> list[bool]:
    """Which columns hold numbers alone, and so stand to the right."""
    columns = range(len(table.header))
    return [bool(table.rows) and all(_is_numeric(row[i]) for row in table.rows) for i in columns]


def _is_numeric(cell: Cell) -> bool:
    """Numbers, and the texts that begin like one (`0.71 ± 0.10`, `+0.02`, `<0.001`)."""
    if isinstance(cell, str):
        head = cell.split(" ")[0]
        return head in ("-", "inf") or head.lstrip("<+-").replace(".", "", 1).isdigit()
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
    rows = []
    for item in metrics:
        values = {name: getattr(item, name) for name in names}
        values["structures_ml"] = json.dumps(item.structures_ml, ensure_ascii=False)
        rows.append(tuple(values.values()))
    return Table(names, tuple(rows))


def task_rows(methods: Mapping[str, Sequence[CaseMetrics]]) -> Table:
    """One row per task and method: n, misses, and the `Aggregate` of every measure. For CSV."""
    header = ["task", "method", "n", "n_missed", "n_both_empty"]
    for m in MEASURES + MORE_MEASURES:
        header += [f"{m}_{part}" for part in Aggregate._fields]
    rows: list[tuple[Cell, ...]] = []
    for task, method, summary in task_summaries(methods):
        row: list[Cell] = [task, method, summary.n, summary.n_missed, summary.n_both_empty]
        for m in MEASURES + MORE_MEASURES:
            row += list(summary.measures[m])
        rows.append(tuple(row))
    return Table(tuple(header), tuple(rows))


def task_summaries(
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


def number(value: float, measure: str) -> str:
    """A measure as tables show it: mm and mL to two decimals, shares to three."""
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if measure.endswith(("_mm", "_ml")) else f"{value:.3f}"


def signed(value: float, measure: str) -> str:
    """A difference, as `number` shows it, with its sign."""
    text = number(value, measure)
    return text if text.startswith("-") else f"+{text}"


def p_value(value: float) -> str:
    """A p value; NaN, where no test is possible, as a dash."""
    if math.isnan(value):
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


# By the type of a field of `CaseMetrics`; none takes None, which stands for a cell that is lacking.
_PARSE: dict[str, Callable[[str], Any]] = {
    "str": str.__str__,
    "int": int,
    "float": lambda cell: math.nan if cell == "" else float(cell),
    "bool": {"True": True, "False": False}.__getitem__,
    "dict[str, float]": lambda cell: dict(json.loads(cell)),
}


def read_cases(path: Path) -> list[CaseMetrics]:
    """Reads what `write_csv(case_rows(...))` wrote.

    Raises:
        MissingFile: there is no such file.
        UnreadableFile: it is not such a table, or one of an earlier version with fewer columns.
    """
    if not path.is_file():
        raise MissingFile(f"{path} does not exist; evaluate that run on the same split first.")
    fields = dataclasses.fields(CaseMetrics)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            lacking = [field.name for field in fields if field.name not in (rows.fieldnames or ())]
            if lacking:
                raise UnreadableFile(
                    f"{path} has no column {lacking[0]!r}, so an earlier version wrote it or it is "
                    "no table of cases; evaluate that run again."
                )
            return [
                CaseMetrics(**{f.name: _PARSE[str(f.type)](row[f.name]) for f in fields})
                for row in rows
            ]
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableFile(
            f"{path} is not a table of cases ({error}); evaluate that run again."
        ) from error
