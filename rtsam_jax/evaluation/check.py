"""Looks at held-out cases before training: what cannot be scored is said before it costs a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rtsam_jax.data.cases import Case
from rtsam_jax.data.nifti import read_label
from rtsam_jax.data.pipeline import ScanKey, preprocess_case, scan_key
from rtsam_jax.data.preprocess import Grid, PreprocessSpec, require_overlap


def check_held_out(
    cases: Sequence[Case], modality: Mapping[str, str], spec: PreprocessSpec
) -> None:
    """Preprocesses every scan that has a label once, as scoring will; nothing is kept.

    Args:
        modality: per task, "CT" or "MR".

    Raises:
        MissingFile, UnreadableFile, VolumeError, NonFiniteVoxels: of a volume; see `read_volume`.
        NoOverlap: dose or label share no space with the image.
        ZeroDose, EmptyROI: no positive dose; none above the threshold on the model grid.
    """
    grids: dict[ScanKey, Grid] = {}  # a scan of several tasks is read once
    for case in cases:
        if case.label is None:
            continue
        scan = scan_key(case, modality)
        if scan not in grids:
            grids[scan] = preprocess_case(case, modality[case.task], spec).grid
        require_overlap(read_label(case.label), grids[scan], what="label", name=case.id)
