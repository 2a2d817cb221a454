"""Prediction on a whole grid: tiles over the box, blended, zero where nothing reaches."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from rtsam_jax.data.crops import crop_origins
from rtsam_jax.evaluation.inference import BATCH, make_crop_predictor, predict_volume
from rtsam_jax.models.text_adapter import TextTable
from rtsam_jax.training.state import make_model
from tests.models.random_model import random_model
from tests.tiny import tiny_config

SIZE = 8


def scan_of(shape, low, high) -> SimpleNamespace:
    image = np.random.default_rng(0).random(shape, np.float32)
    box = np.array([low, high])
    roi = np.zeros(shape, np.uint8)
    roi[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = 1
    dose = lambda **_: (roi, box)  # noqa: E731
    about = {"roi": roi, "box": box, "anchor": box, "background": -7.0, "require_dose": dose}
    return SimpleNamespace(image=image, **about)


def recording():
    calls = []

    def predict(image, roi, task_id):
        calls.append((image, roi, task_id))
        return image.copy()  # "probability" = intensity: blending must give it back

    return predict, calls


def test_one_crop_where_the_box_fits() -> None:
    scan = scan_of((20, 20, 20), (6, 7, 8), (11, 12, 13))
    predict, calls = recording()
    found = predict_volume(predict, scan, 2, SIZE, name="c")
    [(image, roi, task)] = calls
    assert image.shape == roi.shape == (1, SIZE, SIZE, SIZE) and task.tolist() == [2]
    assert roi.sum() == scan.roi.sum()
    x, y, z = crop_origins(scan.box, SIZE)[0]
    inside = np.zeros_like(scan.image, bool)
    inside[x : x + SIZE, y : y + SIZE, z : z + SIZE] = True
    np.testing.assert_array_equal(found, np.where(inside, scan.image, 0))


def test_tiles_cover_a_larger_box_and_blend() -> None:
    scan = scan_of((24, 20, 20), (2, 6, 6), (20, 9, 17))
    predict, calls = recording()
    found = predict_volume(predict, scan, 1, SIZE, name="c")
    assert len(calls) > 1 and all(len(image) <= BATCH for image, _, _ in calls)
    inside = scan.roi.astype(bool)
    np.testing.assert_allclose(found[inside], scan.image[inside], rtol=1e-6)
    assert found[-1].max() == 0 and found[:, 0].max() == 0


def test_beyond_the_volume_the_predictor_sees_background() -> None:
    scan = scan_of((6, 20, 20), (0, 6, 6), (5, 11, 11))
    predict, calls = recording()
    predict_volume(predict, scan, 0, SIZE, name="c")
    assert (calls[0][0][0, 0] == -7).all() and (calls[0][1][0, 0] == 0).all()


@pytest.fixture(scope="module")
def predictor():
    cfg = tiny_config()
    module = random_model(seed=1, tasks=3)
    graphdef, params = nnx.split(module)
    assert jax.tree.structure(params) == jax.tree.structure(
        nnx.state(nnx.eval_shape(lambda: make_model(cfg, 3)))
    )
    return make_crop_predictor(graphdef, params, cfg)


def crops(count: int):
    draw = np.random.default_rng(3)
    image = draw.standard_normal((count, 32, 32, 32)).astype(np.float32)
    roi = np.zeros((count, 32, 32, 32), np.uint8)
    roi[:, 8:20, 9:21, 10:22] = 1
    return image, roi, np.arange(count, dtype=np.int32)


def test_a_part_batch_is_filled_and_cut_again(predictor) -> None:
    image, roi, task = crops(2)
    both = predictor(image, roi, task)
    assert both.shape == image.shape and both.dtype == np.float32
    assert (both >= 0).all() and (both <= 1).all() and both.std() > 0
    alone = predictor(image[:1], roi[:1], task[:1])
    assert alone.shape == (1, 32, 32, 32)
    np.testing.assert_allclose(alone[0], both[0], atol=1e-5)


def test_task_box_and_image_all_matter(predictor) -> None:
    image, roi, task = crops(1)
    base = predictor(image, roi, task)
    moved = np.roll(roi, 5, axis=1)
    for changed in (
        predictor(image, roi, task + 1),
        predictor(image, moved, task),
        predictor(image, np.zeros_like(roi), task),  # no box at all
        predictor(image + 0.5 * image[:, ::-1], roi, task),
    ):
        assert np.isfinite(changed).all()
        assert np.abs(changed - base).max() > 1e-4


def test_text_matters_and_padding_of_its_table_does_not() -> None:
    """A held-out set's longest text decides the table's length; that must not change a mask."""
    graphdef, params = nnx.split(random_model(seed=1, text_width=20))
    cfg = tiny_config(prompt__task="text")
    features = np.random.default_rng(0).standard_normal((3, 2, 20)).astype(np.float32)
    valid = np.array([[1, 1], [1, 0], [1, 1]], bool)
    longer = TextTable(np.pad(features, ((0, 0), (0, 3), (0, 0))), np.pad(valid, ((0, 0), (0, 3))))
    short, long = (
        make_crop_predictor(graphdef, params, cfg, table)
        for table in (TextTable(features, valid), longer)
    )
    image, roi, _ = crops(2)
    first = short(image, roi, np.array([0, 1], np.int32))
    np.testing.assert_allclose(long(image, roi, np.array([0, 1], np.int32)), first, atol=1e-5)
    other = short(image, roi, np.array([2, 1], np.int32))
    assert np.abs(other[0] - first[0]).max() > 1e-4
    np.testing.assert_allclose(other[1], first[1], atol=1e-5)
    hidden = TextTable(
        np.where(valid[..., None], features, 9.0), valid
    )  # what is invalid is unseen
    unseen = make_crop_predictor(graphdef, params, cfg, hidden)
    np.testing.assert_array_equal(unseen(image, roi, np.array([0, 1], np.int32)), first)
