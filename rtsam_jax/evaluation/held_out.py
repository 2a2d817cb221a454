"""Scores a model on held-out cases beside the trivial predictors; leaves tables and figures.

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
from rtsam_jax.evaluation.report import draw_overlay, pick_for_figures, write_tables
from rtsam_jax.evaluation.scoring import Method, score_cases, trivial_methods
from rtsam_jax.metrics.summary import CaseMetrics
from rtsam_jax.models.presets import get_spec
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
) -> dict[str, list[CaseMetrics]]:
    """Scores `data.held_out`, prints the table, writes `run/evaluation/<split>/`.

    Args:
        predict: of `make_crop_predictor`.
        prompts: what each case is told; the model is also scored with each of its probes, and
            what it loses by one is what that part of the prompt tells it.
        training: what the trivial predictors are fitted on.

    Returns:
        Measures of every method, case by case.
    """
    size = get_spec(cfg.model.preset).image_size
    folder = run / "evaluation" / data.held_out_name

    def told(ids: Mapping[str, int]) -> Method:
        return lambda case, scan: predict_volume(predict, scan, ids[case.id], size, name=case.id)

    methods: dict[str, Method] = {MODEL: told(prompts.own)}
    for probe, ids in prompts.probes.items():
        methods[probe_name(probe)] = told(ids)
    methods |= trivial_methods(training, data.tasks, size)
    spec = PreprocessSpec.from_config(cfg)
    found: dict[str, list[CaseMetrics]] = {name: [] for name in methods}
    labelled = [case for case in data.held_out if case.label is not None]
    count = len(labelled)
    outside: dict[str, float] = {}
    for i, scored in enumerate(score_cases(labelled, data.modality, spec, methods), start=1):
        for name, metrics in scored.metrics.items():
            found[name].append(metrics)
        outside[scored.case.id] = scored.scan.fraction_outside_dose or 0.0
        if i % max(1, count // 10) == 0 or i == count:
            print(f"evaluated {i}/{count} cases", flush=True)
    notes = _notes(data.held_out, outside)
    heading = f"{data.dataset.name} ({data.dataset.kind}), split {data.held_out_name}"
    print(f"\n{heading}\n{write_tables(folder, found, heading, notes)}", flush=True)
    chosen = pick_for_figures(found[MODEL], cfg.figures)
    by_id = {case.id: case for case in data.held_out}
    draw = [by_id[found[MODEL][i].case] for i in chosen]
    shutil.rmtree(folder / "figures", ignore_errors=True)  # an earlier evaluation's choice
    for scored in score_cases(draw, data.modality, spec, {MODEL: methods[MODEL]}):
        draw_overlay(scored, MODEL, data.dataset.kind, folder / "figures")
    print(f"tables and {len(draw)} overlays are in {folder}", flush=True)
    return found


def _notes(cases: Sequence[Case], outside: Mapping[str, float]) -> list[str]:
    """What the measures do not show: cases that are not in them, and images partly without dose.

    Args:
        outside: share of the model grid outside the dose grid, by id.
    """
    notes = []
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
