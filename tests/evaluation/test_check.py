"""What cannot be scored is said before training, and never scored as zero."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from rtsam_jax import errors
from rtsam_jax.data.cases import Case, Structure, load_dataset
from rtsam_jax.data.nifti import Volume, read_volume, write_volume
from rtsam_jax.data.preprocess import PreprocessSpec
from rtsam_jax.evaluation import check
from rtsam_jax.evaluation.check import check_held_out, require_dose_boxes
from rtsam_jax.evaluation.scoring import score_cases
from tests.tiny import SPACING, tiny_config

SPEC = PreprocessSpec(SPACING, 0.5)
MODALITY = {"orn": "CT", "ce": "MR", "crn": "MR"}


@pytest.fixture
def cases(tiny_dataset: Path, tmp_path: Path) -> list[Case]:
    shutil.copytree(tiny_dataset, tmp_path / "own")
    return list(load_dataset(tmp_path / "own").cases)


def elsewhere(path: Path) -> None:
    volume = read_volume(path)
    affine = volume.affine.copy()
    affine[:3, 3] += 500
    write_volume(path, Volume(volume.array, affine), np.float32)


def peak_outside(path: Path) -> None:
    """A dose grid that reaches beyond the image, its maximum there."""
    volume = read_volume(path)
    array = np.pad(0.01 * volume.array, ((0, 20), (0, 0), (0, 0)))
    array[-1, 0, 0] = 70
    write_volume(path, Volume(array, volume.affine), np.float32)


def constant(path: Path) -> None:
    volume = read_volume(path)
    write_volume(path, Volume(0 * volume.array + 5, volume.affine), np.float32)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def zero(path: Path) -> None:
    volume = read_volume(path)
    write_volume(path, Volume(0 * volume.array, volume.affine), np.float32)


@pytest.mark.parametrize(
    ("kind", "damage", "error", "named"),
    [
        ("label", elsewhere, errors.NoOverlap, "label of p3_orn covers no voxel of its image"),
        ("dose", elsewhere, errors.NoOverlap, "dose of p3_orn covers no voxel of its image"),
        ("image", elsewhere, errors.NoOverlap, "dose of p3_orn covers no voxel of its image"),
        ("dose", zero, errors.ZeroDose, "dose of p3_orn has no positive voxel"),
        ("dose", peak_outside, errors.EmptyROI, "No voxel of p3_orn's image reaches"),
        ("image", constant, errors.VolumeError, "image of p3_orn"),
        *[
            (kind, truncated, errors.UnreadableFile, f"p3.*_{kind}.nii.gz")
            for kind in ("image", "dose", "label")
        ],
        *[
            (kind, Path.unlink, errors.MissingFile, f"p3.*_{kind}.nii.gz")
            for kind in ("image", "dose", "label")
        ],
    ],
)
def test_a_case_that_cannot_be_scored(cases, kind, damage, error, named) -> None:
    held_out = [case for case in cases if case.split == "test"]
    check_held_out(held_out, MODALITY, SPEC)
    damage(getattr(held_out[0], kind))
    with pytest.raises(error, match=named):
        check_held_out(held_out, MODALITY, SPEC)
    with pytest.raises(error, match=named):  # nor does the scoring itself take it for a miss
        list(score_cases(held_out, MODALITY, SPEC, {"none": lambda case, scan: 0 * scan.image}))


def test_a_structure_that_cannot_be_used(cases) -> None:
    first, *others = [case for case in cases if case.split == "test"]
    organ = first.label.with_name("jaw.nii.gz")
    shutil.copy(first.label, organ)
    held_out = [dataclasses.replace(first, structures={"jaw": Structure(organ)}), *others]
    check_held_out(held_out, MODALITY, SPEC)
    elsewhere(organ)
    named = "structure 'jaw' of p3_orn covers no voxel"
    with pytest.raises(errors.NoOverlap, match=named):
        check_held_out(held_out, MODALITY, SPEC)
    with pytest.raises(errors.NoOverlap, match=named):
        list(score_cases(held_out, MODALITY, SPEC, {"none": lambda case, scan: 0 * scan.image}))


def test_a_scan_of_two_tasks_is_read_once(cases, monkeypatch: pytest.MonkeyPatch) -> None:
    cases[0] = dataclasses.replace(cases[0], label=None)  # not scored, so not read
    read: list[str] = []
    real = check.preprocess_scan
    monkeypatch.setattr(
        check, "preprocess_scan", lambda *a, name: (read.append(name), real(*a, name=name))[1]
    )
    check_held_out([case for case in cases if case.task != "crn"], MODALITY, SPEC)
    assert read == ["p1_ce", "p2_orn", "p3_orn", "p4_ce"]
    read.clear()
    twins = [dataclasses.replace(case, task="ce") for case in cases if case.patient == "p1"]
    check_held_out(twins, MODALITY, SPEC)
    assert len(twins) == 2 and read == ["p1_ce"]


@pytest.mark.parametrize("source", ["label", "none"])
def test_a_run_without_doses_is_not_scored_where_a_dose_lies(source: str) -> None:
    require_dose_boxes(Path("run"), tiny_config())
    with pytest.raises(errors.ConfigError, match=rf"the run run .*dose\.source='{source}'"):
        require_dose_boxes(
            Path("run"), tiny_config(dose__source=source, evaluate=False, prompt__box=False)
        )
