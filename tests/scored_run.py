"""A scored run without a network: its masks are the truth, moved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rtsam_jax.data.nifti import read_label
from rtsam_jax.data.selection import RunData
from rtsam_jax.evaluation.kept_masks import keep_mask
from rtsam_jax.evaluation.side_by_side import ScoredRun
from rtsam_jax.metrics.case import CaseMetrics, score_case
from rtsam_jax.report.tables import case_rows, write_csv


def scored(title: str, data: RunData, results: Path, shift: Mapping[str, int]) -> ScoredRun:
    """Keeps the truth of every held-out case, moved by some voxels, with its measures."""
    found: list[CaseMetrics] = []
    for case in data.held_out:
        assert case.label is not None
        truth = read_label(case.label)
        mask = np.roll(truth.array, shift[case.id], axis=0)
        keep_mask(results, case.id, mask, truth)
        found.append(
            score_case(
                *(mask, truth.array),
                spacing_mm=truth.spacing,
                case=case.id,
                patient=case.patient,
                task=case.task,
            )
        )
    write_csv(case_rows(found), results / "cases.csv")
    return ScoredRun(title, results, found)
