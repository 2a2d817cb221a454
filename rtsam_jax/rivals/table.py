"""Table 1: our model and the rivals on the same held-out cases, and what each of them sees."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.preprocess import PreprocessSpec
from rtsam_jax.data.selection import RunData
from rtsam_jax.evaluation.report import write_results
from rtsam_jax.evaluation.side_by_side import (
    ScoredRun,
    draw_by_task,
    draw_ranked,
    draw_side_by_side,
)
from rtsam_jax.metrics.case import CaseMetrics
from rtsam_jax.metrics.summary import pooled
from rtsam_jax.report.curves import CURVES
from rtsam_jax.report.files import written_whole
from rtsam_jax.report.latex import latex
from rtsam_jax.report.results_html import KINDS, Picture
from rtsam_jax.report.results_tables import COMPARED, find_differences, results_tables
from rtsam_jax.report.tables import Cell, Table, render, write_csv
from rtsam_jax.rivals.ours import OurRun
from rtsam_jax.rivals.run import RivalOptions, RivalRun
from rtsam_jax.training.run import total_steps

OURS = "ours"
FIGURE = "figures/fig4.png"  # in the results folder
_SHOWN = ("Measures", "95 % intervals of the means", "Paired differences")


@dataclass(frozen=True)
class Comparison:
    """All that Table 1 is made of.

    Attributes:
        cfg: the rivals'; `seeds` stand in the place of its own.
        ours: a run per seed, or none.
        rivals: by title, a run per seed.
        failed: sentences on the rivals that have no run for each seed.
    """

    cfg: ExperimentConfig
    options: RivalOptions
    data: RunData
    seeds: Sequence[int]
    ours: Sequence[OurRun]
    rivals: Mapping[str, Sequence[RivalRun]]
    failed: Sequence[str]

    @property
    def methods(self) -> dict[str, list[CaseMetrics]]:
        """Measures by model, ours first; with several seeds a case stands there once for each.

        Intervals and tests are by patient, so a second seed adds no false certainty.
        """
        runs = {OURS: [run.cases for run in self.ours]} if self.ours else {}
        runs |= {title: [run.cases for run in of] for title, of in self.rivals.items()}
        if len(self.seeds) == 1:
            return {name: list(of[0]) for name, of in runs.items()}
        seeds = [f"(seed {seed})" for seed in self.seeds]
        return {name: pooled(dict(zip(seeds, of, strict=True))) for name, of in runs.items()}

    @property
    def heading(self) -> str:
        return f"Table 1 on {self.data.dataset.name}, split {self.data.held_out_name}"

    @property
    def columns(self) -> list[tuple[str, Path, Sequence[CaseMetrics]]]:
        """Title, folder and measures of each model's run of the first seed, ours last (Fig. 4)."""
        found = [(title, of[0].folder, of[0].cases) for title, of in self.rivals.items()]
        return found + [(OURS, run.folder, run.cases) for run in self.ours[:1]]

    def models(self) -> Table:
        """A row per model: what it sees, its size, and what its training took."""
        header = ("Model", "Sees", "Parameters (M)", "Steps", "Seeds", "Training (min)", "Device")
        rows: list[tuple[Cell, ...]] = []
        seeds, tasks = len(self.seeds), self.data.tasks
        if self.ours:
            first, size = self.ours[0], self.ours[0].parameters(len(tasks))
            millions = None if size is None else size / 1e6
            starts = [start for start in first.starts if start.steps is not None]
            own = total_steps(first.cfg, len(self.data.train))
            steps = " + ".join(str(taken) for taken in (*(start.steps for start in starts), own))
            known = [run.seconds for run in self.ours if run.seconds is not None]
            mean = statistics.fmean(known) if known else None
            minutes = " + ".join(map(_minutes, (*(start.seconds for start in starts), mean)))
            rows.append((OURS, first.sees, millions, steps, seeds, minutes, first.device))
        sees = "image, task" + (", ROI" if self.options.roi_channel else "")
        for title, runs in self.rivals.items():
            minutes = f"{sum(run.seconds for run in runs) / len(runs) / 60:.1f}"
            of = runs[0]
            rows.append((title, sees, of.parameters / 1e6, of.steps, seeds, minutes, of.device))
        return Table(header, tuple(rows))

    def by_seed(self) -> Table | None:
        """Mean Dice of each seed's run, and their standard deviation; None with a single seed."""
        if len(self.seeds) == 1:
            return None
        header = ("Model", *(f"Dice, seed {seed}" for seed in self.seeds), "Std over seeds")
        runs = {OURS: [run.cases for run in self.ours]} if self.ours else {}
        runs |= {title: [run.cases for run in of] for title, of in self.rivals.items()}
        means = {
            name: [statistics.fmean(case.dice for case in cases) for cases in of]
            for name, of in runs.items()
        }
        return Table(header, tuple((name, *of, statistics.stdev(of)) for name, of in means.items()))

    def notes(self) -> list[str]:
        """What a reader of the measures must know."""
        loss = {
            "dice_ce": "Dice-CE over the whole crop",
            "ours": "our model's loss, by the config's weights",
        }[self.options.loss]
        notes = [
            f"The rivals are MONAI's networks at {self.options.width:g} of their published width, "
            f"trained from scratch on the crops that our model trains on, with the same "
            f"augmentation, schedule and batch size, by {loss}. They see the image"
            f"{' and the high-dose ROI' * self.options.roi_channel}, and have an output channel "
            f"per task."
        ]
        if len(self.seeds) > 1:
            seeds = ", ".join(map(str, self.seeds))
            notes.append(
                f"Every case counts once for each of the seeds {seeds}: n is cases times seeds, "
                f"intervals and tests are by patient."
            )
        notes += [_started(run) for run in self.ours[:1] if run.starts]
        for run in self.ours:
            if other := run.trained_otherwise(self.cfg):
                notes.append(
                    f"Our run {run.folder} was not trained as the rivals were: {', '.join(other)}."
                )
        return [*notes, *self.failed]


def _minutes(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds / 60:.1f}"


def _started(run: OurRun) -> str:
    """A sentence on what a run starts from, which the rivals do not."""
    said = []
    for start in run.starts:
        of = {True: " on the same training cases", False: " on other cases", None: ""}
        steps = (
            "weights from elsewhere"
            if start.steps is None
            else f"{start.steps} steps{of[start.same_cases]}"
        )
        said.append(f"{start.folder} ({steps})")
    kept = ", and keeps its image encoder" if run.cfg.model.freeze_encoder else ""
    return f"Our model starts from {', then '.join(said)}{kept}; the rivals start from random ones."


def write_comparison(comparison: Comparison, folder: Path) -> str:
    """Writes a results folder, with what the models are as CSV and LaTeX; returns the summary.

    Masks of all models stand side by side in `FIGURE`, as far as they were kept.
    """
    models, kind = comparison.models(), comparison.data.dataset.kind
    write_csv(models, folder / "models.csv")
    with written_whole(folder / "models.tex") as beside:
        caption = f"What the models of {comparison.heading} see, and their size."
        beside.write_text(latex(models, caption=caption, label="tab:models"), encoding="utf-8")
    seeds = comparison.by_seed()
    if seeds is not None:
        write_csv(seeds, folder / "seeds.csv")
    pictures, lacking = _draw(comparison, folder)
    summary = write_results(
        folder,
        comparison.methods,
        heading=comparison.heading,
        kind=kind,
        notes=[*comparison.notes(), *filter(None, [lacking])],
        figures=pictures,
    )
    shown = "\n".join(render(table) for table in (models, seeds) if table is not None)
    return f"{comparison.heading} ({kind})\n\n{shown}\n{summary}"


def _draw(comparison: Comparison, folder: Path) -> tuple[list[Picture], str]:
    """Masks side by side and the training curves; a sentence on what is not shown, if any is."""
    data, spec = comparison.data, PreprocessSpec.from_config(comparison.cfg)
    heading = f"{comparison.heading} ({data.dataset.kind}), seed {comparison.seeds[0]}"
    runs = [
        ScoredRun(title, run / "evaluation" / data.held_out_name, cases)
        for title, run, cases in comparison.columns
    ]

    def draw(shown: Sequence[ScoredRun]) -> list[Picture]:
        by_task = draw_by_task(shown, data, spec, heading, folder / FIGURE)
        return [by_task, *draw_ranked(shown, data, spec, heading, folder / "figures")]

    pictures, lacking = draw_side_by_side(runs, folder / "figures", draw)
    for title, run, _ in comparison.columns:
        if (run / CURVES).is_file():
            pictures.append(Picture(run / CURVES, f"Training curves, {title}"))
    return pictures, lacking


def section(comparison: Comparison, command: str, where: str) -> str:
    """Table 1 as a part of a document: Markdown.

    Args:
        command: that made it.
        where: machine and versions.
    """
    seeds = comparison.by_seed()
    methods, cfg, kind = comparison.methods, comparison.cfg, comparison.data.dataset.kind
    patients = {found.patient for cases in methods.values() for found in cases}
    parts = [
        f"```\n{command}\n```\n",
        f"{comparison.heading} ({kind}): {len(patients)} patients. {KINDS.get(kind, '')}\n",
        f"Batches of {cfg.batch_size}. {where}\n",
        render(comparison.models()),
        *([render(seeds)] if seeds is not None else []),
        *(f"{note}\n" for note in comparison.notes()),
    ]
    for titled in results_tables(methods, find_differences(methods, COMPARED)):
        if titled.title in _SHOWN:
            parts += [f"{titled.title}:\n", render(titled.table), f"{titled.note}\n"]
    return "\n".join(parts)
