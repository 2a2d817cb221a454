"""The masks that a scored run leaves beside its measures: `masks/CASE.nii.gz`.

They are for who wants to look or to measure otherwise, and the pictures that set several runs side
by side are made of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from rtsam_jax.data.nifti import Volume, write_volume

_FOLDER = "masks"


def mask_file(results: Path, case: str) -> Path:
    """Where the mask of a case lies in a results folder."""
    return results / _FOLDER / f"{case}.nii.gz"


def keep_mask(results: Path, case: str, mask: np.ndarray, truth: Volume) -> None:
    """Writes a mask, whole or not at all.

    Args:
        mask: bool [i, j, k], on the grid of `truth`: the label's, in the axes nearest to RAS+.
    """
    write_volume(mask_file(results, case), Volume(mask, truth.affine), np.uint8)


def forget_masks(results: Path) -> None:
    """Removes those of an earlier evaluation."""
    shutil.rmtree(results / _FOLDER, ignore_errors=True)


def has_masks(results: Path, cases: Iterable[str]) -> bool:
    """Whether each of the cases has one; versions before this module kept none."""
    return all(mask_file(results, case).is_file() for case in cases)
