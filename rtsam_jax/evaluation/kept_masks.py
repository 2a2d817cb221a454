"""The masks that a scored run leaves beside its measures: `masks/CASE.nii.gz`.

They are for who wants to look or to measure otherwise, and the pictures that set several runs side
by side are made of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from rtsam_jax.data.nifti import Volume, read_label, write_volume
from rtsam_jax.errors import RTSamError, UnreadableFile
from rtsam_jax.evaluation.mask_files import same_grid
from rtsam_jax.evaluation.scoring import Scored

_FOLDER = "masks"


def mask_file(results: Path, case: str) -> Path:
    """Where the mask of a case lies in a results folder."""
    return results / _FOLDER / f"{case}.nii.gz"


def keeping_masks(scored: Iterable[Scored], method: str, results: Path) -> Iterator[Scored]:
    """Passes scored cases on and keeps a method's masks; those of an earlier evaluation go."""
    shutil.rmtree(results / _FOLDER, ignore_errors=True)
    for one in scored:
        keep_mask(results, one.case.id, one.masks[method], one.truth)
        yield one


def keep_mask(results: Path, case: str, mask: np.ndarray, truth: Volume) -> None:
    """Writes a mask, whole or not at all.

    Args:
        mask: bool [i, j, k], on the grid of `truth`: the label's, in the axes nearest to RAS+.
    """
    write_volume(mask_file(results, case), Volume(mask, truth.affine), np.uint8)


def read_mask(results: Path, case: str, truth: Volume) -> Volume:
    """A case's mask.

    Raises:
        UnreadableFile: it is missing, damaged, or not on the grid of `truth`.
    """
    path = mask_file(results, case)
    try:
        mask = read_label(path, what="mask")
    except RTSamError as cause:
        raise UnreadableFile(
            f"{path} is missing or damaged; delete it and have its run scored again."
        ) from cause
    if not same_grid(mask, truth):
        raise UnreadableFile(
            f"{path} is not on the grid of its label; delete it and have its run scored again."
        )
    return mask


def has_masks(results: Path, cases: Iterable[str]) -> bool:
    """Whether each of the cases has one; versions before this module kept none."""
    return all(mask_file(results, case).is_file() for case in cases)
