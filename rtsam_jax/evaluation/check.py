"""Looks at held-out cases before training: what cannot be scored is said before it costs a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.cases import Case
from rtsam_jax.data.nifti import read_label
from rtsam_jax.data.preprocess import Grid, PreprocessSpec, require_coverage
from rtsam_jax.data.scans import ScanSource, preprocess_scan, scan_source
from rtsam_jax.data.structures import read_structures
from rtsam_jax.errors import ConfigError


def require_dose_boxes(run: Path, cfg: ExperimentConfig) -> None:
    """Raises `ConfigError` where a run was trained without doses (config.dose.source).

    Its held-out cases would be shown where a dose lies that its predictions take no crop from, or
    boxed by a dose in the place of a box that is given.
    """
    if cfg.dose.source != "dose":
        raise ConfigError(
            f"the run {run} was trained without doses (dose.source={cfg.dose.source!r}), so there "
            "is no region to score it in; predict with it, and score the masks with python -m "
            "rtsam_jax.evaluate --pred DIR --truth DIR."
        )


def check_held_out(
    cases: Sequence[Case], modality: Mapping[str, str], spec: PreprocessSpec
) -> None:
    """Preprocesses every scan that has a label once, as scoring will; nothing is kept.

    Args:
        modality: per task, "CT" or "MR".

    Raises:
        MissingFile, UnreadableFile, VolumeError, NonFiniteVoxels: of a volume; see `read_volume`.
        IncompleteCase: a case has no dose.
        NoOverlap, LabelNotCovering: a dose covers none, or a label not all, of its image; a
            structure none of its label.
        ZeroDose, EmptyROI: no positive dose; none above the threshold on the model grid.
    """
    grids: dict[ScanSource, Grid] = {}  # a scan of several tasks is read once
    for case in cases:
        if case.label is None:
            continue
        scan = scan_source(case, modality, spec)
        if scan not in grids:
            whole = preprocess_scan(scan, spec, name=case.id)
            whole.require_dose(name=case.id, purpose="scoring")
            grids[scan] = whole.grid
        label = read_label(case.label, case.label_value)
        require_coverage(label, grids[scan], name=case.id)
        read_structures(case, label)
