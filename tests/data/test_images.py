"""Bare images become incomplete cases."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from rtsam_jax import errors
from rtsam_jax.data import images
from rtsam_jax.data.cases import load_dataset
from rtsam_jax.data.nifti import Volume, read_volume, write_volume
from rtsam_jax.data.selection import load_run_data
from tests.tiny import tiny_config


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for value, name in enumerate(("t1.nii.gz", "t2 flair.nii")):
        volume = Volume(np.full((2, 3, 4), value, np.float32), np.eye(4))
        write_volume(tmp_path / "brain" / name, volume, np.int16)
    return tmp_path / "brain"


@pytest.mark.parametrize(("one", "patients"), [("", ["t1", "t2_flair"]), ("p7", ["p7", "p7"])])
@pytest.mark.parametrize("copy", [False, True])
def test_each_image_is_a_case_without_dose_or_label(
    tmp_path: Path, source: Path, one: str, patients: list[str], copy: bool
) -> None:
    images.build(source, tmp_path / "out", modality="MR", one_patient=one, copy=copy)
    dataset = load_dataset(tmp_path / "out")
    assert (dataset.name, [task.modality for task in dataset.tasks]) == ("brain", ["MR"])
    assert [case.id for case in dataset.cases] == ["t1", "t2_flair"]
    assert [case.patient for case in dataset.cases] == patients
    for value, case in enumerate(dataset.cases):
        assert case.missing == ("dose", "label") and case.image.is_symlink() == (not copy)
        assert (read_volume(case.image).array == value).all()


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        ("t1.nii", errors.DatasetSchemaError, "both t1.nii and t1.nii.gz"),
        ("t2_flair.nii.gz", errors.DatasetSchemaError, "would both be called t2_flair"),
        ("x.nrrd", errors.UnreadableFile, "x.nrrd is not NIfTI"),
        ("série.dcm", errors.UnreadableFile, "série.dcm is not NIfTI"),
    ],
)
def test_a_bad_folder_writes_nothing(
    tmp_path: Path, source: Path, name: str, kind: type[errors.RTSamError], sentence: str
) -> None:
    (source / name).touch()
    with pytest.raises(kind, match=sentence):
        images.build(source, tmp_path / "out", modality="CT")
    assert [path.name for path in tmp_path.iterdir()] == ["brain"]


def test_an_empty_folder_and_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.MissingFile, match="empty holds no NIfTI file"):
        images.build(tmp_path / "empty", tmp_path / "out", modality="CT")
    with pytest.raises(errors.MissingFile, match="no folder .*nowhere"):
        images.build(tmp_path / "nowhere", tmp_path / "out", modality="CT")


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_the_config_builds_them(tmp_path: Path, source: Path, modality: str) -> None:
    root = tmp_path / "made"
    builder = f"images_{modality.lower()}"
    with pytest.raises(errors.ConfigError, match="config.data.source is empty"):
        load_run_data(tiny_config(root, data__builder=builder))
    cfg = tiny_config(root, data__builder=builder, data__source=str(source))
    with pytest.raises(errors.SplitError, match="has no label"):  # built, but not to train on
        load_run_data(cfg)
    assert [task.modality for task in load_dataset(root).tasks] == [modality]


def test_the_command(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["images", str(source), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as left:
        images.main()
    assert left.value.code == 2  # the modality is not guessed
    monkeypatch.setattr(sys, "argv", [*command, "--modality", "MR", "--one-patient", "p1"])
    images.main()
    assert {case.patient for case in load_dataset(tmp_path / "out").cases} == {"p1"}


def test_four_sequences_of_one_brain(data_pack: Path, tmp_path: Path) -> None:
    images.build(data_pack / "mr", tmp_path / "out", modality="MR", one_patient="met1")
    dataset = load_dataset(tmp_path / "out")
    assert [case.id for case in dataset.cases] == ["t1c", "t1n", "t2f", "t2w"]
    assert {read_volume(case.image).shape for case in dataset.cases} == {(240, 240, 155)}
