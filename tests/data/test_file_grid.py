"""Results go back to the file's own grid: its axes, its place, its codes, and no names."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.data.file_grid import file_grid
from rtsam_jax.data.nifti import read_volume
from tests.data.test_nifti import ORIENTATIONS, oblique_affine, reoriented

VALUES = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grids")


@settings(max_examples=20, deadline=None)
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    codes=st.sampled_from([(1, 1), (0, 2), (3, 0), (4, 3)]),
    unit=st.sampled_from(["mm", "meter", "unknown"]),
    second=st.booleans(),
)
def test_what_is_written_lies_on_the_file_as_it_was(
    folder: Path, orientation: np.ndarray, codes: tuple[int, int], unit: str, second: bool
) -> None:
    stored, affine = reoriented(VALUES, oblique_affine(), orientation)
    scale = np.diag([*[0.001 if unit == "meter" else 1] * 3, 1])
    image = (nibabel.Nifti2Image if second else nibabel.Nifti1Image)(stored, scale @ affine)
    image.set_sform(scale @ affine, code=codes[0])
    image.set_qform(scale @ affine, code=codes[1])
    image.header.set_xyzt_units(unit, "sec")
    image.header["descrip"] = b"somebody's name"
    path, copy = folder / "image.nii", folder / "copy.nii.gz"
    nibabel.save(image, path)
    volume, grid = read_volume(path), file_grid(path)

    grid.write(copy, volume.array, np.float32)
    back = nibabel.load(copy)
    np.testing.assert_array_equal(back.get_fdata(dtype=np.float32), stored)
    np.testing.assert_allclose(
        back.affine, image.affine, rtol=1e-5, atol=1e-5
    )  # a quaternion in float32
    header = back.header
    assert (int(header["sform_code"]), int(header["qform_code"])) == codes
    assert header.get_xyzt_units()[0] == unit
    assert b"somebody" not in bytes(header.binaryblock)
    again = read_volume(copy)
    np.testing.assert_array_equal(again.array, VALUES)
    np.testing.assert_allclose(again.affine, volume.affine, rtol=1e-5, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(orientation=st.sampled_from(ORIENTATIONS), seed=st.integers(0, 99))
def test_an_index_is_that_of_the_stored_array(
    folder: Path, orientation: np.ndarray, seed: int
) -> None:
    stored, affine = reoriented(VALUES, oblique_affine(), orientation)
    nibabel.save(nibabel.Nifti1Image(stored, affine), folder / "indexed.nii")
    volume, grid = read_volume(folder / "indexed.nii"), file_grid(folder / "indexed.nii")
    at = np.random.default_rng(seed).integers(0, stored.shape)
    world = grid.to_world(at)
    np.testing.assert_allclose(grid.to_index(world), at, atol=1e-4)
    ours = np.linalg.solve(volume.affine, [*world, 1])[:3]
    assert volume.array[tuple(np.rint(ours).astype(int))] == stored[tuple(at)]
    assert grid.axes == "".join(nibabel.aff2axcodes(affine))
