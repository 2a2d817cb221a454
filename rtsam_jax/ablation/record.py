"""What an ablation leaves in its folder: tables, numbers, pictures, and a section of a document."""

from __future__ import annotations

import os
import shlex
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from rtsam_jax.ablation.figures import draw_study
from rtsam_jax.ablation.pictures import OF_PATIENTS, draw_thresholds, draw_variants
from rtsam_jax.ablation.plan import Plan
from rtsam_jax.ablation.results import (
    Result,
    Scores,
    TimeTaken,
    read_scores,
    results_of,
    times_of,
)
from rtsam_jax.ablation.runner import Failed
from rtsam_jax.ablation.tables import (
    NOTE,
    as_json,
    difference_table,
    every_number,
    left_out_note,
    study_table,
)
from rtsam_jax.ablation.variants import STUDIES, Study
from rtsam_jax.data.cases import Dataset
from rtsam_jax.data.json_file import write_json
from rtsam_jax.data.selection import RunData
from rtsam_jax.evaluation.report import write_results
from rtsam_jax.metrics.summary import pooled
from rtsam_jax.models.presets import get_spec
from rtsam_jax.report.files import written_whole
from rtsam_jax.report.latex import latex
from rtsam_jax.report.machine import cpu_name
from rtsam_jax.report.results_html import KINDS, Picture
from rtsam_jax.report.section import write_section
from rtsam_jax.report.tables import render, write_csv
from rtsam_jax.training.run import read_record, total_steps

SCHEMA_VERSION = 1
SECTION = "ablation"  # in the marks of a document
_COUNTED = "Every case counts once for each run; intervals and tests are by patient."


@dataclass(frozen=True)
class Record:
    """All that is known at the end of an ablation.

    Attributes:
        command: as it was called.
        data: by replicate, in their order; at least one.
        scores: by study, variant and replicate.
        results: by study.
        failed: runs that did not end well.
    """

    command: str
    plan: Plan
    data: Mapping[str, RunData]
    scores: Mapping[str, Mapping[str, Scores]]
    results: dict[str, list[Result]]
    failed: Sequence[Failed]

    @property
    def heading(self) -> str:
        """Dataset and its kind."""
        return f"{self.dataset.name} ({self.dataset.kind})"

    @property
    def dataset(self) -> Dataset:
        """That of every replicate."""
        return self.first.dataset

    @property
    def first(self) -> RunData:
        """Of the first replicate."""
        return next(iter(self.data.values()))

    @property
    def held_out_name(self) -> str:
        """The split that is scored, or all the folds."""
        return ", ".join(dict.fromkeys(data.held_out_name for data in self.data.values()))


def make_record(
    arguments: Sequence[str], plan: Plan, data: Mapping[str, RunData], failed: Sequence[Failed]
) -> Record:
    """Reads what the finished runs measured.

    Args:
        arguments: of the command.
        data: by replicate; of others too.

    Raises:
        UnreadableFile: a table of cases is damaged or of an earlier version.
    """
    command = shlex.join(["python", "-m", "rtsam_jax.ablate", *arguments])
    scores = {study.name: read_scores(plan, study) for study in plan.studies}
    results = {study.name: results_of(study, scores[study.name]) for study in plan.studies}
    own = {replicate.name: data[replicate.name] for replicate in plan.replicates}
    return Record(command, plan, own, scores, results, failed)


def settings(record: Record) -> str:
    """One paragraph: data, splits, model, schedule, machine and time."""
    cfg = record.plan.cfg
    spec = get_spec(cfg.model.preset)
    steps = [total_steps(cfg, len(data.train)) for data in record.data.values()]
    replicates = ", ".join(replicate.name for replicate in record.plan.replicates)
    sentences = [
        f"{record.heading}, tasks {', '.join(record.first.tasks)}: {_sides(record)}. "
        f"{KINDS.get(record.dataset.kind, '')}",
        f"{cfg.model.preset} at {cfg.data.spacing_mm:g} mm, crops of {spec.image_size} voxels, "
        f"tau {cfg.dose.tau:g}, {_range(steps)} steps of {cfg.batch_size}; "
        f"each variant as {replicates}.",
    ]
    if record.plan.pretraining:
        sentences.append(_pretraining(record))
    done = [run for run in record.plan.runs if run.done]
    times = times_of(done)
    if times:
        seconds = [took.seconds for took in times]
        middle, longest = (timedelta(seconds=round(f(seconds))) for f in (statistics.median, max))
        about = read_record(done[0].folder)
        sentences.append(
            f"A run took {middle} (median, {longest} at most, scoring included, over the "
            f"{len(times)} of {len(record.plan.runs)} runs that were never interrupted) on "
            f"{', '.join(about['devices'])}, {cpu_name()}, {_cores(times)}; Python "
            f"{about['python']}, jax {about['versions']['jax']}."
        )
    if record.plan.earlier:
        sentences.append(f"Of earlier commands in this folder: {', '.join(record.plan.earlier)}.")
    return " ".join(sentences)


def _sides(record: Record) -> str:
    """How many cases the runs train on, and on how many all of them together are scored."""
    sides = list(record.data.values())
    held_out = {case.id: case.patient for data in sides for case in data.held_out}
    patients = len(set(held_out.values()))
    several = len({frozenset(case.id for case in data.held_out) for data in sides}) > 1
    return (
        f"{_range([len(data.train) for data in sides])} training cases{' a run' * several}, "
        f"{len(held_out)} held out{' over all runs' * several} "
        f"({patients} patients, {record.held_out_name})"
    )


def _cores(times: Sequence[TimeTaken]) -> str:
    """What a run had of the processor, which `--parallel` divides."""
    known = [took.cores for took in times if took.cores is not None]
    if len(known) < len(times):
        return f"{os.cpu_count()} cores, a run's share of which was not recorded"
    return f"{_range(known)} core{'s' * (max(known) > 1)} a run"


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _pretraining(record: Record) -> str:
    """What the runs start from; in words, since no row of the tables shows it."""
    [first, *others] = record.plan.pretraining
    steps = total_steps(first.cfg, len(record.first.train))
    seconds = [took.seconds for took in times_of(record.plan.pretraining)]
    took = f" ({timedelta(seconds=round(statistics.median(seconds)))})" if seconds else ""
    whose = "of its own" if others else "that all share"
    return (
        f"Every run starts from a pretraining {whose}: {steps} steps{took} on the same training "
        "cases, by clicks alone (no task, no box, Dice-CE); its image encoder stays frozen."
    )


def text(record: Record) -> str:
    """Every table with its title, as Markdown that reads well in a terminal too."""
    return "\n".join(_blocks(record))


def _blocks(record: Record) -> Iterator[str]:
    yield f"```\n{record.command}\n```\n"
    yield settings(record) + "\n"
    for study in record.plan.studies:
        results = record.results[study.name]
        yield f"**{study.title}.** {study.note}\n"
        yield render(study_table(study, results, len(record.plan.replicates)))
        differences = difference_table(study, results)
        if differences:
            yield render(differences)
        if said := left_out_note(results):
            yield said + "\n"
    yield NOTE + "\n"
    if record.failed:
        yield "Failed: " + "; ".join(each.run.name for each in record.failed) + ".\n"


def write_files(record: Record) -> list[Path]:
    """Writes `results.md`, `.csv`, `.json` and `.tex`, pictures and pages; returns the pictures.

    Pictures and pages of studies that have no run in the record are removed: they would stand
    beside tables without them.
    """
    out = record.plan.out
    with written_whole(out / "results.md") as beside:
        beside.write_text(f"# Ablation of {record.heading}\n\n{text(record)}", encoding="utf-8")
    every = [result for results in record.results.values() for result in results]
    write_csv(every_number(every), out / "results.csv")
    content = {
        "schema": SCHEMA_VERSION,
        "command": record.command,
        "dataset": {"name": record.dataset.name, "kind": record.dataset.kind},
        "config": asdict(record.plan.cfg),
        "replicates": [
            {"name": replicate.name, "changes": dict(replicate.changes)}
            for replicate in record.plan.replicates
        ],
        "settings": settings(record),
        "results": as_json(every),
        "failed": [{"run": each.run.name, "reason": each.reason} for each in record.failed],
    }
    write_json(out / "results.json", content)
    with written_whole(out / "results.tex") as beside:
        beside.write_text("\n".join(_latex(record)), encoding="utf-8")
    pictures, fig5, fig7 = [], out / "figures" / "fig5.png", out / "figures" / "fig7.png"
    for stale in (fig5, fig7):
        stale.unlink(missing_ok=True)
    for study in STUDIES.values():
        picture = out / "figures" / f"{study.figure}.png"
        picture.unlink(missing_ok=True)  # of runs that are no more
        if draw_study(study, record.results.get(study.name, ()), record.heading, picture):
            pictures.append(picture)
            cases = _write_page(record, study, picture)
            if study.name == "components" and cases:
                shutil.copyfile(cases[len(cases) // 2].path, fig5)
                pictures.append(fig5)
        else:
            shutil.rmtree(record.plan.page(study), ignore_errors=True)
        if study.name == "tau" and study in record.plan.studies:
            drawn = draw_thresholds(record.plan, record.first, record.heading, fig7)
            pictures += [fig7] * drawn
    return pictures


def _latex(record: Record) -> Iterator[str]:
    for study in record.plan.studies:
        results = record.results[study.name]
        caption = f"{study.title}. {record.heading}. {study.note} {NOTE}"
        table = study_table(study, results, len(record.plan.replicates))
        yield latex(table, caption=caption, label=f"tab:ablation-{study.name}")


def _write_page(record: Record, study: Study, picture: Path) -> list[Picture]:
    """A results folder of the study, with every measure; its last row is the one in question.

    Returns:
        Its pictures of cases, from the last row's best to its worst.
    """
    page = record.plan.page(study)
    scores = record.scores[study.name]
    methods = {v.title: pooled(scores[v.name]) for v in reversed(study.variants) if scores[v.name]}
    cases, lacking = draw_variants(record.plan, study, scores, record.first, page / "figures")
    write_results(
        page,
        methods,
        heading=f"{study.title}, {record.dataset.name}, split {record.held_out_name}",
        kind=record.dataset.kind,
        notes=[note for note in (study.note, _COUNTED, lacking) if note],
        figures=[Picture(picture, study.title, NOTE), *cases],
    )
    return cases


def write_document(record: Record, document: Path, name: str, pictures: Sequence[Path]) -> None:
    """Puts tables and pictures between the marks `ablation NAME` of a document.

    Raises:
        UnreadableFile: the document lacks one of the marks.
    """
    synthetic = record.dataset.kind == "synthetic"
    shown = {
        f"{picture.stem}, {record.heading}": picture
        for picture in pictures
        if synthetic or picture.stem not in OF_PATIENTS
    }
    write_section(document, SECTION, name, text(record), shown)
