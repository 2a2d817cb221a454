"""The model with clicks: encoded once, compiled once, the same as without its machinery."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.cases import Case
from rtsam_jax.data.grid import Grid
from rtsam_jax.data.nifti import Volume
from rtsam_jax.data.preprocess import to_native
from rtsam_jax.evaluation.click_model import Asked, ClickModel, Encoded, Turn
from rtsam_jax.evaluation.inference import make_crop_predictor, predict_volume
from rtsam_jax.evaluation.interactive import interact, label_mask, open_case, play
from rtsam_jax.evaluation.simulated_user import CentreUser, IdealUser
from rtsam_jax.metrics.overlap import dice
from rtsam_jax.models.mask_decoder import Masks
from rtsam_jax.models.sam3d import SAM3D
from tests.models.random_model import random_model
from tests.tiny import tiny_config

SIZE, CLICKS, BATCH = 32, 4, 3
CASE = Case("one", "p", "orn", Path("image"))


@pytest.fixture(scope="module")
def network() -> SAM3D:
    # As many mask channels as it takes for the fed-back logits to matter: of two, a LayerNorm
    # leaves a sign.
    return random_model(seed=1, tasks=3, mask_channels=32)


def click_model(network: SAM3D, cfg: ExperimentConfig | None = None) -> ClickModel:
    graphdef, params = nnx.split(network)
    return ClickModel(graphdef, params, cfg or tiny_config(), clicks=CLICKS, batch=BATCH)


@pytest.fixture(scope="module")
def model(network: SAM3D) -> ClickModel:
    return click_model(network)


def scan(shape: tuple[int, int, int], low: tuple[int, ...], high: tuple[int, ...]) -> Any:
    image = np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)
    roi, box = np.zeros(shape, np.uint8), np.array([low, high])
    roi[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = 1
    return SimpleNamespace(
        image=image,
        grid=Grid(shape, np.eye(4)),
        background=-1.0,
        anchor=box,
        require_dose=lambda **_: (roi, box),
    )


SMALL = scan((40, 36, 36), (8, 8, 8), (20, 19, 22))  # one crop
LARGE = scan((60, 36, 36), (4, 8, 8), (52, 19, 22))  # several


def label_of(of: Any) -> Volume:
    index = np.stack(np.meshgrid(*map(np.arange, of.grid.shape), indexing="ij"), -1)
    return Volume(np.linalg.norm(index - 16, axis=-1) < 6, of.grid.affine)


@pytest.mark.parametrize("of", [SMALL, LARGE], ids=["one crop", "several"])
def test_without_clicks_it_predicts_as_an_evaluation_does(
    network: SAM3D, model: ClickModel, of: Any
) -> None:
    case = open_case(model, CASE, of, label_of(of), text_id=2)
    predict = make_crop_predictor(*nnx.split(network), tiny_config())
    whole = predict_volume(predict, of, 2, SIZE, name="one")
    grid, window = case.tiles.window, case.tiles.place
    np.testing.assert_allclose(case.probability(case.first), whole[window], atol=1e-5)
    finer = np.diag([0.7, 0.9, 0.8, 1.0])
    finer[:3, 3] = -0.3
    label = Volume(np.zeros((90, 44, 50), bool), finer)
    expected = to_native(whole, of.grid, label) >= 0.5
    np.testing.assert_array_equal(label_mask(grid, label)(whole[window]), expected)
    assert expected.any()
    whole[window] = 0
    assert not whole.any()  # the window holds all


def test_clicks_in_the_masked_buffer_are_the_clicks_alone(
    network: SAM3D, model: ClickModel
) -> None:
    """Against the module itself, asked with buffers that fit, the logits fed back by hand."""
    case = open_case(model, CASE, SMALL, label_of(SMALL), text_id=1)
    crops, turn = case.crops, case.first
    fixed = network.fixed_prompts(crops.box, crops.box_valid, jnp.asarray(crops.text_id))

    @jax.jit
    def decode(points: jax.Array, labels: jax.Array, mask: jax.Array) -> Masks:
        asked = fixed._replace(points=points, point_labels=labels, mask=mask)
        return network.decode(crops.embedding, asked)

    points, labels = np.zeros((1, 0, 3), np.float32), np.zeros((1, 0), np.int32)
    mask = np.zeros((1, 16, 16, 16, 1), np.float32)
    rows = np.array([0])
    for slot, (voxel, positive) in enumerate([((9, 4, 30), True), ((20, 17, 3), False)]):
        expected = decode(points, labels, mask)
        np.testing.assert_allclose(turn.low_res, expected.low_res_logits, atol=2e-5)
        mask = expected.low_res_logits
        points = np.concatenate([points, np.array([[voxel]], np.float32)], axis=1)
        labels = np.concatenate([labels, np.array([[positive]], np.int32)], axis=1)
        asked = turn.with_click(rows, np.array([voxel]), positive, slot, keep=True)
        turn = turn.updated(rows, model.answer(crops, asked))
    assert turn.labels.tolist() == [[1, 0, -2, -2]]


def test_nothing_recompiles(network: SAM3D) -> None:
    """However many crops, candidates, clicks and cases."""
    model = click_model(network)
    for of in (SMALL, LARGE):
        case = open_case(model, CASE, of, label_of(of), text_id=0)
        for user in (CentreUser(), IdealUser(1), IdealUser(5)):
            interact(model, case, user, seed=0)
    assert model._encode._cache_size() == 1
    assert model._decode._cache_size() == 2  # for one row and for BATCH of them


def test_the_best_candidate_is_made_and_its_logits_are_fed_back(model: ClickModel) -> None:
    case = open_case(model, CASE, SMALL, label_of(SMALL), text_id=0)

    def after_one(user: Any) -> float:
        shown = play(model, case, user, np.random.default_rng(3))
        _, (click, probability) = next(shown), next(shown)
        assert click is not None and (probability != case.probability(case.first)).any()
        return dice(probability >= 0.5, case.truth)

    assert after_one(CentreUser()) == after_one(IdealUser(1))
    assert after_one(IdealUser(8)) >= after_one(CentreUser()) - 1e-3  # rounding, by row and batch


def test_a_model_trained_on_the_newest_clicks_alone_is_given_those(network: SAM3D) -> None:
    cfg = tiny_config(click__accumulate=False)
    model = click_model(network, cfg)
    case = open_case(model, CASE, SMALL, label_of(SMALL), text_id=0)
    given: list[np.ndarray] = []
    answer = model.answer

    def recorded(crops: Encoded, asked: Asked) -> Turn:
        given.append(asked.labels)
        return answer(crops, asked)

    model.answer = recorded
    list(play(model, case, CentreUser(), np.random.default_rng(0)))
    assert len(given) == CLICKS
    for slot, labels in enumerate(given):
        assert np.flatnonzero(labels[0] >= 0).tolist() == [slot]


def test_a_model_without_box_or_task_takes_clicks_too() -> None:
    cfg = tiny_config(prompt__box=False, prompt__task="none", dose__source="dose")
    model = click_model(random_model(seed=2), cfg)
    case = open_case(model, CASE, SMALL, label_of(SMALL), text_id=0)
    assert case.crops.box is None and jax.tree.leaves(case.crops)[0].dtype == np.float32
    found = interact(model, case, CentreUser(), seed=0)
    assert len(found.dice) == 1 + CLICKS and np.isfinite(found.dice).all()
