"""NRRD and MetaImage: the same volume as the NIfTI that ITK itself writes of it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from rtsam_jax.data.file_grid import file_grid
from rtsam_jax.data.itk import files_behind, read_itk
from rtsam_jax.data.nifti import read_volume
from rtsam_jax.errors import (
    ExtraMissing,
    MissingFile,
    NonFiniteVoxels,
    RTSamError,
    UnreadableFile,
    VolumeError,
)
from tests.data.test_nifti import ORIENTATIONS

sitk = pytest.importorskip("SimpleITK")

ENDINGS = (".nrrd", ".mha", ".mhd")


def image_of(array: np.ndarray, direction: np.ndarray = np.eye(3), spacing=(1.0, 1.0, 1.0)):  # noqa: B008
    """An ITK image of voxels [i, j, k]."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose()))
    image.SetDirection(direction.ravel().tolist())
    image.SetSpacing(spacing)
    image.SetOrigin((-31.0, 12.5, 700.0))
    return image


def write(folder: Path, name: str, array: np.ndarray | None = None, **place: object) -> Path:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 3, 5)).astype(np.float32) if array is None else array
    sitk.WriteImage(image_of(values, **place), str(folder / name))
    return folder / name


@settings(max_examples=20, deadline=None)
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    angles=st.tuples(*[st.floats(-0.7, 0.7)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 5.0)] * 3),
    dtype=st.sampled_from([np.uint8, np.int16, np.float32, np.float64]),
    compressed=st.booleans(),
)
def test_every_format_gives_the_volume_of_the_nifti(
    orientation: np.ndarray, angles, spacing, dtype, compressed: bool
) -> None:
    values = np.random.default_rng(1).integers(0, 200, (3, 4, 5)).astype(dtype)
    turn = np.zeros((3, 3))
    turn[orientation[:, 0].astype(int), range(3)] = orientation[:, 1]
    image = image_of(values, Rotation.from_euler("xyz", angles).as_matrix() @ turn, spacing)
    with tempfile.TemporaryDirectory() as folder:
        nifti = Path(folder) / "volume.nii"
        sitk.WriteImage(image, str(nifti))
        expected, grid = read_volume(nifti), file_grid(nifti)
        for ending in ENDINGS:
            path = nifti.with_suffix(ending)
            sitk.WriteImage(image, str(path), compressed)
            found, own = read_itk(path), file_grid(path)
            np.testing.assert_array_equal(found.array, expected.array)
            np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
            assert own.shape == grid.shape == values.shape and own.axes == grid.axes
            np.testing.assert_allclose(own.affine, grid.affine, atol=1e-4)


BAD: dict[str, tuple[Callable[[Path], Path], type[RTSamError], str]] = {
    "not there": (lambda f: f / "x.mha", MissingFile, "There is no image file"),
    "no header there": (lambda f: f / "x.mhd", MissingFile, "There is no image file"),
    "two dimensions": (lambda f: _written(f, np.zeros((4, 3), np.int16)), VolumeError, "one 3-D"),
    "four dimensions": (
        lambda f: _written(f, np.zeros((2, 3, 4, 5), np.int16)), VolumeError, "one 3-D frame"
    ),
    "vectors": (
        lambda f: _written(f, np.zeros((4, 3, 5, 3), np.int16), True), VolumeError, "3 numbers per"
    ),
    "NaN": (
        lambda f: _written(f, np.full((4, 3, 5), np.nan, np.float32)), NonFiniteVoxels, "60 NaN"
    ),
    "cut": (lambda f: _damaged(f, "x.mha", slice(0, -50)), UnreadableFile, "read as MHA"),
    "cut nrrd": (lambda f: _damaged(f, "x.nrrd", slice(0, -50)), UnreadableFile, "read as NRRD"),
    "another format": (lambda f: _renamed(f), UnreadableFile, "cannot be read as NRRD"),
    "no space": (
        lambda f: _changed(f, "x.nrrd", b"space: left-posterior-superior", b"space dimension: 3"),
        VolumeError, "left and right are unknown",
    ),
    "a scanner's space": (
        lambda f: _changed(f, "x.nrrd", b"left-posterior-superior", b"scanner-xyz"),
        VolumeError, "left and right are unknown",
    ),
    "many files": (
        lambda f: _changed(f, "x.mhd", b"x.raw", b"slice%03d.raw 1 5 1"), VolumeError, "one .mha"
    ),
    "many files of a nrrd": (
        lambda f: _changed(_apart(f), "x.nrrd", b"x.raw", b"LIST\nx.raw"), VolumeError, "one .nrrd"
    ),
    "numbered files of a nrrd": (
        lambda f: _changed(_apart(f), "x.nrrd", b"x.raw", b"x%02d.raw 1 5 1"), VolumeError,
        "one .nrrd",
    ),
    "voxels gone": (
        lambda f: _changed(f, "x.mhd", b"x.raw", b"y.raw"), UnreadableFile, "read as MHD"
    ),
    "no place": (lambda f: _placeless(f), VolumeError, "no place in the patient"),
    "too long": (
        lambda f: _changed(f, "x.nrrd", b"sizes: 4 3 5", b"sizes: 4 3 5000"), VolumeError, "2048"
    ),
}  # fmt: skip


def _written(folder: Path, array: np.ndarray, vector: bool = False) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=vector), str(folder / "x.mha"))
    return folder / "x.mha"


def _damaged(folder: Path, name: str, kept: slice) -> Path:
    path = write(folder, name)
    path.write_bytes(path.read_bytes()[kept])
    return path


def _apart(folder: Path, line: bytes = b"data file: ") -> Path:
    """`x.nrrd`, whose voxels are in `x.raw`."""
    header = write(folder, "x.nhdr")
    (folder / "x.nrrd").write_bytes(header.read_bytes().replace(b"data file: ", line))
    return folder / "x.nrrd"


def _changed(place: Path, name: str, old: bytes, new: bytes) -> Path:
    """A volume of that name in a folder, or the file itself, with another line in its header."""
    path = place if place.is_file() else write(place, name)
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    return path


def _placeless(folder: Path) -> Path:
    path = write(folder, "x.mha")
    place = (b"TransformMatrix", b"Offset", b"ElementSpacing")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in lines if not line.startswith(place)))
    return path


def _renamed(folder: Path) -> Path:
    return write(folder, "x.mha").rename(folder / "x.nrrd")


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_said(name: str, tmp_path: Path) -> None:
    make, error, sentence = BAD[name]
    with pytest.raises(error, match=sentence) as raised:
        read_itk(make(tmp_path))
    assert str(tmp_path) in str(raised.value)


def test_a_nrrd_in_ras_lies_where_its_lps_copy_does(tmp_path: Path) -> None:
    lps = read_itk(write(tmp_path, "x.nrrd"))
    (tmp_path / "ras").mkdir()
    old, new = b"left-posterior-superior", b"right-anterior-superior"
    ras = read_itk(_changed(tmp_path / "ras", "x.nrrd", old, new))
    np.testing.assert_array_equal(ras.array, lps.array[::-1, ::-1])
    np.testing.assert_allclose(ras.affine[:3, 3], (-31.0, 12.5, 700.0), atol=1e-5)


def test_without_simpleitk_the_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "x.nrrd")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(ExtraMissing, match=r"pip install 'rtsam-jax\[dicom\]'"):
        read_itk(path)


def test_voxels_beside_their_header_belong_to_the_file(tmp_path: Path) -> None:
    header = write(tmp_path, "x.mhd")
    assert files_behind(header) == (header, tmp_path / "x.raw")
    assert files_behind(write(tmp_path, "x.mha")) == (tmp_path / "x.mha",)
    header.rename(tmp_path / "y.mha")
    assert files_behind(tmp_path / "y.mha") == (tmp_path / "y.mha", tmp_path / "x.raw")


@pytest.mark.parametrize("line", [b"data file: ", b"datafile: ", b"Data File:  "])
def test_voxels_beside_an_nrrd_header_belong_to_the_file(tmp_path: Path, line: bytes) -> None:
    header = _apart(tmp_path, line)
    assert files_behind(header) == (header, tmp_path / "x.raw")
    (tmp_path / "whole").mkdir()
    whole = write(tmp_path / "whole", "x.nrrd")
    np.testing.assert_array_equal(read_itk(header).array, read_itk(whole).array)
    text = np.frombuffer(b"\ndata file: y.raw\n".ljust(60), np.uint8).reshape(5, 3, 4)
    whole = write(tmp_path / "whole", "text.nrrd", text.transpose())
    assert files_behind(whole) == (whole,)
