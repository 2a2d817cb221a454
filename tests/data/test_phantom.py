"""The embedded phantoms: deterministic, misaligned on purpose, and no gift to a threshold."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.data.cases import Case, Dataset, load_dataset
from rtsam_jax.data.nifti import read_label, read_volume
from rtsam_jax.data.phantom import build, make_case
from rtsam_jax.data.phantom.__main__ import main
from rtsam_jax.data.phantom.geometry import ellipsoid, rotation, smooth_noise
from rtsam_jax.data.preprocess import Preprocessed, PreprocessSpec, label_to_grid, preprocess
from rtsam_jax.errors import ConfigError, OutputExists

CASES = 6
RECORD = {"age", "sex", "site", "prescription_gy", "fractions", "months_since_rt", "side"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("phantom") / "data"
    build(root, cases=CASES, seed=0)
    assert [p.name for p in root.parent.iterdir()] == ["data"]  # nothing left beside it
    return load_dataset(root)


@pytest.fixture(scope="module")
def prepared(dataset: Dataset) -> list[tuple[Case, Preprocessed, np.ndarray]]:
    out = []
    for case in dataset.cases:
        assert case.label is not None
        done = preprocess(
            read_volume(case.image),
            read_volume(case.dose, what="dose"),
            dataset.task(case.task).modality,
            PreprocessSpec(spacing_mm=2.0, tau=0.8),
            name=case.id,
        )
        out.append((case, done, label_to_grid(read_label(case.label), done.grid) > 0))
    return out


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def test_each_patient_is_one_case_and_tasks_take_turns(dataset: Dataset) -> None:
    assert dataset.kind == "synthetic" and "say nothing about patients" in dataset.description
    assert Counter(case.task for case in dataset.cases) == {"orn": 2, "ce": 2, "crn": 2}
    assert len({case.patient for case in dataset.cases}) == CASES
    for case in dataset.cases:
        assert set(case.record) == RECORD and case.split is None
        assert 60 <= float(case.record["prescription_gy"]) <= 70


def test_the_same_numbers_give_the_same_voxels(dataset: Dataset) -> None:
    again = make_case(2, seed=0)
    case = dataset.cases[2]
    stored = nibabel.Nifti1Image.from_filename(case.image)
    np.testing.assert_array_equal(np.asarray(stored.dataobj), again.image.array)
    assert case.record == again.record
    other = make_case(2, seed=1)
    assert other.image.shape != again.image.shape or (other.image.array != again.image.array).any()


def test_lesions_are_of_realistic_size_and_inside_the_high_dose(
    prepared: list[tuple[Case, Preprocessed, np.ndarray]],
) -> None:
    for case, done, label in prepared:
        roi = done.roi > 0
        assert 0.35 <= label.sum() * 0.008 <= 6.0, case.id  # mL
        assert (label & roi).sum() >= 0.85 * label.sum(), case.id
        offset = np.argwhere(label).mean(0) - np.argwhere(roi).mean(0)
        assert np.linalg.norm(offset) * 2.0 > 2.0, case.id  # mm: not in the middle
        assert 15 <= roi.sum() * 0.008 <= 100, case.id
        extent = (done.box[1] - done.box[0] + 1) * 2.0
        assert (extent >= 26).all() and (extent <= 66).all(), case.id
        assert 1.0 < done.dmax / float(case.record["prescription_gy"]) < 1.2, case.id


def test_the_dose_has_its_own_grid(dataset: Dataset) -> None:
    axes = set()
    for case in dataset.cases:
        image, dose = (nibabel.Nifti1Image.from_filename(p) for p in (case.image, case.dose))
        assert image.shape != dose.shape
        assert np.prod(dose.header.get_zooms()) > np.prod(image.header.get_zooms())
        assert not np.allclose(image.affine, dose.affine)
        axes.add(nibabel.aff2axcodes(dose.affine))
    assert len(axes) >= 2


def test_side_and_air(dataset: Dataset) -> None:
    for case in dataset.cases:
        image, label = read_volume(case.image), read_label(case.label or "")
        air = image.array < -900 if case.task == "orn" else image.array == 0
        assert 0.3 < air.mean() < 0.8
        body = np.argwhere(~air).mean(0)[0]
        lesion = np.argwhere(label.array).mean(0)[0]
        assert case.record["side"] == ("right" if lesion > body else "left")


def test_the_airway_is_air_inside_the_head_and_holds_no_lesion(dataset: Dataset) -> None:
    for case in dataset.cases:
        image, label = read_volume(case.image), read_label(case.label or "")
        airway = read_label(case.structures["airway"].path)
        np.testing.assert_array_equal(airway.affine, image.affine)
        soft = -400 if case.task == "orn" else 0.35 * np.median(image.array[image.array > 0])
        assert image.array[airway.array].mean() < soft, case.id
        assert 20 < airway.array.sum() * np.prod(image.spacing) / 1000 < 250, case.id  # mL
        assert (airway.array & label.array).sum() < 0.1 * label.array.sum(), case.id


def test_trivial_predictors_are_poor(
    prepared: list[tuple[Case, Preprocessed, np.ndarray]],
) -> None:
    """The ROI, and the best threshold inside it, fitted per task on these very cases."""
    rois, best = [], []
    for task in ("orn", "ce", "crn"):
        chosen = [(d.image, d.roi > 0, label) for c, d, label in prepared if c.task == task]
        rois.append(np.mean([dice(roi, label) for _, roi, label in chosen]))
        best.append(
            max(
                float(np.mean([dice(roi & (s * v >= s * t), label) for v, roi, label in chosen]))
                for t in np.linspace(-2, 4, 61)
                for s in (1, -1)
            )
        )
    print(f"ROI Dice {np.round(rois, 3)}, best threshold in the ROI {np.round(best, 3)}")
    assert np.mean(rois) < 0.2
    assert np.mean(best) < 0.45


def test_refuses_a_folder_in_use_and_no_cases(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(OutputExists):
        build(tmp_path, cases=1)
    with pytest.raises(ConfigError):
        build(tmp_path / "new", cases=0)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_command_needs_one_thing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["phantom"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2


@settings(deadline=None, max_examples=20)
@given(st.tuples(*[st.floats(3, 40)] * 3), st.integers(0, 2))
def test_ellipsoid_distance_vanishes_on_the_surface_and_grows_outside(
    radii: tuple[float, float, float], axis: int
) -> None:
    steps = np.array([-1.0, 0.0, 2.0])
    point = np.zeros((3, 3), np.float32)
    point[axis] = radii[axis] + steps
    near = ellipsoid(point, (0, 0, 0), radii)
    assert near[0] < 0 and abs(near[1]) < 1e-3 and near[2] > 1.5


@settings(deadline=None, max_examples=20)
@given(st.tuples(*[st.floats(-180, 180)] * 3))
def test_rotation_keeps_lengths_and_handedness(degrees: tuple[float, float, float]) -> None:
    turn = rotation(degrees)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1)


def test_noise_is_smooth_and_standardised() -> None:
    rng = np.random.default_rng(0)
    field = smooth_noise(rng, (80, 70, 60), (2.0, 2.0, 2.5), 12.0)
    assert field.shape == (80, 70, 60) and field.dtype == np.float32
    assert abs(field.mean()) < 0.1 and 0.8 < field.std() < 1.2
    assert np.abs(np.diff(field, axis=0)).max() < 1.6  # no jumps between neighbours
