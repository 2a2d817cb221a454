"""Scores a model on held-out cases beside the trivial predictors; leaves a results folder.

The test mode is text and box alone, no clicks (Sec. 4.2).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.cases import Case
from rtsam_jax.data.pipeline import Neighbourhood
from rtsam_jax.data.preprocess import PreprocessSpec
from rtsam_jax.data.selection import RunData
from rtsam_jax.evaluation.inference import CropPredictor, predict_volume
from rtsam_jax.evaluation.kept_masks import keeping_masks
from rtsam_jax.evaluation.report import draw_overlay, pick_for_figures, write_results
from rtsam_jax.evaluation.scored_cases import ScoredCases
from rtsam_jax.evaluation.scoring import Method, score_cases, trivial_methods
from rtsam_jax.metrics.case import CaseMetrics
from rtsam_jax.models.presets import get_spec
from rtsam_jax.report.curves import CURVES
from rtsam_jax.report.results_html import Picture
from rtsam_jax.text.prompt_set import PROBES, PromptSet

_NAMED = 5  # cases that a note names
MODEL = "model"


def probe_name(probe: str) -> str:
    """The method's name in tables: "model, record shuffled"."""
    return f"{MODEL}, {PROBES[probe]}"


def evaluate_held_out(
    cfg: ExperimentConfig,
    data: RunData,
    predict: CropPredictor,
    prompts: PromptSet,
    training: Sequence[Neighbourhood],
    run: Path,
    recorded: Mapping[str, Sequence[CaseMetrics]] | None = None,
    *,
    seen: Sequence[str] = (),
    doubt: str = "",
) -> dict[str, list[CaseMetrics]]:
    """Scores `data.held_out`, prints the table, writes `run/evaluation/<split>/`, masks too.

    Args:
        predict: of `make_crop_predictor`.
        prompts: what each case is told; the model is also scored with each of its probes, and
            what it loses by one is what that part of the prompt tells it.
        training: what the trivial predictors are fitted on.
        recorded: measures of the same cases found elsewhere, by name, to stand beside.
        seen: ids of cases whose image the run, or one that it started from, was trained on.
        doubt: why there may be others, a sentence without its full stop; "" where there are none.

    Returns:
        Measures of every method scored here, case by case.
    """
    size = get_spec(cfg.model.preset).image_size
    folder = run / "evaluation" / data.held_out_name

    def told(ids: Mapping[str, int]) -> Method:
        return lambda case, scan: predict_volume(predict, scan, ids[case.id], size, name=case.id)

    methods: dict[str, Method] = {MODEL: told(prompts.own)}
    for probe, ids in prompts.probes.items():
        methods[probe_name(probe)] = told(ids)
    methods |= trivial_methods(training, data.tasks, size, crop=cfg.data.crop)
    spec = PreprocessSpec.from_config(cfg)
    found: dict[str, list[CaseMetrics]] = {name: [] for name in methods}
    labelled = ScoredCases.held_out(cfg, data)
    count = len(labelled.cases)
    outside: dict[str, float] = {}
    all_scored = score_cases(labelled.cases, data.modality, spec, methods)
    for i, scored in enumerate(keeping_masks(all_scored, MODEL, folder), start=1):
        for name, metrics in scored.metrics.items():
            found[name].append(metrics)
        outside[scored.case.id] = scored.scan.fraction_outside_dose or 0.0
        if i % max(1, count // 10) == 0 or i == count:
            print(f"evaluated {i}/{count} cases", flush=True)
    figures = draw_overlays(cfg, data, found[MODEL], MODEL, methods[MODEL], folder / "figures")
    drawn = len(figures)
    if (run / CURVES).exists():
        figures.append(Picture(run / CURVES, "Training curves"))
    heading = f"{data.dataset.name}, split {data.held_out_name}"
    text = write_results(
        folder,
        {**found, **(recorded or {})},
        heading=heading,
        kind=data.dataset.kind,
        notes=_notes(data.held_out, outside, seen, doubt),
        figures=figures,
    )
    labelled.keep(folder)
    print(f"\n{heading} ({data.dataset.kind})\n{text}", flush=True)
    print(f"tables, masks, {drawn} overlays and report.html are in {folder}", flush=True)
    return found


def draw_overlays(
    cfg: ExperimentConfig,
    data: RunData,
    found: Sequence[CaseMetrics],
    name: str,
    method: Method,
    folder: Path,
) -> list[Picture]:
    """Three planes of `cfg.figures` cases, spread over a method's Dice ranking, best first.

    Args:
        found: its measures.
        folder: is replaced by that of the pictures.
    """
    shutil.rmtree(folder, ignore_errors=True)  # an earlier evaluation's choice
    chosen = pick_for_figures(found, cfg.figures)
    by_id = {case.id: case for case in data.held_out}
    draw = [by_id[found[i].case] for i in chosen]
    spec = PreprocessSpec.from_config(cfg)
    return [
        draw_overlay(scored, name, data.dataset.kind, folder, rank)
        for scored, rank in zip(
            score_cases(draw, data.modality, spec, {name: method}), chosen.values(), strict=True
        )
    ]


def _notes(
    cases: Sequence[Case], outside: Mapping[str, float], seen: Sequence[str], doubt: str
) -> list[str]:
    """What the measures do not show: cases that are not in them, or that should not be.

    Args:
        outside: share of the model grid outside the dose grid, by id.
        seen: as `evaluate_held_out`.
        doubt: likewise.
    """
    notes = [f"{doubt}."] if doubt else []
    if seen:
        notes.append(
            f"The run, or one that it started from, was trained on the images of {len(seen)} of "
            f"{len(outside)} cases: scores on these say nothing about patients that are new to it."
        )
    if unscored := [case.id for case in cases if case.label is None]:
        notes.append(
            f"Not scored, for want of a label: {len(unscored)} of {len(cases)} held-out cases "
            f"({', '.join(unscored)})."
        )
    if partly := sorted((-share, case) for case, share in outside.items() if share > 0):
        largest = ", ".join(f"{case} {-share:.1%}" for share, case in partly[:_NAMED])
        notes.append(
            f"Images that reach beyond their dose grid, where dose counts as 0: {len(partly)} of "
            f"{len(outside)}; the largest share outside: {largest}."
        )
    return notes
