"""Pictures of cases: a study's masks side by side (Fig. 5), a case's dose masks (Fig. 7)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rtsam_jax.ablation.dose_masks import draw_dose_masks
from rtsam_jax.ablation.plan import Plan
from rtsam_jax.ablation.results import Scores
from rtsam_jax.ablation.variants import TAUS, Study
from rtsam_jax.data.preprocess import PreprocessSpec
from rtsam_jax.data.selection import RunData
from rtsam_jax.errors import EmptyROI
from rtsam_jax.evaluation.side_by_side import ScoredRun, draw_ranked, draw_side_by_side
from rtsam_jax.report.results_html import Picture

OF_PATIENTS = ("fig5", "fig7")  # stems of their files: not for publishing, unless of phantoms


def draw_variants(
    plan: Plan, study: Study, scores: Mapping[str, Scores], data: RunData, folder: Path
) -> tuple[list[Picture], str]:
    """A study's variants, first replicate, on the best, median and worst case of the last one.

    Args:
        scores: by variant's name.
        data: of the first replicate.
        folder: is replaced by that of the pictures.

    Returns:
        The pictures, and a sentence on what they do not show, if there is anything.
    """
    first = plan.replicates[0].name
    runs, absent = [], []
    for variant in study.variants:
        if first in scores[variant.name]:
            results = plan.of(variant)[0].cases_file.parent
            runs.append(ScoredRun(variant.title, results, scores[variant.name][first]))
        else:
            absent.append(variant.title)
    heading = f"{data.dataset.name} ({data.dataset.kind}), {first}"
    spec = PreprocessSpec.from_config(plan.cfg)
    pictures, said = draw_side_by_side(
        runs, folder, lambda shown: draw_ranked(shown, data, spec, heading, folder)
    )
    if absent:
        said += f" Not shown side by side, since {first} is not there: {'; '.join(absent)}."
    return pictures, said.strip()


def draw_thresholds(plan: Plan, data: RunData, heading: str, out: Path) -> bool:
    """Dose masks of the first held-out case that can be scored; returns whether there is one."""
    spec = PreprocessSpec.from_config(plan.cfg)
    for case in data.held_out:
        if case.dose is None or case.label is None:
            continue
        try:
            draw_dose_masks(case, data.modality, spec, TAUS, heading, out)
        except EmptyROI as error:
            print(f"{out.name} is not drawn: {error}", flush=True)
            break
        return True
    return False
