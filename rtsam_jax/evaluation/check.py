"""Looks at held-out cases before training: what cannot be scored is said before it costs a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rtsam_jax.data.cases import Case
from rtsam_jax.data.nifti import read_label, read_volume
from rtsam_jax.data.preprocess import Grid, model_grid, require_overlap
from rtsam_jax.prompts.dose import dmax


def check_held_out(cases: Sequence[Case], spacing_mm: float) -> None:
    """Reads the volumes of every case that has a label once; nothing is resampled.

    Args:
        spacing_mm: of the model grid.

    Raises:
        MissingFile, UnreadableFile, VolumeError, NonFiniteVoxels: of a volume; see `read_volume`.
        NoOverlap: dose or label share no space with the image.
        ZeroDose: no positive dose.
    """
    grids: dict[tuple[Path, Path], Grid] = {}  # a scan of several tasks is read once
    for case in cases:
        if case.label is None:
            continue
        scan = case.image, case.dose
        if scan not in grids:
            grids[scan] = model_grid(
                read_volume(case.image, what="image"), spacing_mm, name=case.id
            )
            dose = read_volume(case.dose, what="dose")
            require_overlap(dose, grids[scan], what="dose", name=case.id)
            dmax(dose.array, name=case.id)
        require_overlap(read_label(case.label), grids[scan], what="label", name=case.id)
