"""OpenKBP: both forms hold the same patients, axes are right, nothing is half written."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from rtsam_jax.data import openkbp
from rtsam_jax.data.cases import Case, load_dataset
from rtsam_jax.data.nifti import Volume, read_label, read_volume, write_volume
from rtsam_jax.errors import MissingFile, OutputExists, UnreadableFile

SPACING = (4.0, 4.0, 2.5)
CSV_NAMES = [*(about[1:] for about in openkbp.STRUCTURES.values()), *openkbp.ORGANS.values()]
# First and last indices and count of RightParotid.csv of pt_1 in OpenKBP's public repository.
PT_1_RIGHT_PAROTID = ([940210, 940342, 956594, 956725, 956726, 957115], 1055156, 136)
PT_1_CT = {548513: 1017.0, 548514: 1007.0, 630444: 1482.0}


def write_sparse(path: Path, cube_ras: np.ndarray, *, mask: bool = False) -> None:
    """Writes an RAS+ cube of 128^3 as the distribution does."""
    flat = openkbp.from_ras(cube_ras).ravel()
    index = np.flatnonzero(flat)
    rows = [f"{i}," if mask else f"{i},{float(flat[i])!r}" for i in index]
    path.write_text("\n".join([",data", *rows]) + "\n")


def uncrop(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Puts a cropped volume back into the cube whose middle is at 0 mm."""
    first = np.rint((openkbp.SIDE - 1) / 2 + affine[:3, 3] / np.diag(affine)[:3]).astype(int)
    cube = np.zeros((openkbp.SIDE,) * 3, np.float32)
    cube[tuple(slice(a, a + n) for a, n in zip(first, volume.shape, strict=True))] = volume
    return cube


def write_csv_patient(folder: Path, image: Volume, dose: Volume, organs: np.ndarray) -> None:
    folder.mkdir(parents=True)
    (folder / "voxel_dimensions.csv").write_text("".join(f"{v:.18e}\n" for v in image.spacing))
    write_sparse(folder / "ct.csv", uncrop(image.array - openkbp.HU_OFFSET, image.affine))
    write_sparse(folder / "dose.csv", uncrop(dose.array, dose.affine))
    for name, value in CSV_NAMES:
        if (organs == value).any():
            cube = uncrop(organs == value, image.affine)
            write_sparse(folder / f"{name}.csv", cube, mask=True)


def tiny_patient(seed: int, *, left: bool = True) -> tuple[Volume, Volume, np.ndarray]:
    """A box of random HU whose corners are body, with a block per structure."""
    rng = np.random.default_rng(seed)
    shape, first = (12, 10, 8), np.array([50, 60, 40])
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = affine[:3, :3] @ (first - (openkbp.SIDE - 1) / 2)
    image = rng.integers(-950, 1500, shape).astype(np.float32)
    dose = np.round(rng.uniform(0.01, 70, shape), 2).astype(np.float32)
    organs = np.zeros(shape, np.uint8)
    organs[8:11, 4:7, 3:6] = 3
    if left:
        organs[1:4, 4:7, 2:5] = 4
        organs[0:2, 0:3, 0:2] = 2
    organs[4:8, 7:9, 1:3] = 7
    organs[5:8, 1:3, 5:7] = 1
    return Volume(image, affine), Volume(dose, affine), organs


def write_both(root: Path) -> tuple[Path, Path]:
    """The same two patients in both forms; the second has no left parotid and no cord."""
    for split, folder, name, left in (
        ("train", "train-pats", "pt_1", True),
        ("val", "validation-pats", "pt_201", False),
    ):
        image, dose, organs = tiny_patient(len(name), left=left)
        write_csv_patient(root / "csv" / "provided-data" / folder / name, image, dose, organs)
        place = root / "nifti" / split / name
        write_volume(place / "ct.nii.gz", image, np.int16)
        write_volume(place / "dose.nii.gz", dose, np.float32)
        write_volume(place / "oar.nii.gz", Volume(organs, image.affine), np.uint8)
    return root / "csv", root / "nifti"


def read_case(case: Case) -> tuple[Volume, Volume, Volume]:
    assert case.label is not None
    return read_volume(case.image), read_volume(case.dose), read_label(case.label)


def test_both_forms_give_the_same_dataset(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    datasets = []
    for source in write_both(tmp_path):
        openkbp.build(source, tmp_path / f"{source.name}_out")
        assert "parotid_left: 1 train; not contoured in 1 patients" in capsys.readouterr().out
        datasets.append(load_dataset(tmp_path / f"{source.name}_out"))
    ours, theirs = datasets
    assert ours.kind == "surrogate" and "not radiation injuries" in ours.description
    assert [(c.id, c.task, c.patient, c.split) for c in ours.cases] == [
        ("pt_1_mandible", "mandible", "pt_1", "train"),
        ("pt_1_parotid_right", "parotid_right", "pt_1", "train"),
        ("pt_1_parotid_left", "parotid_left", "pt_1", "train"),
        ("pt_201_mandible", "mandible", "pt_201", "val"),
        ("pt_201_parotid_right", "parotid_right", "pt_201", "val"),
    ]
    assert ours.cases[0].image == ours.cases[1].image
    assert [sorted(c.structures) for c in ours.cases] == [["brainstem", "spinal_cord"]] * 3 + [
        ["brainstem"]
    ] * 2
    for a, b in zip(ours.cases, theirs.cases, strict=True):
        assert (a.id, a.split, a.record) == (b.id, b.split, b.record)
        for first, second in zip(read_case(a), read_case(b), strict=True):
            np.testing.assert_array_equal(first.array, second.array)
            np.testing.assert_allclose(first.affine, second.affine, atol=1e-4)
        for name, structure in a.structures.items():
            found = read_label(structure.path).array
            assert found.any() and not (found & read_label(a.label).array).any()
            np.testing.assert_array_equal(found, read_label(b.structures[name].path).array)


def test_axes_of_the_cube() -> None:
    cube = np.zeros((openkbp.SIDE,) * 3)
    cube[openkbp.SIDE - 1, 3, 5] = 1  # right, posterior and inferior of the middle
    row, column, plane = np.unravel_index(openkbp.from_ras(cube).argmax(), cube.shape)
    assert (row, column, plane) == (124, 0, 122)
    np.testing.assert_array_equal(openkbp.to_ras(openkbp.from_ras(cube)), cube)


def test_a_real_patient_round_trips_through_csv(data_pack: Path, tmp_path: Path) -> None:
    folder = data_pack / "openkbp" / "train" / "pt_1"
    original = openkbp.read_nifti_patient(folder)
    organs = read_volume(folder / "oar.nii.gz").array
    write_csv_patient(tmp_path / "pt_1", original.image, original.dose, organs)
    again = openkbp.read_csv_patient(tmp_path / "pt_1")
    pairs = [(original.image, again.image, openkbp.HU_OFFSET), (original.dose, again.dose, 0.0)]
    for first, second, air in pairs:
        np.testing.assert_allclose(first.spacing, second.spacing, atol=1e-4)
        np.testing.assert_allclose(
            uncrop(first.array - air, first.affine),
            uncrop(second.array - air, second.affine),
            atol=1e-4,
        )
    assert set(original.masks) == set(again.masks) == set(openkbp.STRUCTURES)
    assert set(original.organs) == set(openkbp.ORGANS)
    theirs = again.masks | again.organs
    for name, mask in (original.masks | original.organs).items():
        np.testing.assert_array_equal(
            uncrop(mask, original.image.affine), uncrop(theirs[name], again.image.affine)
        )


def test_indices_of_a_real_patient_are_those_of_the_distribution(data_pack: Path) -> None:
    patient = openkbp.read_nifti_patient(data_pack / "openkbp" / "train" / "pt_1")
    mask = uncrop(patient.masks["parotid_right"], patient.image.affine)
    index = np.flatnonzero(openkbp.from_ras(mask))
    first, last, count = PT_1_RIGHT_PAROTID
    assert (index[: len(first)].tolist(), index[-1], len(index)) == (first, last, count)
    stored = uncrop(patient.image.array - openkbp.HU_OFFSET, patient.image.affine)
    flat = openkbp.from_ras(stored).ravel()
    assert {at: float(flat[at]) for at in PT_1_CT} == PT_1_CT


def test_right_is_right_in_real_patients(data_pack: Path) -> None:
    for folder in sorted((data_pack / "openkbp" / "val").iterdir())[:5]:
        patient = openkbp.read_nifti_patient(folder)
        organs = read_volume(folder / "oar.nii.gz").array

        def centre(mask: np.ndarray, affine: np.ndarray = patient.image.affine) -> np.ndarray:
            return affine[:3, :3] @ np.argwhere(mask).mean(0) + affine[:3, 3]

        right, left = (centre(patient.masks[f"parotid_{side}"]) for side in ("right", "left"))
        assert right[0] > left[0] + 40  # mm; x grows to the patient's right
        if (organs == 1).any() and (organs == 2).any() and "mandible" in patient.masks:
            brainstem, cord, jaw = (centre(m) for m in (organs == 1, organs == 2, organs == 7))
            assert jaw[1] > cord[1] + 20 and brainstem[2] > cord[2] + 40


def test_all_unreadable_patients_are_listed_and_nothing_is_written(tmp_path: Path) -> None:
    csv, nifti = write_both(tmp_path)
    (csv / "provided-data" / "train-pats" / "pt_1" / "ct.csv").write_text(",data\n2097152,5.0\n")
    (csv / "provided-data" / "validation-pats" / "pt_201" / "dose.csv").unlink()
    with pytest.raises(UnreadableFile, match="2 of 2 .*train/pt_1.*2097151.*val/pt_201.*dose"):
        openkbp.build(csv, tmp_path / "out")
    blob = (nifti / "train" / "pt_1" / "ct.nii.gz").read_bytes()
    (nifti / "train" / "pt_1" / "ct.nii.gz").write_bytes(blob[: len(blob) // 2])
    with pytest.raises(UnreadableFile, match="1 of 2 .*train/pt_1"):
        openkbp.build(nifti, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["csv", "nifti"]


@pytest.mark.parametrize("text", ["x,y\nno numbers\n", ",data\n5\n", ",data\n5,nan\n"])
def test_a_broken_table_is_named(tmp_path: Path, text: str) -> None:
    csv, _ = write_both(tmp_path)
    folder = csv / "provided-data" / "train-pats" / "pt_1"
    (folder / "dose.csv").write_text(text)
    with pytest.raises(UnreadableFile, match="dose.csv"):
        openkbp.read_csv_patient(folder)


def test_a_structure_file_without_rows_is_a_missing_structure(tmp_path: Path) -> None:
    csv, _ = write_both(tmp_path)
    folder = csv / "provided-data" / "train-pats" / "pt_1"
    (folder / "Mandible.csv").write_text(",data\n")
    assert set(openkbp.read_csv_patient(folder).masks) == {"parotid_right", "parotid_left"}


def test_source_and_target_are_checked(tmp_path: Path) -> None:
    csv, _ = write_both(tmp_path)
    with pytest.raises(MissingFile, match="train-pats"):
        openkbp.build(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(OutputExists):
        openkbp.build(csv, tmp_path)
    shutil.rmtree(csv / "provided-data" / "train-pats")
    openkbp.build(csv, tmp_path / "out")  # one split alone is fine
    assert {case.split for case in load_dataset(tmp_path / "out").cases} == {"val"}
