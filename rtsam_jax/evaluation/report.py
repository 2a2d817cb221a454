"""What an evaluation leaves behind: one folder with tables, plots, a page and all numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rtsam_jax.data.json_file import write_json
from rtsam_jax.data.nifti import Volume
from rtsam_jax.data.preprocess import label_to_grid
from rtsam_jax.evaluation.scoring import Scored
from rtsam_jax.metrics.case import CaseMetrics
from rtsam_jax.report.figures import plot_overlay
from rtsam_jax.report.files import written_whole
from rtsam_jax.report.latex import latex
from rtsam_jax.report.results_html import KINDS, Picture, write_results_page
from rtsam_jax.report.results_json import results_document
from rtsam_jax.report.results_plots import draw_bland_altman, draw_boxes, draw_strata, draw_volumes
from rtsam_jax.report.results_tables import (
    TitledTable,
    case_table,
    difference_rows,
    find_differences,
    results_tables,
    same_cases,
)
from rtsam_jax.report.tables import Table, case_rows, render, task_rows, write_csv

# What `write_results` leaves in a folder.
RESULTS = frozenset(
    {
        *("cases.csv", "all_cases.csv", "summary.csv", "differences.csv", "results.json"),
        *("tables.md", "tables.tex", "report.html", "plots"),
    }
)


def write_results(
    folder: Path,
    methods: Mapping[str, Sequence[CaseMetrics]],
    *,
    heading: str,
    kind: str,
    notes: Sequence[str] = (),
    figures: Sequence[Picture] = (),
) -> str:
    """Writes everything of a results folder, each file whole or not at all.

    `cases.csv` (the first method's), `all_cases.csv`, `summary.csv` and `differences.csv` keep
    every digit, as does `results.json`; `tables.md`, `tables.tex`, `report.html` and `plots/` are
    to be read.

    Args:
        folder: made if it is not there; its other files stay.
        methods: measures by method, the one in question first.
        heading: what was evaluated, such as dataset and split.
        kind: "clinical", "surrogate" or "synthetic"; any other text is said as it is.
        notes: sentences on the cases that a reader of the tables must know.
        figures: to show on the page, such as overlays.

    Returns:
        The table of measures, and the notes below it.
    """
    methods = {name: list(cases) for name, cases in methods.items()}
    first, own = next(iter(methods.items()))
    differences = find_differences(methods)
    tables = results_tables(methods, differences)
    heading = f"{heading} ({kind})"
    notes = [*notes, *_unpaired(methods)]
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(case_rows(own), folder / "cases.csv")
    write_csv(_all_cases(methods), folder / "all_cases.csv")
    write_csv(task_rows(methods), folder / "summary.csv")
    write_csv(difference_rows(differences), folder / "differences.csv")
    document = results_document(methods, differences, heading=heading, kind=kind, notes=notes)
    write_json(folder / "results.json", document)
    listing = TitledTable(f"Cases of {first}", "", case_table(own))
    with written_whole(folder / "tables.md") as beside:
        beside.write_text(_markdown(heading, kind, notes, [*tables, listing]), encoding="utf-8")
    with written_whole(folder / "tables.tex") as beside:
        beside.write_text(_latex(heading, tables), encoding="utf-8")
    write_results_page(
        folder / "report.html",
        heading=heading,
        kind=kind,
        notes=notes,
        tables=tables,
        plots=_draw_plots(folder / "plots", methods),
        pictures=figures,
        cases=listing,
    )
    return _section(tables[0]) + "".join(f"\n{note}\n" for note in notes)


def _unpaired(methods: Mapping[str, Sequence[CaseMetrics]]) -> list[str]:
    (first, own), *others = methods.items()
    odd = [name for name, cases in others if own and not same_cases(own, cases)]
    said = f"Not scored on the same cases as {first}, and so not among the paired differences:"
    return [f"{said} {', '.join(odd)}."] if odd else []


def _all_cases(methods: Mapping[str, Sequence[CaseMetrics]]) -> Table:
    by_method = {name: case_rows(cases) for name, cases in methods.items()}
    header = ("method", *next(iter(by_method.values())).header)
    return Table(header, tuple((name, *row) for name, of in by_method.items() for row in of.rows))


def _markdown(heading: str, kind: str, notes: Sequence[str], tables: Sequence[TitledTable]) -> str:
    said = [KINDS.get(kind, ""), *notes]
    blocks = [f"# {heading}\n", *(f"{sentence}\n" for sentence in said if sentence)]
    blocks += [f"## {table.title}\n\n{_section(table)}" for table in tables]
    return "\n".join(blocks)


def _section(table: TitledTable) -> str:
    return render(table.table) + (f"\n{table.note}\n" if table.note else "")


def _latex(heading: str, tables: Sequence[TitledTable]) -> str:
    parts = ["% \\usepackage{booktabs,graphicx}\n"]
    for title, note, table in tables:
        label = "tab:" + "-".join("".join(c if c.isalnum() else " " for c in title).split())
        parts.append(latex(table, caption=f"{title}: {heading}. {note}", label=label.lower()))
    return "\n".join(parts)


def _draw_plots(folder: Path, methods: Mapping[str, Sequence[CaseMetrics]]) -> list[Picture]:
    """Draws what there are cases for; none of an earlier evaluation's plots stays."""
    first, own = next(iter(methods.items()))
    volumes, agreement, sizes, boxes = (
        folder / f"{name}.png" for name in ("volumes", "bland_altman", "sizes", "measures")
    )
    if not own:
        for path in (volumes, agreement, sizes, boxes):
            path.unlink(missing_ok=True)
        return []
    draw_volumes(own, volumes)
    draw_bland_altman(own, agreement)
    draw_strata(methods, sizes)
    draw_boxes(methods, boxes)
    return [
        Picture(volumes, f"Lesion size, {first}", "a mark is a case."),
        Picture(
            agreement,
            f"Agreement of volumes, {first}",
            "bias and limits of agreement (1.96 standard deviations); a mark is a case.",
        ),
        Picture(sizes, "Dice by lesion size", "intervals as in the tables."),
        Picture(
            boxes,
            "The six measures",
            "boxes from quartile to quartile with the median, whiskers to the last case within 1.5 "
            "box lengths, diamonds are means; distances are linear to 1 mm and logarithmic beyond, "
            "and a missed case stands at its image's diagonal.",
        ),
    ]


def pick_for_figures(metrics: Sequence[CaseMetrics], count: int) -> dict[int, str]:
    """Indices spread evenly over the Dice ranking, best first, with the name of their rank.

    From three on, best, median and worst are among them. A case with both masks empty shows nothing
    and has no rank, unless there are no others.
    """
    shown = [i for i, case in enumerate(metrics) if not case.both_empty] or range(len(metrics))
    order = sorted(shown, key=lambda i: -metrics[i].dice)
    ranks = list(range(len(order)))
    if count < len(ranks):
        ranks = [round(place) for place in np.linspace(0, len(order) - 1, count)]
        if count >= 3:
            median = (len(order) - 1) // 2
            ranks[min(range(1, count - 1), key=lambda i: abs(ranks[i] - median))] = median
    return {order[rank]: _rank_name(rank, len(order)) for rank in ranks}


def _rank_name(rank: int, count: int) -> str:
    if count == 1:
        return "only case"
    if rank in (0, count - 1):
        return "worst" if rank else "best"
    if count > 2 and rank == (count - 1) // 2:
        return "median"
    return f"rank {rank + 1} of {count}"


def draw_overlay(scored: Scored, method: str, kind: str, folder: Path, rank: str) -> Picture:
    """Three planes of a case on the model grid: image, ROI, box, truth and prediction.

    Args:
        rank: its place among the cases by Dice, such as "best".
    """
    case, scan = scored.case, scored.scan
    roi, box = scan.require_dose(name=case.id, purpose="its figure")
    path = folder / f"{case.id}.png"
    predicted = Volume(scored.masks[method], scored.truth.affine)
    about = f"{case.task} ({kind}) · Dice {scored.metrics[method].dice:.2f}"
    plot_overlay(
        scan.image,
        label_to_grid(scored.truth, scan.grid, name=case.id).astype(bool),
        label_to_grid(predicted, scan.grid, name=case.id).astype(bool),
        roi.astype(bool),
        box,
        (float(np.linalg.norm(scan.grid.affine[:3, 0])),) * 3,
        f"{case.id} · {about} · {rank}",
        path,
    )
    return Picture(path, f"{rank}: {case.id}", about)
