"""Held-out cases to measures: every method on the label's original grid.

A method turns a preprocessed case into a probability on the model grid. The trained model and the
trivial predictors it has to beat pass through the same grids, threshold and measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rtsam_jax.data.cases import Case
from rtsam_jax.data.crops import blend, crop_origins, extract
from rtsam_jax.data.neighbourhood import Neighbourhood, anchor_box
from rtsam_jax.data.nifti import Volume, read_label
from rtsam_jax.data.preprocess import Preprocessed, PreprocessSpec, require_coverage, to_native
from rtsam_jax.data.scans import preprocessed
from rtsam_jax.data.structures import read_structures
from rtsam_jax.evaluation.trivial import (
    RoiRule,
    Rule,
    TrainingCrop,
    fit_atlas,
    fit_threshold,
)
from rtsam_jax.metrics.case import CaseMetrics, score_case

THRESHOLD = 0.5  # probability; the same for every task and method

Method = Callable[[Case, Preprocessed], np.ndarray]


@dataclass(frozen=True)
class Scored:
    """One held-out case: measures and masks by method, for tables and figures."""

    case: Case
    scan: Preprocessed
    truth: Volume
    metrics: dict[str, CaseMetrics]
    masks: dict[str, np.ndarray]  # bool, on the label's grid


def score_cases(
    cases: Sequence[Case],
    modality: Mapping[str, str],
    spec: PreprocessSpec,
    methods: Mapping[str, Method],
) -> Iterator[Scored]:
    """Yields cases one by one, so that volumes need not be held; cases without a label are skipped.

    A probability of 0.5 or more on the label's grid is foreground; truth outside every crop counts
    as missed.

    Raises:
        NoOverlap, LabelNotCovering: a label covers none, or not all, of its image; a structure none
            of its label.
        MissingFile, UnreadableFile, VolumeError: of a volume; see `read_volume` and `preprocess`.
    """
    labelled = [case for case in cases if case.label is not None]
    for case, scan in preprocessed(labelled, modality, spec):
        assert case.label is not None
        truth = read_label(case.label, case.label_value)
        require_coverage(truth, scan.grid, name=case.id)
        structures = read_structures(case, truth)
        metrics, masks = {}, {}
        for name, method in methods.items():
            masks[name] = to_native(method(case, scan), scan.grid, truth) >= THRESHOLD
            metrics[name] = score_case(
                masks[name],
                truth.array,
                spacing_mm=truth.spacing,
                case=case.id,
                patient=case.patient,
                task=case.task,
                structures=structures,
                diagonal_mm=scan.diagonal_mm,
            )
        yield Scored(case, scan, truth, metrics, masks)


def trivial_methods(
    training: Sequence[Neighbourhood], tasks: Sequence[str], size: int, *, crop: str = "dose"
) -> dict[str, Method]:
    """The predictors that need no network, fitted on the training cases: ROI, threshold, atlas.

    They see one cube per case, centred on what its crops lie around.

    Args:
        size: edge of the model's crop in voxels, and of the cube; where crops tile the body the
            cube is as large as the largest training case's tiling.
        crop: config.data.crop.
    """
    edge = size
    if crop == "image":
        edge += max(int(np.ptp(case.origins, axis=0).max()) for case in training)

    def cubes() -> Iterator[TrainingCrop]:
        for case in training:
            origin = _centred(case.origins, size, edge)
            yield TrainingCrop(
                task=tasks[case.task_id],
                image=extract(case.image, origin, edge, case.background),
                label=extract(case.label, origin, edge, 0).astype(bool),
                roi=extract(case.roi, origin, edge, 0).astype(bool),
            )

    thresholds, atlases, roi = fit_threshold(cubes()), fit_atlas(cubes()), RoiRule()
    return {
        "ROI itself": _in_cube(lambda task: roi, size, edge),
        "intensity threshold": _in_cube(thresholds.__getitem__, size, edge),
        "location atlas": _in_cube(atlases.__getitem__, size, edge),
    }


def _centred(origins: np.ndarray, size: int, edge: int) -> np.ndarray:
    """The origin of a cube centred on crops of edge `size`, whether there is one or many."""
    return (origins.min(0) + origins.max(0) + size - edge) // 2


def _in_cube(rule_of: Callable[[str], Rule], size: int, edge: int) -> Method:
    def method(case: Case, scan: Preprocessed) -> np.ndarray:
        high_dose, _ = scan.require_dose(name=case.id, purpose="scoring")
        origin = _centred(crop_origins(anchor_box(scan, None), size), size, edge)
        image = extract(scan.image, origin, edge, scan.background)
        roi = extract(high_dose, origin, edge, 0).astype(bool)
        mask = rule_of(case.task).predict(image, roi)
        return blend(mask[None].astype(np.float32), origin[None], scan.image.shape)

    return method
