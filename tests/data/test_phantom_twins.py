"""Twins: two lesions that nothing but the record's side tells apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import KDTree

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data import selection
from rtsam_jax.data.cases import load_dataset
from rtsam_jax.data.crops import crop_origins
from rtsam_jax.data.nifti import Volume, read_label
from rtsam_jax.data.phantom import PhantomCase, dataset, make_case
from rtsam_jax.data.phantom.__main__ import main
from rtsam_jax.data.preprocess import PreprocessSpec, label_to_grid, preprocess
from rtsam_jax.prompts.dose import largest_component

MODALITY = {task.name: task.modality for task in dataset.TASKS}
SPEC = PreprocessSpec(spacing_mm=3.0, tau=0.8)


@pytest.fixture(scope="module")
def forced() -> list[tuple[PhantomCase, PhantomCase]]:
    """One case per task, once with the right lesion asked for and once with the left."""
    pairs = []
    with pytest.MonkeyPatch.context() as patch:
        for index in range(3):
            both = []
            for asked in (0, 1):
                patch.setattr(dataset, "_choose", lambda rng, count, asked=asked: asked)
                both.append(make_case(index, twins=True))
            pairs.append((both[0], both[1]))
    return pairs


def twin(case: PhantomCase) -> Volume:
    assert case.twin is not None
    return case.twin


def world(label: Volume) -> np.ndarray:
    """World mm of a label's voxels, [n, 3]."""
    return np.argwhere(label.array) @ label.affine[:3, :3].T + label.affine[:3, 3]


def test_only_label_and_side_depend_on_which_lesion_is_asked_for(
    forced: list[tuple[PhantomCase, PhantomCase]],
) -> None:
    for right, left in forced:
        assert right.id == left.id and right.id.startswith("twins_")
        for a, b in ((right.image, left.image), (right.dose, left.dose)):
            np.testing.assert_array_equal(a.array, b.array)
            np.testing.assert_array_equal(a.affine, b.affine)
        np.testing.assert_array_equal(right.label.array, twin(left).array)
        np.testing.assert_array_equal(left.label.array, twin(right).array)
        assert right.record == left.record | {"side": "right"}
        assert left.record["side"] == "left"


def test_the_coin_is_fair_and_the_case_repeats(
    forced: list[tuple[PhantomCase, PhantomCase]],
) -> None:
    tosses = [dataset._choose(np.random.default_rng(seed), 2) for seed in range(400)]
    assert 160 <= sum(tosses) <= 240
    for index, (right, left) in enumerate(forced):
        case = make_case(index, twins=True)
        same = right if case.record["side"] == "right" else left
        assert case.record == same.record
        np.testing.assert_array_equal(case.image.array, same.image.array)
        np.testing.assert_array_equal(case.label.array, same.label.array)


def test_each_side_has_one_lesion_and_a_gap_parts_them(
    forced: list[tuple[PhantomCase, PhantomCase]],
) -> None:
    for right, left in forced:
        for case in (right, left):
            assert ndimage.label(case.label.array)[1] == 1, case.id
            volume = case.label.array.sum() * np.prod(case.label.spacing) / 1000
            assert 0.7 <= volume <= 5.7, case.id  # mL
        a, b = world(right.label), world(left.label)
        assert a[:, 0].mean() > b[:, 0].mean() + 15, right.id  # RAS: right is larger
        assert KDTree(a).query(b)[0].min() >= 6.0, right.id


def test_one_roi_holds_both_and_fits_in_a_crop(
    forced: list[tuple[PhantomCase, PhantomCase]],
) -> None:
    for case, _ in forced:
        done = preprocess(case.image, case.dose, MODALITY[case.task], SPEC, name=case.id)
        roi = done.roi > 0
        np.testing.assert_array_equal(largest_component(roi), roi)
        for lesion in (case.label, twin(case)):
            label = label_to_grid(lesion, done.grid) > 0
            assert (label & roi).sum() >= 0.85 * label.sum(), case.id
        assert len(crop_origins(done.box, 24)) == 1, case.id


def test_without_twins_no_draw_is_made_or_left_out() -> None:
    """The record is drawn after the image: one draw more or less before it would change it."""
    case = make_case(1)
    assert case.twin is None and case.id == "phantom_001_ce"
    assert case.record == {
        "age": 53,
        "sex": "female",
        "site": "meningioma",
        "prescription_gy": 60.0,
        "fractions": 30,
        "months_since_rt": 58,
        "side": "right",
    }
    assert case.image.array.shape == (87, 104, 94) and case.label.array.sum() == 245


def test_command_writes_the_label_that_the_side_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forced: list[tuple[PhantomCase, PhantomCase]]
) -> None:
    monkeypatch.setattr("sys.argv", ["phantom", str(tmp_path / "data"), "--cases", "2", "--twins"])
    main()
    made = load_dataset(tmp_path / "data")
    assert made.name == "phantom_twins" and made.kind == "synthetic"
    assert "ynthetic" in made.description and "look-alike" in made.description
    for case, (right, left) in zip(made.cases, forced, strict=False):
        assert case.label is not None
        stored = read_label(case.label).array.sum()
        asked = right if case.record["side"] == "right" else left
        assert stored == asked.label.array.sum() and case.record == asked.record
        files = {path.name.removesuffix(".nii.gz") for path in case.label.parent.iterdir()}
        assert files == {"image", "dose", "label", "airway"}  # the twin is not told
        np.testing.assert_array_equal(right.airway.array, left.airway.array)


def test_the_builder_of_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "rtsam_jax.data.phantom.build", lambda root, **options: calls.append(options)
    )
    cfg = ExperimentConfig()
    cfg.data.builder, cfg.data.builder_cases = "phantom_twins", 9
    selection._build_dataset(cfg, tmp_path)
    assert calls == [{"seed": cfg.data.split_seed, "cases": 9, "twins": True}]
