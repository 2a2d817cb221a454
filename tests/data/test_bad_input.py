"""Bad input: each kind has its own error, which says whose it is and what to do about it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rtsam_jax import errors
from rtsam_jax.data.cases import TaskInfo, load_dataset, write_dataset
from rtsam_jax.data.nifti import Volume, read_label, read_volume, write_volume
from rtsam_jax.data.preprocess import PreprocessSpec, preprocess
from rtsam_jax.data.splits import load_or_make_splits

SHAPE = (8, 9, 10)


def make_dataset(root: Path) -> None:
    """Two sound cases; the builders below break one thing each."""
    rng = np.random.default_rng(0)
    cases = []
    for name in ("alpha", "beta"):
        image = rng.normal(0, 300, SHAPE).astype(np.float32)
        dose = np.zeros(SHAPE, np.float32)
        dose[3:6, 3:6, 3:6] = 60
        arrays = {"image": image, "dose": dose, "label": (dose > 0).astype(np.float32)}
        for kind, array in arrays.items():
            write_volume(root / f"{name}_{kind}.nii.gz", Volume(array, np.eye(4)), np.float32)
        paths = {kind: f"{name}_{kind}.nii.gz" for kind in arrays}
        cases.append({"id": name, "patient": name, "task": "orn", **paths})
    about = {"name": "demo", "kind": "synthetic", "description": ""}
    write_dataset(root, **about, tasks=[TaskInfo("orn", "CT", "ORN")], cases=cases)


def use(root: Path) -> None:
    """What every command does with a dataset."""
    dataset = load_dataset(root)
    load_or_make_splits(dataset, root / "splits.json", seed=0)
    for case in dataset.cases:
        image, dose = read_volume(case.image), read_volume(case.dose, what="dose")
        modality = dataset.task(case.task).modality
        preprocess(image, dose, modality, PreprocessSpec(1.0, 0.8), name=case.id)
        if case.label is not None:
            read_label(case.label)


def with_array(kind: str, change: Callable[[np.ndarray], np.ndarray | None]):
    def build(root: Path) -> None:
        path = root / f"beta_{kind}.nii.gz"
        image = nibabel.load(path)
        array = np.array(np.asarray(image.dataobj))
        changed = change(array)
        array = array if changed is None else changed
        nibabel.save(nibabel.Nifti1Image(array, image.affine), path)

    return build


def with_bytes(kind: str, change: Callable[[bytes], bytes]):
    def build(root: Path) -> None:
        path = root / f"beta_{kind}.nii.gz"
        path.write_bytes(change(path.read_bytes()))

    return build


def with_header(kind: str, change: Callable[[bytearray], None]):
    def edit(content: bytes) -> bytes:
        plain = bytearray(gzip.decompress(content))
        change(plain)
        return gzip.compress(bytes(plain))

    return with_bytes(kind, edit)


def with_json(change: Callable[[dict], object]):
    def build(root: Path) -> None:
        document = json.loads((root / "dataset.json").read_text())
        change(document)
        (root / "dataset.json").write_text(json.dumps(document))

    return build


def with_dose_at(shift: float):
    def build(root: Path) -> None:
        dose = read_volume(root / "beta_dose.nii.gz")
        dose.affine[0, 3] = shift
        write_volume(root / "beta_dose.nii.gz", dose, np.float32)

    return build


def put(index: tuple[int, int, int], value: float) -> Callable[[np.ndarray], None]:
    def change(array: np.ndarray) -> None:
        array[index] = value

    return change


def flat_srow(plain: bytearray) -> None:
    plain[312:328] = bytes(16)  # srow_z


def no_place(plain: bytearray) -> None:
    plain[252:256] = bytes(4)  # qform_code, sform_code


def nan_place(plain: bytearray) -> None:
    plain[292:296] = np.float32(np.nan).tobytes()  # srow_x[3]


def lengths_in(unit: int) -> Callable[[bytearray], None]:
    def change(plain: bytearray) -> None:
        plain[123] = unit  # xyzt_units

    return change


def data_at_infinity(plain: bytearray) -> None:
    plain[108:112] = np.float32(np.inf).tobytes()  # vox_offset


def with_edges(length: float) -> Callable[[bytearray], None]:
    def change(plain: bytearray) -> None:
        for place in (280, 300, 320):  # the diagonal of srow_x, srow_y, srow_z
            plain[place : place + 4] = np.float32(length).tobytes()

    return change


def stored_leak(root: Path) -> None:
    with_json(lambda d: d["cases"][1].update(patient="alpha", split="test"))(root)
    with_json(lambda d: d["cases"][0].update(split="train"))(root)


def stale_splits(root: Path) -> None:
    document = {"schema": 1, "dataset": "demo", "seed": 0, "splits": {"alpha": "test"}}
    (root / "splits.json").write_text(json.dumps(document))


# name: (break it, class, code, exit status, whose, what to do)
CORPUS = {
    "no dataset.json": (
        lambda root: (root / "dataset.json").unlink(),
        errors.MissingFile, "missing_file", 3, "dataset.json", "name the folder",
    ),
    "a case's file is missing": (
        lambda root: (root / "beta_dose.nii.gz").unlink(),
        errors.MissingFile, "missing_file", 3, "case 'beta': field 'dose'", "add the file",
    ),
    "a folder in place of a file": (
        lambda root: ((root / "beta_image.nii.gz").unlink(), (root / "beta_image.nii.gz").mkdir()),
        errors.MissingFile, "missing_file", 3, "case 'beta': field 'image'", "mend the path",
    ),
    "not JSON": (
        lambda root: (root / "dataset.json").write_text("schema: 1"),
        errors.DatasetSchemaError, "dataset_schema", 4, "dataset.json", "mend the file",
    ),
    "another schema version": (
        with_json(lambda d: d.update(schema=99)),
        errors.DatasetSchemaError, "dataset_schema", 4, "'schema' is 99", "docs/dataset.md",
    ),
    "an unknown field": (
        with_json(lambda d: d["cases"][1].update(lable="x")),
        errors.DatasetSchemaError, "dataset_schema", 4, "case 'beta': field 'lable'", "remove it",
    ),
    "a record that names a person": (
        with_json(lambda d: d["cases"][1].update(record={"patient_name": "Roe"})),
        errors.RecordError, "record_invalid", 4, "case 'beta': record field 'patient_n", "remove",
    ),
    "a record that carries the answer": (
        with_json(lambda d: d["cases"][1].update(record={"lesion_volume_ml": 3})),
        errors.RecordError, "record_invalid", 4, "case 'beta': record field 'lesion_vo", "remove",
    ),
    "a dose in centigray": (
        with_json(lambda d: d["cases"][1].update(record={"prescription_gy": 7000})),
        errors.RecordError, "record_invalid", 4, "field 'prescription_gy'", "from 1 to 120 (Gy)",
    ),
    "a path that leaves the folder": (
        with_json(lambda d: d["cases"][1].update(image="../beta_image.nii.gz")),
        errors.DatasetSchemaError, "dataset_schema", 4, "case 'beta': field 'image'", "must be",
    ),
    "a patient in two splits": (
        stored_leak,
        errors.SplitError, "split_invalid", 4, "patient alpha", "keep all cases of a patient",
    ),
    "stale stored splits": (
        stale_splits,
        errors.SplitError, "split_invalid", 4, "splits.json lacks case 'beta'", "delete it",
    ),
    "truncated gzip": (
        with_bytes("image", lambda content: content[: len(content) // 2]),
        errors.UnreadableFile, "unreadable_file", 3, "beta_image.nii.gz", "copy or convert",
    ),
    "gzip without its checksum": (
        with_bytes("image", lambda content: content[:-8]),
        errors.UnreadableFile, "unreadable_file", 3, "beta_image.nii.gz", "copy or convert",
    ),
    "a flipped bit": (
        with_bytes("image", lambda c: c[:2000] + bytes([c[2000] ^ 16]) + c[2001:]),
        errors.UnreadableFile, "unreadable_file", 3, "beta_image.nii.gz", "copy or convert",
    ),
    "truncated before compression": (
        with_bytes("dose", lambda content: gzip.compress(gzip.decompress(content)[:-100])),
        errors.UnreadableFile, "unreadable_file", 3, "beta_dose.nii.gz", "copy or convert",
    ),
    "an empty file": (
        with_bytes("label", lambda content: b""),
        errors.UnreadableFile, "unreadable_file", 3, "label", "copy or convert",
    ),
    "another format": (
        with_bytes("image", lambda content: b"NRRD0004\n" * 100),
        errors.UnreadableFile, "unreadable_file", 3, "beta_image.nii.gz", "copy or convert",
    ),
    "NaN voxels": (
        with_array("image", put((1, 2, 3), np.nan)),
        errors.NonFiniteVoxels, "non_finite_voxels", 5, "beta_image.nii.gz has 1", "replace them",
    ),
    "infinite dose": (
        with_array("dose", put((1, 2, 3), np.inf)),
        errors.NonFiniteVoxels, "non_finite_voxels", 5, "dose", "replace them",
    ),
    "several frames": (
        with_array("image", lambda array: np.stack([array, array], -1)),
        errors.VolumeError, "volume_invalid", 5, "beta_image.nii.gz", "extract the frame",
    ),
    "a flat picture": (
        with_array("image", lambda array: array[..., 0]),
        errors.VolumeError, "volume_invalid", 5, "beta_image.nii.gz", "3-D frame",
    ),
    "no voxels": (
        with_array("label", lambda array: array[:0]),
        errors.VolumeError, "volume_invalid", 5, "beta_label.nii.gz", "export it again",
    ),
    "complex voxels": (
        with_array("image", lambda array: array.astype(np.complex64)),
        errors.VolumeError, "volume_invalid", 5, "beta_image.nii.gz", "scalar type",
    ),
    "a singular affine": (
        with_header("image", flat_srow),
        errors.VolumeError, "volume_invalid", 5, "beta_image.nii.gz", "write a valid sform",
    ),
    "an affine with NaN": (
        with_header("dose", nan_place),
        errors.VolumeError, "volume_invalid", 5, "beta_dose.nii.gz", "write a valid sform",
    ),
    "an unknown unit of length": (
        with_header("dose", lengths_in(6)),
        errors.VolumeError, "volume_invalid", 5, "beta_dose.nii.gz", "xyzt_units to 2",
    ),
    "metres for millimetres": (
        with_header("image", lengths_in(1)),
        errors.VolumeError, "volume_invalid", 5, "beta extends over 8000 x 9000", "unit of length",
    ),
    "an endless image": (
        with_header("image", with_edges(1e30)),
        errors.VolumeError, "volume_invalid", 5, "image of beta", "too large for a model grid of 1",
    ),
    "a vanishing image": (
        with_header("image", with_edges(1e-30)),
        errors.VolumeError, "volume_invalid", 5, "image of beta", "too small for a model grid of 1",
    ),
    "voxels at an infinite offset": (
        with_header("image", data_at_infinity),
        errors.UnreadableFile, "unreadable_file", 3, "beta_image.nii.gz", "copy or convert",
    ),
    "no place in the patient": (
        with_header("image", no_place),
        errors.VolumeError, "volume_invalid", 5, "beta_image.nii.gz", "convert it again",
    ),
    "an image of air": (
        with_array("image", lambda array: np.full_like(array, -1000)),
        errors.VolumeError, "volume_invalid", 5, "beta", "check its scaling",
    ),
    "a constant image": (
        with_array("image", np.zeros_like),
        errors.VolumeError, "volume_invalid", 5, "beta", "check that the right file",
    ),
    "dose and image far apart": (
        with_dose_at(400.0),
        errors.NoOverlap, "no_overlap", 5, "dose of beta", "register the dose",
    ),
    "no dose at all": (
        with_array("dose", np.zeros_like),
        errors.ZeroDose, "zero_dose", 5, "dose of beta", "export the plan again",
    ),
    "hot spot beside the image": (
        with_dose_at(5.5),
        errors.EmptyROI, "empty_roi", 5, "beta's image", "lower dose.tau",
    ),
}  # fmt: skip


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    make_dataset(tmp_path)
    return tmp_path


def test_the_sound_dataset_passes(sound: Path) -> None:
    use(sound)
    assert (sound / "splits.json").is_file()


@pytest.mark.parametrize("name", CORPUS)
def test_bad_input(sound: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, kind, code, status, whose, advice = CORPUS[name]
    damage(sound)
    with pytest.raises(SystemExit) as left:
        errors.run_command(lambda: use(sound))
    assert left.value.code == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"error[{code}]: ")
    assert whose in lines[0] and advice in lines[0]
    with pytest.raises(errors.RTSamError) as caught:
        use(sound)
    assert type(caught.value) is kind
