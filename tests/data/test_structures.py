"""Structures on the grid of a label: exact on the same grid, interpolated on another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rtsam_jax.data.cases import Case, Structure
from rtsam_jax.data.nifti import Volume, write_volume
from rtsam_jax.data.structures import read_structures
from rtsam_jax.errors import NoOverlap, VolumeError

LABEL = Volume(np.zeros((12, 10, 8), bool), np.diag([2.0, 2.0, 3.0, 1.0]))


def a_case(path: Path, value: int | None = None) -> Case:
    return Case("one", "p", "orn", Path("i"), structures={"cord": Structure(path, value)})


def test_the_labels_own_grid_in_other_axes(tmp_path: Path) -> None:
    cord = np.random.default_rng(0).random(LABEL.shape) < 0.3
    flipped = LABEL.affine @ np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = 2.0 * (LABEL.shape[0] - 1)
    stored = Volume(cord[::-1].astype(np.uint8) * 3, flipped)
    write_volume(tmp_path / "map.nii.gz", stored, np.uint8)
    for value, expected in ((None, cord), (3, cord), (2, np.zeros_like(cord))):
        found = read_structures(a_case(tmp_path / "map.nii.gz", value), LABEL)
        np.testing.assert_array_equal(found["cord"], expected)


def test_another_grid_is_interpolated_and_ends_where_it_ends(tmp_path: Path) -> None:
    # A block of 1 mm voxels over the label's first 12 mm along the second axis, all of it inside.
    affine = np.eye(4)
    affine[:3, 3] = -0.5, -0.5, -1.0
    write_volume(tmp_path / "cord.nii.gz", Volume(np.ones((24, 12, 24)), affine), np.uint8)
    found = read_structures(a_case(tmp_path / "cord.nii.gz"), LABEL)["cord"]
    expected = np.zeros(LABEL.shape, bool)
    expected[:, :6] = True
    np.testing.assert_array_equal(found, expected)


def test_a_structure_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    far = LABEL.affine.copy()
    far[:3, 3] = 500
    write_volume(tmp_path / "far.nii.gz", Volume(np.ones((4, 4, 4)), far), np.uint8)
    with pytest.raises(NoOverlap, match="structure 'cord' of one covers no voxel"):
        read_structures(a_case(tmp_path / "far.nii.gz"), LABEL)
    several = Volume(np.arange(64.0).reshape(4, 4, 4), LABEL.affine)
    write_volume(tmp_path / "map.nii.gz", several, np.uint8)
    with pytest.raises(VolumeError, match=r"structure 'cord' .*structures\.cord\.value"):
        read_structures(a_case(tmp_path / "map.nii.gz"), LABEL)
