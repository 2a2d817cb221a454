"""Every method is scored on the label's own grid, and what no crop reaches counts as missed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from rtsam_jax.data import scans
from rtsam_jax.data.cases import Case, Structure, load_dataset
from rtsam_jax.data.nifti import Volume, read_label, write_volume
from rtsam_jax.data.pipeline import Neighbourhood
from rtsam_jax.data.preprocess import PreprocessSpec
from rtsam_jax.evaluation.scoring import score_cases, trivial_methods
from tests.tiny import SPACING, TASKS

SPEC = PreprocessSpec(SPACING, 0.5)
MODALITY = {"orn": "CT", "ce": "MR", "crn": "MR"}


def finer_label(folder: Path) -> tuple[Case, np.ndarray, np.ndarray]:
    """One case whose label has its own grid: 1 mm voxels, one lesion inside, one far outside."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    index = np.stack(np.meshgrid(*[np.arange(40)] * 3, indexing="ij"), -1)
    distance = np.linalg.norm(index - 15, axis=-1)
    image = np.random.default_rng(0).normal(0, 50, (40,) * 3).astype(np.float32)
    dose = (60 * np.exp(-((distance / 10) ** 2))).astype(np.float32)
    write_volume(folder / "i.nii.gz", Volume(image, affine), np.float32)
    write_volume(folder / "d.nii.gz", Volume(dose, affine), np.float32)
    near, far = np.zeros((80, 80, 80), bool), np.zeros((80, 80, 80), bool)
    near[26:36, 26:36, 26:36] = True
    far[70:76, 70:76, 70:76] = True
    fine = np.diag([1.0, 1.0, 1.0, 1.0])
    fine[:3, 3] = -0.5
    write_volume(folder / "l.nii.gz", Volume((near | far).astype(np.uint8), fine), np.uint8)
    files = {kind: folder / f"{kind[0]}.nii.gz" for kind in ("image", "dose", "label")}
    return Case(id="one", patient="p", task="orn", **files), near, far


def test_the_labels_own_grid_and_what_lies_outside_every_crop(tmp_path: Path) -> None:
    case, near, far = finer_label(tmp_path)

    def knows_near(case: Case, scan) -> np.ndarray:
        """The near lesion exactly, on the 2 mm model grid; nothing elsewhere."""
        return near[::2, ::2, ::2].astype(np.float32)

    def everything(case: Case, scan) -> np.ndarray:
        return np.ones(scan.image.shape, np.float32)

    methods = {"near": knows_near, "all": everything, "none": lambda c, s: 0 * s.image}
    [scored] = score_cases([case], MODALITY, SPEC, methods)
    assert scored.truth.shape == (80, 80, 80)
    assert all(mask.shape == (80, 80, 80) for mask in scored.masks.values())
    found = scored.metrics["near"]
    assert found.volume_truth_ml == pytest.approx((near.sum() + far.sum()) / 1000)
    assert found.recall == pytest.approx(near.sum() / (near.sum() + far.sum()), abs=0.02)
    assert found.precision > 0.95
    assert scored.metrics["all"].recall == 1 and scored.metrics["all"].precision < 0.01
    assert scored.metrics["none"].missed and scored.metrics["none"].dice == 0


def test_false_positives_in_structures_and_the_images_diagonal(tmp_path: Path) -> None:
    case, near, _ = finer_label(tmp_path)
    # On the image's grid of 2 mm, where the label has 1 mm: half of all, and what holds the lesion.
    half, lesion = np.zeros((2, 40, 40, 40), np.uint8)
    half[:20], lesion[13:18, 13:18, 13:18] = 1, 1
    structures = {}
    for name, mask in (("half", half), ("lesion", lesion)):
        path = tmp_path / f"{name}.nii.gz"
        write_volume(path, Volume(mask, np.diag([2.0, 2.0, 2.0, 1.0])), np.uint8)
        structures[name] = Structure(path)
    case = dataclasses.replace(case, structures=structures)
    # The label's grid ends beyond the image's, and is not what the diagonal is taken from.
    wide = np.pad(read_label(case.label).array, ((0, 30), (0, 0), (0, 0)))
    fine = np.diag([1.0, 1.0, 1.0, 1.0])
    fine[:3, 3] = -0.5
    write_volume(tmp_path / "l.nii.gz", Volume(wide, fine), np.uint8)
    methods = {
        "all": lambda c, s: np.ones(s.image.shape, np.float32),
        "none": lambda c, s: 0 * s.image,
    }
    [scored] = score_cases([case], MODALITY, SPEC, methods)
    found = scored.metrics["all"].structures_ml
    assert found["half"] == pytest.approx((40 * 80 * 80 - near.sum()) / 1000)
    assert found["lesion"] == 0
    assert scored.metrics["none"].structures_ml == {"half": 0, "lesion": 0}
    assert scored.metrics["none"].value("hd95_mm") == pytest.approx(80 * 3**0.5)


def test_a_probability_of_one_half_is_foreground(tmp_path: Path) -> None:
    case, *_ = finer_label(tmp_path)
    methods = {
        "half": lambda c, s: np.full(s.image.shape, 0.5, np.float32),
        "less": lambda c, s: np.full(s.image.shape, 0.4999, np.float32),
    }
    [scored] = score_cases([case], MODALITY, SPEC, methods)
    assert scored.masks["half"].all() and not scored.masks["less"].any()


def test_cases_without_a_label_are_left_out_and_scans_are_read_once(
    tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = list(load_dataset(tiny_dataset).cases)
    cases[0] = dataclasses.replace(cases[0], label=None)
    read: list[str] = []
    real = scans.preprocess_scan
    monkeypatch.setattr(
        scans, "preprocess_scan", lambda *a, name: (read.append(name), real(*a, name=name))[1]
    )
    methods = {"none": lambda c, s: 0 * s.image}
    found = [s.case.id for s in score_cases(cases, MODALITY, SPEC, methods)]
    assert found == [case.id for case in cases[1:]]
    assert read == ["p1_ce", "p2_orn", "p3_orn", "p4_ce"]  # p1_crn shares p1_ce's scan


def test_trivial_methods_are_fitted_on_training_cases_only() -> None:
    """Bright label left of the centre in task 0, dark and right of it in task 1."""
    size, cases = 8, []
    for task in (0, 1):
        image = np.zeros((12, 12, 12), np.float32)
        label = np.zeros((12, 12, 12), np.uint8)
        at = slice(3, 5) if task == 0 else slice(6, 8)
        image[at, 5:7, 5:7] = 9 if task == 0 else -9
        label[at, 5:7, 5:7] = 1
        roi = np.zeros_like(label)
        roi[3:9, 3:9, 3:9] = 1
        cases.append(Neighbourhood(image, roi, label, np.array([[2, 2, 2]]), 0.0, task))
    methods = trivial_methods(cases, TASKS[:2], size)
    assert list(methods) == ["ROI itself", "intensity threshold", "location atlas"]

    class Scan:
        image, roi, background = cases[0].image, cases[0].roi, 0.0
        anchor = np.array([[3, 3, 3], [8, 8, 8]])
        require_dose = staticmethod(lambda **_: (Scan.roi, Scan.anchor))

    def predicted(name: str, task: str, scan=Scan) -> np.ndarray:
        return methods[name](Case("c", "p", task, Path("i"), Path("d")), scan) >= 0.5

    np.testing.assert_array_equal(predicted("ROI itself", "orn"), cases[0].roi > 0)
    for name in ("intensity threshold", "location atlas"):
        np.testing.assert_array_equal(predicted(name, "orn"), cases[0].label > 0)
    # On the bright image, the dark task's threshold finds nothing bright; its atlas is unmoved.
    np.testing.assert_array_equal(predicted("location atlas", "ce"), cases[1].label > 0)
    assert not (predicted("intensity threshold", "ce") & (cases[0].label > 0)).any()
