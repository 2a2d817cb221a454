"""data.crop="image": crops lie around the body, wherever the dose is high."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.data.cases import load_dataset
from rtsam_jax.data.crops import crop_origins, extract
from rtsam_jax.data.neighbourhood import Neighbourhood, anchor_box, training_origins
from rtsam_jax.data.nifti import Volume, read_volume, write_volume
from rtsam_jax.data.prepare import prepare_cases
from rtsam_jax.data.prepared import PreparedCases
from rtsam_jax.data.preprocess import PreprocessSpec, preprocess
from rtsam_jax.data.scans import CacheSettings
from rtsam_jax.errors import ConfigError
from rtsam_jax.evaluation.inference import predict_volume
from rtsam_jax.evaluation.scoring import trivial_methods
from tests.tiny import tiny_config, write_tiny_dataset

few = settings(deadline=None, max_examples=20)
SIDE = 24
MODALITY = {"orn": "CT", "ce": "MR", "crn": "MR"}


def ct(low: tuple[int, int, int], high: tuple[int, int, int], spacing: float = 2.0) -> Volume:
    """Air with a body of two tissues in [low, high]."""
    array = np.full((SIDE,) * 3, -1000, np.float32)
    body = tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))
    array[body] = 40
    array[low] = 300
    return Volume(array, np.diag([spacing, spacing, spacing, 1.0]))


def dose_at(centre: np.ndarray, image: Volume) -> Volume:
    index = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij"), -1)
    distance = np.linalg.norm(index - centre, axis=-1)
    return Volume((60 * np.exp(-((distance / 5) ** 2))).astype(np.float32), image.affine)


def scan_of(image: Volume, dose: Volume | None, crop: str, spacing: float = 2.0):
    return preprocess(image, dose, "CT", PreprocessSpec(spacing, 0.5, crop=crop), name="c")


corners = st.tuples(*[st.integers(2, 9)] * 3), st.tuples(*[st.integers(12, 21)] * 3)
centres = st.tuples(*[st.integers(4, 19)] * 3)


@few
@given(low=corners[0], high=corners[1], first=centres, second=centres)
def test_no_dose_moves_the_crops(low, high, first, second) -> None:
    image = ct(low, high)
    scans = [scan_of(image, dose_at(np.array(at), image), "image") for at in (first, second)]
    scans.append(scan_of(image, None, "image"))
    for scan in scans:
        np.testing.assert_array_equal(scan.anchor, [low, high])
        np.testing.assert_array_equal(
            crop_origins(anchor_box(scan, None), 8), crop_origins(np.array([low, high]), 8)
        )
    on_dose = scan_of(image, dose_at(np.array(first), image), "dose")
    assert on_dose.body is None and on_dose.anchor is on_dose.box


@few
@given(low=corners[0], high=corners[1], spacing=st.sampled_from([1.0, 1.5, 2.0, 3.0, 5.0]))
def test_the_bodys_box_on_another_grid_holds_it_and_little_more(low, high, spacing) -> None:
    image = ct(low, high)
    scan = scan_of(image, None, "image", spacing)
    assert scan.anchor is not None
    to_mm = scan.grid.affine
    first = to_mm[:3, :3].diagonal() * (scan.anchor[0] - 0.5) + to_mm[:3, 3]
    last = to_mm[:3, :3].diagonal() * (scan.anchor[1] + 0.5) + to_mm[:3, 3]
    body = 2.0 * (np.array(low) - 0.5), 2.0 * (np.array(high) + 0.5)
    assert (first <= body[0] + 0.01).all() and (first > body[0] - spacing - 0.01).all()
    assert (last >= body[1] - 0.01).all() and (last < body[1] + spacing + 0.01).all()


@few
@given(at=st.tuples(*[st.integers(3, 20)] * 3))
def test_half_of_the_training_crops_hold_some_of_the_label(at) -> None:
    image = ct((1, 1, 1), (22, 22, 22))
    scan = scan_of(image, None, "image")
    label = np.zeros((SIDE,) * 3, np.uint8)
    label[at] = 1
    plain = crop_origins(scan.anchor, 8)
    drawn = training_origins(scan, label, 8, crop="image")
    assert set(map(tuple, drawn.tolist())) == set(map(tuple, plain.tolist()))
    hits = sum(extract(label, origin, 8, 0).any() for origin in drawn)
    assert 0.35 <= hits / len(drawn) <= 0.65
    np.testing.assert_array_equal(training_origins(scan, 0 * label, 8, crop="image"), plain)
    on_dose = scan_of(image, dose_at(np.array([12, 12, 12]), image), "dose")
    np.testing.assert_array_equal(
        training_origins(on_dose, label, 8, crop="dose"), crop_origins(on_dose.box, 8)
    )


def test_prediction_tiles_the_body_and_cuts_the_roi_to_each_crop() -> None:
    image = ct((2, 2, 2), (21, 21, 21))
    scan = scan_of(image, dose_at(np.array([6, 6, 6]), image), "image")
    seen = []

    def predict(crops: np.ndarray, roi: np.ndarray, text_id: np.ndarray) -> np.ndarray:
        seen.extend(roi.any(axis=(1, 2, 3)).tolist())
        return np.ones_like(crops)

    found = predict_volume(predict, scan, 0, 8, name="c")
    assert len(seen) == 4**3 and 0 < sum(seen) < len(seen)
    inside = np.zeros((SIDE,) * 3, bool)
    inside[2:22, 2:22, 2:22] = True
    np.testing.assert_array_equal(found > 0, inside)


def test_prepared_cases_do_not_depend_on_the_dose_but_in_their_roi(tmp_path: Path) -> None:
    size, cases = 16, {}
    for name in ("a", "b"):
        root = tmp_path / name
        write_tiny_dataset(root)
        dataset = load_dataset(root)
        if name == "b":  # another place for the dose of the first case
            dose = read_volume(dataset.cases[0].dose)
            moved = Volume(np.ascontiguousarray(dose.array[::-1]), dose.affine)
            write_volume(dataset.cases[0].dose, moved, np.float32)
        cfg = tiny_config(root, data__crop="image")
        made = CacheSettings.from_config(cfg, size)
        done = prepare_cases(
            dataset.cases[:1], MODALITY, made, epath.Path(root / "prepared"), workers=1
        )
        cases[name] = PreparedCases([done.entries["p0_orn"]], [0], "dose", tmp_path / "none")[0]
    a, b = cases["a"], cases["b"]
    np.testing.assert_array_equal(a.origins, b.origins)
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.label, b.label)
    assert len(a.origins) > 1 and (a.roi != b.roi).any()


def test_trivial_predictors_see_all_that_the_crops_cover() -> None:
    """A label at the body's rim, outside a crop in its middle, is found by its place."""
    image = ct((2, 2, 2), (21, 21, 21))
    scan = scan_of(image, dose_at(np.array([6, 6, 6]), image), "image")
    label = np.zeros((SIDE,) * 3, np.uint8)
    label[3:6, 3:6, 3:6] = 1
    case = Neighbourhood(
        scan.image, scan.roi, label, training_origins(scan, label, 8, crop="image"), 0.0, 0
    )
    methods = trivial_methods([case], ["orn"], 8, crop="image")

    class Asked:
        id, task = "c", "orn"

    np.testing.assert_array_equal(methods["location atlas"](Asked, scan) >= 0.5, label > 0)
    np.testing.assert_array_equal(methods["ROI itself"](Asked, scan) >= 0.5, scan.roi > 0)


def test_crops_without_dose_need_the_dose_as_the_boxs_source() -> None:
    with pytest.raises(ConfigError, match="config.data.crop is 'image'"):
        tiny_config(data__crop="image", dose__source="label", evaluate=False)
    with pytest.raises(ConfigError, match="config.data.crop is 'body'"):
        tiny_config(data__crop="body")
