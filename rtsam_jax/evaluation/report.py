"""What an evaluation leaves behind: tables, CSV files and overlays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rtsam_jax.data.nifti import Volume
from rtsam_jax.data.preprocess import label_to_grid
from rtsam_jax.evaluation.scoring import Scored
from rtsam_jax.metrics.summary import CaseMetrics
from rtsam_jax.report.figures import plot_overlay
from rtsam_jax.report.files import written_whole
from rtsam_jax.report.tables import case_rows, case_table, task_rows, task_table, write_csv


def write_tables(
    folder: Path,
    methods: Mapping[str, Sequence[CaseMetrics]],
    heading: str,
    notes: Sequence[str] = (),
) -> str:
    """Writes `cases.csv` (the model's), `summary.csv` and `tables.md`.

    Returns the summary table and the notes below it.

    Args:
        methods: measures by method, the model's first.
        heading: first line of `tables.md`: split, dataset and its kind.
        notes: sentences on the cases that a reader of the tables must know.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = list(next(iter(methods.values())))
    write_csv(case_rows(own), folder / "cases.csv")
    write_csv(task_rows({k: list(v) for k, v in methods.items()}), folder / "summary.csv")
    table = task_table({k: list(v) for k, v in methods.items()})
    table += "".join(f"\n{note}\n" for note in notes)
    with written_whole(folder / "tables.md") as beside:
        beside.write_text(f"# {heading}\n\n{table}\n\n## Cases\n\n{case_table(own)}\n")
    return table


def pick_for_figures(metrics: Sequence[CaseMetrics], count: int) -> list[int]:
    """Indices spread evenly over the Dice ranking, best and worst included."""
    order = sorted(range(len(metrics)), key=lambda i: -metrics[i].dice)
    if count >= len(order):
        return order
    return [order[round(i)] for i in np.linspace(0, len(order) - 1, count)]


def draw_overlay(scored: Scored, method: str, kind: str, folder: Path) -> Path:
    """Three planes of a case on the model grid: image, ROI, box, truth and prediction."""
    folder.mkdir(parents=True, exist_ok=True)
    case, scan = scored.case, scored.scan
    roi, box = scan.require_dose(name=case.id, purpose="its figure")
    path = folder / f"{case.id}.png"
    predicted = Volume(scored.masks[method], scored.truth.affine)
    plot_overlay(
        scan.image,
        label_to_grid(scored.truth, scan.grid, name=case.id).astype(bool),
        label_to_grid(predicted, scan.grid, name=case.id).astype(bool),
        roi.astype(bool),
        box,
        (float(np.linalg.norm(scan.grid.affine[:3, 0])),) * 3,
        f"{case.id} · {case.task} ({kind}) · Dice {scored.metrics[method].dice:.2f}",
        path,
    )
    return path
