"""SAM-Med3D's folders: a case per mask, an image once however many classes show it."""

from __future__ import annotations

import gzip
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from rtsam_jax import errors
from rtsam_jax.data import sam_med3d_folder
from rtsam_jax.data.cases import Dataset, load_dataset
from rtsam_jax.data.nifti import read_label

CT, MR = "liver/ct_WORD", "liver/mr_AMOS"


def content(fill: int, *, level: int = 9, mtime: int = 0) -> bytes:
    """A gzipped NIfTI file of one value."""
    image = nibabel.Nifti1Image(np.full((2, 3, 4), fill, np.int16), np.eye(4))
    image.set_sform(np.eye(4), 1)
    return gzip.compress(image.to_bytes(), level, mtime=mtime)


def add(root: Path, folder: str, name: str, fill: int = 5, *, side: str = "Tr") -> None:
    """A mask and the image of this value, as they lie under one class."""
    for part, value in (("images", fill), ("labels", 1)):
        path = root / folder / f"{part}{side}" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(value))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two classes of one CT, one of them in MR and in another CT as well."""
    root = tmp_path / "train"
    add(root, CT, "w1")
    add(root, "left kidney/ct_WORD", "w1")
    add(root, "left kidney/ct_WORD", "w2", 6)
    add(root, MR, "w1", 7)
    (root / "README.md").touch()
    return root


def imported(tmp_path: Path, source: Path, **options: Any) -> Dataset:
    sam_med3d_folder.build(source, tmp_path / "out", **options)
    return load_dataset(tmp_path / "out")


@pytest.mark.parametrize("copy", [False, True])
def test_a_case_per_mask_and_an_image_per_scan(tmp_path: Path, source: Path, copy: bool) -> None:
    dataset = imported(tmp_path, source, copy=copy)
    assert (dataset.name, dataset.kind) == ("train", "surrogate")
    assert [(t.name, t.modality, t.title) for t in dataset.tasks] == [
        ("left_kidney_ct", "CT", "left kidney"),
        ("liver_ct", "CT", "liver"),
        ("liver_mr", "MR", "liver"),
    ]
    cases = {case.id: case for case in dataset.cases}
    assert {name: (case.patient, case.task) for name, case in cases.items()} == {
        "left_kidney_ct_WORD_w1": ("ct_WORD/w1", "left_kidney_ct"),
        "left_kidney_ct_WORD_w2": ("ct_WORD/w2", "left_kidney_ct"),
        "liver_ct_WORD_w1": ("ct_WORD/w1", "liver_ct"),
        "liver_mr_AMOS_w1": ("mr_AMOS/w1", "liver_mr"),
    }
    assert len({case.image for case in dataset.cases}) == 3
    assert cases["liver_ct_WORD_w1"].image == cases["left_kidney_ct_WORD_w1"].image
    for case in dataset.cases:
        assert case.missing == ("dose",) and case.split is None and case.label is not None
        assert case.image.is_symlink() == case.label.is_symlink() == (not copy)
        assert read_label(case.label).array.all()
    assert cases["liver_mr_AMOS_w1"].image.read_bytes() == content(7)


def test_the_test_side_is_a_split(tmp_path: Path, source: Path) -> None:
    add(source, CT, "w9", side="Ts")
    splits = {case.id: case.split for case in imported(tmp_path, source).cases}
    assert {i for i, split in splits.items() if split == "test"} == {"liver_ct_WORD_w9"}
    assert set(splits.values()) == {"train", "test"}


def test_a_test_side_without_labels_is_left_out_and_said(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(source, CT, "w9", side="Ts")
    shutil.rmtree(source / CT / "labelsTs")
    assert len(imported(tmp_path, source).cases) == 4
    assert "imagesTs without labelsTs, left out: 1 files" in capsys.readouterr().out


def test_a_scan_on_both_sides_is_refused(tmp_path: Path, source: Path) -> None:
    add(source, "left kidney/ct_WORD", "w1", side="Ts")
    shutil.rmtree(source / "left kidney/ct_WORD/imagesTr")
    shutil.rmtree(source / "left kidney/ct_WORD/labelsTr")
    with pytest.raises(errors.SplitError, match="train: patient ct_WORD/w1 is in split"):
        imported(tmp_path, source)


def test_links_to_one_image_are_one_image(tmp_path: Path, source: Path) -> None:
    image = source / "left kidney/ct_WORD/imagesTr/w1.nii.gz"
    image.unlink()
    image.symlink_to(os.path.relpath(source / CT / "imagesTr/w1.nii.gz", image.parent))
    assert len({case.image for case in imported(tmp_path, source).cases}) == 3


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_two_images_of_one_name_and_size_are_refused(
    tmp_path: Path, source: Path, ending: str
) -> None:
    one = source / CT / "imagesTr" / "w1.nii.gz"
    two = source / "left kidney/ct_WORD/imagesTr/w1.nii.gz"
    for path, fill in ((one, 5), (two, 9)):
        path.unlink()
        data = content(fill, level=0)
        path.with_name(f"w1{ending}").write_bytes(
            data if ending == ".nii.gz" else gzip.decompress(data)
        )
    sizes = [path.with_name(f"w1{ending}").stat().st_size for path in (one, two)]
    assert sizes[0] == sizes[1]
    with pytest.raises(errors.DatasetSchemaError, match="should be one image, but differ"):
        imported(tmp_path, source)
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_other_modalities_are_said(tmp_path: Path, source: Path) -> None:
    add(source, "liver/PET_X", "p1")
    with pytest.raises(errors.ConfigError, match="liver/PET_X begins with 'pet', .*pet=CT or"):
        imported(tmp_path, source)
    dataset = imported(tmp_path, source, modality={"PET": "MR"})
    assert next(case for case in dataset.cases if "PET" in case.id).task == "liver_mr"


def test_long_names_stay_apart(tmp_path: Path) -> None:
    stem = "1.3.6.1.4.1.14519.5.2.1.6279.6001." + "105756658031515062000744821260" * 2
    for end in "12":
        add(tmp_path / "train", "lung nodule/ct_LUNA16", stem + end)
    ids = [case.id for case in imported(tmp_path, tmp_path / "train").cases]
    assert len(set(ids)) == 2 and all(len(i) == 100 for i in ids)


def test_patients_by_name(tmp_path: Path, source: Path) -> None:
    dataset = imported(tmp_path, source, patient="^w")
    assert {case.patient for case in dataset.cases} == {"ct_WORD/w", "mr_AMOS/w"}


BAD: dict[str, tuple[Callable[[Path], Any], type[errors.RTSamError], str]] = {
    "nowhere": (shutil.rmtree, errors.MissingFile, "no folder .*train"),
    "image without label": (
        lambda r: (r / CT / "labelsTr" / "w1.nii.gz").unlink(),
        errors.MissingFile,
        "ct_WORD: w1 of imagesTr .* not in labelsTr",
    ),
    "label without image": (
        lambda r: (r / CT / "imagesTr" / "w1.nii.gz").unlink(),
        errors.MissingFile,
        "ct_WORD: w1 of labelsTr .* not in imagesTr",
    ),
    "no labels": (lambda r: shutil.rmtree(r / CT / "labelsTr"), errors.MissingFile, "labelsTr"),
    "no sides": (
        lambda r: (r / "liver" / "ct_empty").mkdir(),
        errors.MissingFile,
        "ct_empty has no folders imagesTr and labelsTr",
    ),
    "nrrd": (
        lambda r: (r / CT / "imagesTr" / "w2.nrrd").touch(),
        errors.UnreadableFile,
        "w2.nrrd is not NIfTI",
    ),
    "a loop of links": (
        lambda r: (r / "loop").symlink_to("loop"),
        errors.MissingFile,
        "loop is a link that leads nowhere",
    ),
    "a file loop": (
        lambda r: (r / CT / "labelsTr" / "l.nii.gz").symlink_to("l.nii.gz"),
        errors.MissingFile,
        "l.nii.gz is no file",
    ),
    "classes of one name": (
        lambda r: add(r, "left_kidney/ct_WORD", "w3"),
        errors.DatasetSchemaError,
        "'left kidney' and 'left_kidney' would both be called",
    ),
    "one name on both sides": (
        lambda r: add(r, CT, "w1", side="Ts"),
        errors.DatasetSchemaError,
        "labelsTs/w1.nii.gz would be w1.nii.gz in the dataset, as another",
    ),
    "a name that is no text": (
        lambda r: os.mkdir(os.fsencode(r) + b"/\xff"),
        errors.DatasetSchemaError,
        r"holds '\\udcff', whose name is not UTF-8",
    ),
    "no mask": (
        lambda r: [shutil.rmtree(path) for path in r.iterdir() if path.is_dir()],
        errors.MissingFile,
        "holds no CLASS/MODALITY_DATASET",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_folder_is_one_sentence_and_writes_nothing(
    tmp_path: Path, source: Path, what: str
) -> None:
    break_it, kind, sentence = BAD[what]
    break_it(source)
    with pytest.raises(kind, match=sentence) as error:
        imported(tmp_path, source)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"train"}


@pytest.mark.parametrize("level", [".", "train/liver"])
def test_a_source_of_another_level(tmp_path: Path, source: Path, level: str) -> None:
    with pytest.raises(errors.MissingFile, match="no folders imagesTr and labelsTr; name the"):
        imported(tmp_path, tmp_path / level)


def test_the_command(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(source, "liver/us_X", "u1")
    command = ["sam_med3d_folder", str(source), str(tmp_path / "out"), "--modality", "us=MR"]
    monkeypatch.setattr(sys, "argv", command)
    sam_med3d_folder.main()
    assert len(load_dataset(tmp_path / "out").cases) == 5
    monkeypatch.setattr(sys, "argv", [*command[:-1], "us=US"])
    with pytest.raises(SystemExit) as left:
        sam_med3d_folder.main()
    assert left.value.code == 2
