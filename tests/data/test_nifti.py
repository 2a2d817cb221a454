"""NIfTI reading and writing: places and values survive every orientation and scaling."""

from __future__ import annotations

import gzip
import itertools
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rtsam_jax.data.nifti import Volume, read_label, read_volume, write_volume
from rtsam_jax.errors import MissingFile, UnreadableFile, VolumeError

ORIENTATIONS = [
    np.array(list(zip(axes, flips, strict=True)))
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def oblique_affine(spacing=(0.9, 1.3, 2.5)) -> np.ndarray:
    a, b = 0.2, -0.15
    turn_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn_z @ turn_x @ np.diag(spacing)
    affine[:3, 3] = (-31.0, 12.5, 700.0)
    return affine


def reoriented(array: np.ndarray, affine: np.ndarray, orientation: np.ndarray):
    moved = nibabel.apply_orientation(array, orientation)
    return moved, affine @ nibabel.orientations.inv_ornt_aff(orientation, array.shape)


def test_all_48_orientations_give_the_same_volume(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    affine = oblique_affine()
    assert len(ORIENTATIONS) == 48
    codes = set()
    for number, orientation in enumerate(ORIENTATIONS):
        path = tmp_path / f"{number}.nii"
        image = nibabel.Nifti1Image(*reoriented(array, affine, orientation))
        codes.add(nibabel.aff2axcodes(image.affine))
        nibabel.save(image, path)
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.array, array)
        np.testing.assert_allclose(volume.affine, affine, atol=1e-4)
    assert len(codes) == 48


def test_written_volume_is_read_back_with_its_place(tmp_path: Path) -> None:
    array = np.random.default_rng(1).normal(size=(4, 3, 2)).astype(np.float32)
    path = tmp_path / "new" / "volume.nii.gz"
    write_volume(path, Volume(array, oblique_affine()), np.float32)
    back = read_volume(path)
    np.testing.assert_array_equal(back.array, array)
    np.testing.assert_allclose(back.affine, oblique_affine(), rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(back.spacing, (0.9, 1.3, 2.5), rtol=1e-5)
    header = nibabel.load(path).header
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-3)
    assert [p.name for p in path.parent.iterdir()] == ["volume.nii.gz"]  # nothing left beside it


def test_writing_twice_gives_equal_bytes(tmp_path: Path) -> None:
    volume = Volume(np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.eye(4))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, volume, np.int16)
    assert (tmp_path / "a.nii.gz").read_bytes()[10:] == (tmp_path / "b.nii.gz").read_bytes()[10:]


def test_sheared_affine_survives_without_a_wrong_qform(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[1, 2] = 0.8  # gantry tilt
    write_volume(tmp_path / "t.nii.gz", Volume(np.ones((2, 2, 2), np.float32), affine), np.uint8)
    np.testing.assert_allclose(read_volume(tmp_path / "t.nii.gz").affine, affine, atol=1e-6)
    assert int(nibabel.load(tmp_path / "t.nii.gz").header["qform_code"]) == 0


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32])
def test_slope_and_intercept_are_applied(tmp_path: Path, dtype: type) -> None:
    raw = np.array([0, 1, 7000, 7412], dtype).reshape(2, 2, 1)
    path = tmp_path / "dose.nii"
    nibabel.save(nibabel.Nifti1Image(raw, np.eye(4), dtype=dtype), path)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([0.01, -3.0], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(content)
    volume = read_volume(path, what="dose")
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array.ravel(), [-3.0, -2.99, 67.0, 71.12], rtol=1e-6)


def test_a_single_fourth_frame_is_squeezed(tmp_path: Path) -> None:
    array = np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-2.0, 2, 2, 1])), tmp_path / "f.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "f.nii.gz").array, array[::-1, ..., 0])


def test_nifti2_big_endian_and_micrometres(tmp_path: Path) -> None:
    array = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    header = nibabel.Nifti2Header(endianness=">")
    header.set_data_dtype(np.int16)
    header.set_xyzt_units("micron")
    image = nibabel.Nifti2Image(array, np.diag([1500.0, 1500, 1500, 1]), header)
    nibabel.save(image, tmp_path / "two.nii")
    volume = read_volume(tmp_path / "two.nii")
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.spacing, 1.5)


def test_a_strange_unit_of_time_does_not_matter(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones((2, 2, 2), np.float32), np.eye(4)), tmp_path / "t.nii")
    content = bytearray((tmp_path / "t.nii").read_bytes())
    content[123] = 200  # time in no unit that exists, lengths in none
    (tmp_path / "t.nii").write_bytes(content)
    np.testing.assert_array_equal(read_volume(tmp_path / "t.nii").affine, np.eye(4))


def labels(path: Path, *values: float, dtype: type = np.int16) -> Path:
    raw = np.array(values, dtype).reshape(-1, 1, 1)
    nibabel.save(nibabel.Nifti1Image(raw, np.eye(4), dtype=dtype), path)
    return path


@pytest.mark.parametrize("mark", [1, 255, -1, 0.99607843])
def test_a_mask_of_one_structure_is_whatever_is_not_zero(tmp_path: Path, mark: float) -> None:
    label = read_label(labels(tmp_path / "l.nii", 0, mark, mark, 0, dtype=np.float32))
    assert label.array.dtype == bool
    assert label.array.ravel().tolist() == [False, True, True, False]
    assert not read_label(labels(tmp_path / "l.nii", 0, 0)).array.any()


def test_a_map_of_several_structures_needs_the_one_that_is_inside(tmp_path: Path) -> None:
    path = labels(tmp_path / "map.nii.gz", 0, 7, 3, 7, -1)
    for value, wanted in ((7, [1, 3]), (3, [2]), (-1, [4]), (5, [])):
        assert np.flatnonzero(read_label(path, value).array).tolist() == wanted
    with pytest.raises(VolumeError, match=r"map\.nii\.gz holds the values -1, 3, 7; name.*label_v"):
        read_label(path)
    with pytest.raises(VolumeError, match="1, 2, 3, 4, 5 and 4 more;"):
        read_label(labels(path, *range(10)))


@pytest.mark.parametrize("value", [None, 1])
def test_a_map_with_a_fraction_is_refused(tmp_path: Path, value: int | None) -> None:
    path = labels(tmp_path / "map.nii", 0, 1, 0.25, dtype=np.float32)
    with pytest.raises(VolumeError, match=r"holds 0\.25, but"):
        read_label(path, value)


@pytest.mark.parametrize(
    ("edge", "unit", "shift", "agree"),
    [
        (1.0, "mm", 0.9, True),
        (1.0, "mm", 1.1, False),
        (4.0, "mm", 1.9, True),  # less than half a voxel
        (4.0, "mm", 2.1, False),
        (0.004, "meter", 0.0019, True),
        (0.004, "meter", 0.0021, False),
    ],
)
def test_qform_and_sform_may_differ_by_a_millimetre_or_half_a_voxel(
    tmp_path: Path, edge: float, unit: str, shift: float, agree: bool
) -> None:
    image = nibabel.Nifti1Image(np.ones((5, 6, 7), np.float32), np.diag([edge, edge, edge, 1]))
    moved = image.affine.copy()
    moved[1, 3] += shift
    image.header.set_xyzt_units(unit)
    image.set_qform(moved, code=1)
    nibabel.save(image, tmp_path / "v.nii")
    if agree:
        assert read_volume(tmp_path / "v.nii").affine[1, 3] == 0
        return
    with pytest.raises(VolumeError, match=r"v\.nii has a qform and an sform .* (1.1|2.1) mm apart"):
        read_volume(tmp_path / "v.nii")
    image.set_qform(moved, code=0)
    nibabel.save(image, tmp_path / "v.nii")
    assert read_volume(tmp_path / "v.nii").affine[1, 3] == 0


def test_forms_that_differ_at_one_corner_only(tmp_path: Path) -> None:
    """A small turn about the first voxel carries the last one away."""
    image = nibabel.Nifti1Image(np.ones((100, 4, 4), np.float32), np.eye(4))
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.02), -np.sin(0.02)], [np.sin(0.02), np.cos(0.02)]]
    image.set_qform(turned, code=1)
    nibabel.save(image, tmp_path / "v.nii")
    with pytest.raises(VolumeError, match="apart; keep the right one"):
        read_volume(tmp_path / "v.nii")


def with_shape(path: Path, *shape: int) -> Path:
    """A header that declares a shape, and no voxels."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header.set_sform(np.eye(4), code=1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    return path


@pytest.mark.parametrize("shape", [(2049, 1, 1), (1, 1, 2049), (2048, 1024, 513)])
def test_too_large_a_volume_is_refused_by_its_header_alone(tmp_path: Path, shape) -> None:
    with pytest.raises(VolumeError, match="at most 2048 voxels along an axis and 1073741824"):
        read_volume(with_shape(tmp_path / "v.nii.gz", *shape))


def test_the_largest_volume_is_only_wanting_its_voxels(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile):
        read_volume(with_shape(tmp_path / "v.nii.gz", 2048, 2048, 256))


def test_a_gzip_bomb_is_not_inflated(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "v.nii")
    plain = (tmp_path / "v.nii").read_bytes()
    bomb = tmp_path / "v.nii.gz"
    bomb.write_bytes(gzip.compress(plain) + gzip.compress(bytes(2**20)) * 256)
    tracemalloc.start()
    with pytest.raises(UnreadableFile, match="goes on after the voxels"):
        read_volume(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24  # of 2**28 bytes
    for padded in (gzip.compress(plain + bytes(512)), plain + bytes(512)):  # as tar leaves it
        bomb.write_bytes(padded)
        assert read_volume(bomb).array.all()


def test_a_path_that_leads_to_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.nii").symlink_to(tmp_path / "b.nii")
    (tmp_path / "b.nii").symlink_to(tmp_path / "a.nii")
    for name in ("a.nii", "c.nii"):
        with pytest.raises(MissingFile, match=r"There is no dose file .*; check the path\.$"):
            read_volume(str(tmp_path / name), what="dose")


def test_dicom_is_told_apart_and_how_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    one = tmp_path / "series" / "IM1"
    one.write_bytes(bytes(128) + b"DICM" + bytes(500))
    advice = "convert an image series or RTDOSE to NIfTI, and mind DoseGridScaling"
    for path, said in ((one, "is DICOM"), (one.parent, "is a folder, but one file is needed")):
        with pytest.raises(UnreadableFile, match=f"The dose {path} {said}.*not read yet; {advice}"):
            read_volume(path, what="dose")


def test_integers_are_rounded_and_never_wrap(tmp_path: Path) -> None:
    volume = Volume(np.array([0.6, 1.4, 254.9, -0.2], np.float32).reshape(4, 1, 1), np.eye(4))
    write_volume(tmp_path / "a.nii", volume, np.uint8)
    assert read_volume(tmp_path / "a.nii").array.ravel().tolist() == [1, 1, 255, 0]
    for values in (np.array([[[300.0]]]), np.array([[[300]]])):
        with pytest.raises(VolumeError, match=r"b\.nii.*uint8.*wider"):
            write_volume(tmp_path / "b.nii", Volume(values, np.eye(4)), np.uint8)
    assert not (tmp_path / "b.nii").exists()


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "v.nii.gz"
    write_volume(path, Volume(np.ones((2, 2, 2), np.float32), np.eye(4)), np.float32)

    def broken(image: object, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(nibabel, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        write_volume(path, Volume(np.zeros((2, 2, 2), np.float32), np.eye(4)), np.float32)
    assert read_volume(path).array.all()
    assert [p.name for p in tmp_path.iterdir()] == ["v.nii.gz"]


def test_openkbp_dose_of_the_pack_is_in_gray(data_pack: Path) -> None:
    folder = next(iter(sorted((data_pack / "openkbp" / "val").glob("pt_*"))))
    dose = read_volume(folder / "dose.nii.gz", what="dose")
    ct = read_volume(folder / "ct.nii.gz")
    assert 65 < dose.array.max() < 85
    assert ct.shape == dose.shape
    np.testing.assert_allclose(ct.affine, dose.affine)


def test_what_is_wrong_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "v.nii").write_bytes(bytes(range(1, 255)) * 10)
    with pytest.raises(UnreadableFile):
        read_volume(tmp_path / "v.nii")
    assert capfd.readouterr() == ("", "")
