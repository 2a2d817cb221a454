"""Pictures of the same cases by several scored runs: Figs. 4 and 5, and the reports' overlays.

Which cases are shown follows from the last method's Dice, best, median and worst, and from nothing
that anyone chose.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rtsam_jax.data.cases import Case
from rtsam_jax.data.nifti import Volume, read_label
from rtsam_jax.data.preprocess import Preprocessed, PreprocessSpec, label_to_grid
from rtsam_jax.data.scans import preprocessed
from rtsam_jax.data.selection import RunData
from rtsam_jax.errors import RTSamError
from rtsam_jax.evaluation.kept_masks import has_masks, read_mask
from rtsam_jax.evaluation.report import pick_for_figures
from rtsam_jax.metrics.case import CaseMetrics
from rtsam_jax.report.planes import PLANES, Plane
from rtsam_jax.report.results_html import Picture
from rtsam_jax.report.side_by_side import Row, plot_side_by_side

_RANKED = 3  # best, median and worst
_AXIAL = PLANES[0]


@dataclass(frozen=True)
class ScoredRun:
    """A method's column.

    Attributes:
        title: of the column.
        results: the folder of its measures and masks.
        cases: its measures.
    """

    title: str
    results: Path
    cases: Sequence[CaseMetrics]

    @property
    def drawable(self) -> bool:
        return has_masks(self.results, [found.case for found in self.cases])


def draw_side_by_side(
    runs: Sequence[ScoredRun],
    folder: Path,
    draw: Callable[[Sequence[ScoredRun]], list[Picture]],
) -> tuple[list[Picture], str]:
    """Draws the runs that kept their masks; the tables beside the pictures hang on none of them.

    Args:
        folder: is replaced by that of the pictures.
        draw: `draw_ranked`, `draw_by_task`, or both, for at least one run.

    Returns:
        The pictures, and a sentence on what is not shown, if there is anything.
    """
    shutil.rmtree(folder, ignore_errors=True)
    scored = [run for run in runs if run.cases]
    shown = [run for run in scored if run.drawable]
    lacking = [run.title for run in scored if run not in shown]
    pictures: list[Picture] = []
    said = []
    try:
        if shown:
            pictures = draw(shown)
    except RTSamError as error:
        said.append(f"Masks are not shown side by side: {error}")
    if lacking:
        said.append(
            "Not shown side by side, for want of a mask of each case (earlier versions kept none): "
            f"{', '.join(lacking)}; `python -m rtsam_jax.evaluate --run RUN` scores a run again."
        )
    return pictures, " ".join(said)


def draw_ranked(
    runs: Sequence[ScoredRun], data: RunData, spec: PreprocessSpec, heading: str, folder: Path
) -> list[Picture]:
    """Three planes of the last run's best, median and worst case, all runs side by side (Fig. 5).

    Args:
        runs: all drawable and scored on the same cases of `data.held_out`; at least one.
        folder: of the pictures.

    Raises:
        RTSamError: a volume cannot be read any more.
    """
    ranks = {
        runs[-1].cases[at].case: rank
        for at, rank in pick_for_figures(runs[-1].cases, _RANKED).items()
    }
    pictures = []
    for case, scan in _scans(ranks, data, spec):
        path = folder / f"{ranks[case.id]}.png"
        about = f"{ranks[case.id]} of {runs[-1].title}: {case.id}"
        rows = _rows(case, scan, runs, {plane.name: plane for plane in PLANES})
        plot_side_by_side(rows, f"{heading} · {about}, {case.task}", path)
        pictures.append(Picture(path, about, "the same slices of every run, through the truth."))
    order = list(ranks.values())
    return sorted(pictures, key=lambda picture: order.index(picture.path.stem))


def draw_by_task(
    runs: Sequence[ScoredRun], data: RunData, spec: PreprocessSpec, heading: str, out: Path
) -> Picture:
    """An axial slice of each task's median case of the last run, all runs side by side (Fig. 4).

    Args:
        runs: as `draw_ranked`.
        out: PNG.
    """
    chosen = []
    for task in data.tasks:
        own = [found for found in runs[-1].cases if found.task == task]
        if picked := [*pick_for_figures(own, _RANKED)]:
            chosen.append(own[picked[len(picked) // 2]].case)
    rows = [
        row
        for case, scan in _scans(chosen, data, spec)
        for row in _rows(case, scan, runs, {f"{case.task}\n{case.id}": _AXIAL})
    ]
    about = f"of each task the case with the median Dice of {runs[-1].title}"
    plot_side_by_side(rows, f"{heading} · {about}", out)
    return Picture(out, "The methods side by side", f"{about}, axial.")


def _scans(
    ids: Container[str], data: RunData, spec: PreprocessSpec
) -> Iterator[tuple[Case, Preprocessed]]:
    """In the order of the split."""
    return preprocessed([case for case in data.held_out if case.id in ids], data.modality, spec)


def _rows(
    case: Case, scan: Preprocessed, runs: Sequence[ScoredRun], planes: Mapping[str, Plane]
) -> list[Row]:
    """A row for each plane, by its title."""
    assert case.label is not None  # it was scored
    label = read_label(case.label, case.label_value)

    def on_model_grid(volume: Volume) -> np.ndarray:
        return label_to_grid(volume, scan.grid, name=case.id).astype(bool)

    truth = on_model_grid(label)
    masks = {run.title: on_model_grid(read_mask(run.results, case.id, label)) for run in runs}
    dice = {run.title: next(of for of in run.cases if of.case == case.id).dice for run in runs}
    return [
        Row(
            title,
            plane,
            scan.image,
            truth,
            masks,
            np.linalg.norm(scan.grid.affine[:3, :3], axis=0),
            {name: f"Dice {value:.2f}" for name, value in dice.items()},
        )
        for title, plane in planes.items()
    ]
