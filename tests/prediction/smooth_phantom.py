"""A head and a dose that are smooth functions of the place, on any grid and in any format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest

SHAPE, AFFINE = (40, 38, 36), np.diag([2.0, 2.0, 2.0, 1.0])


def world_of(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def phantom(shape: Sequence[int], affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A smooth head and dose, sampled anywhere: no grid is the original one."""
    at = world_of(shape, affine)
    waves = np.sin(at @ [0.11, 0.05, 0.02]) + np.cos(at @ [-0.03, 0.09, 0.07])
    body = 1200 / (1 + np.exp((np.linalg.norm(at - 40, axis=-1) - 34) / 3)) - 1000
    dose = 60 * np.exp(-((np.linalg.norm(at - [44, 36, 40], axis=-1) / 30) ** 2))
    return (body + 150 * waves).astype(np.float32), dose.astype(np.float32)


def turned(array: np.ndarray, axes: str) -> tuple[np.ndarray, np.ndarray]:
    """The same voxels under another order of axes."""
    ornt = nibabel.orientations
    turn = ornt.ornt_transform(ornt.axcodes2ornt("RAS"), ornt.axcodes2ornt(axes))
    return nibabel.apply_orientation(array, turn), AFFINE @ ornt.inv_ornt_aff(turn, array.shape)


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    if path.suffix == ".nii":
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
        return path
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose()))
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(path))
    return path
