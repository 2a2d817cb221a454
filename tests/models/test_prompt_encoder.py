from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special

from rtsam_jax.models.prompt_encoder import NOT_A_POINT, UNUSED, Encoded, Prompts
from rtsam_jax.models.sam3d import SAM3D
from rtsam_jax.models.text_adapter import TextTable
from tests.models.jaxpr_dtypes import input_dtypes
from tests.models.random_model import random_model

_rng = np.random.default_rng(3)
POINTS = _rng.uniform(0, 31, (2, 3, 3)).astype(np.float32)
LABELS = np.array([[1, 0, 1], [0, 0, 1]], np.int32)
BOX = np.array([[[2, 3, 4], [20, 25, 30]], [[0, 0, 0], [9, 8, 7]]], np.float32)


@pytest.fixture(scope="module")
def model() -> SAM3D:
    return random_model(tasks=3)


def encode(model: SAM3D, prompts: Prompts) -> Encoded:
    return model.prompt_encoder(prompts, 2)


def test_no_prompt_gives_no_token(model: SAM3D) -> None:
    out = encode(model, Prompts())
    assert out.tokens.shape == (2, 0, 48) and out.valid.shape == (2, 0)
    expected = np.broadcast_to(model.prompt_encoder.no_mask_embed[...], (2, 4, 4, 4, 48))
    np.testing.assert_array_equal(out.dense, expected)


def test_clicks_without_a_box_get_the_reference_token(model: SAM3D) -> None:
    """Trap 5: one unmasked "not a point" after the clicks."""
    out = encode(model, Prompts(POINTS, LABELS))
    assert out.tokens.shape == (2, 4, 48) and out.valid.all()
    token = np.broadcast_to(model.prompt_encoder.not_a_point_embed[...], (2, 48))
    np.testing.assert_array_equal(out.tokens[:, -1], token)


def test_clicks_with_a_box_do_not(model: SAM3D) -> None:
    assert encode(model, Prompts(POINTS, LABELS, box=BOX)).tokens.shape == (2, 5, 48)


def test_a_box_that_is_valid_for_some_cases_only(model: SAM3D) -> None:
    valid = np.array([True, False])
    out = encode(model, Prompts(POINTS, LABELS, box=BOX, box_valid=valid))
    # 3 clicks, the reference's token where the box is absent, 2 corners where it is not.
    np.testing.assert_array_equal(out.valid, [[1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 0, 0]])


def test_positive_and_negative_clicks_differ_by_their_embeddings(model: SAM3D) -> None:
    positive = encode(model, Prompts(POINTS, np.ones_like(LABELS))).tokens[:, :3]
    negative = encode(model, Prompts(POINTS, np.zeros_like(LABELS))).tokens[:, :3]
    embed = model.prompt_encoder.point_embed[...]
    np.testing.assert_allclose(
        positive - negative, np.broadcast_to(embed[1] - embed[0], (2, 3, 48)), atol=1e-5
    )


def test_unused_slots_are_invalid_and_minus_one_is_not(model: SAM3D) -> None:
    labels = np.array([[1, UNUSED, NOT_A_POINT], [UNUSED, 0, 1]], np.int32)
    out = encode(model, Prompts(POINTS, labels))
    np.testing.assert_array_equal(out.valid, [[1, 0, 1, 1], [0, 1, 1, 1]])


def test_box_corners(model: SAM3D) -> None:
    """Trap 6: two embeddings of our own, one per corner, both reached by gradients."""
    encoder = model.prompt_encoder
    tokens = encode(model, Prompts(box=BOX)).tokens
    position = encoder.position.voxels(jnp.asarray(BOX), 32)
    np.testing.assert_allclose(
        tokens, position + np.asarray(encoder.corner_embed[...]), rtol=1e-5, atol=1e-5
    )
    assert not np.allclose(encoder.corner_embed[0], encoder.corner_embed[1])
    graph, own, rest = nnx.split(encoder, nnx.PathContains("corner_embed"), ...)
    probe = _rng.normal(size=(2, 2, 48))

    def functional(own: nnx.State) -> jax.Array:
        return (nnx.merge(graph, own, rest)(Prompts(box=BOX), 2).tokens * probe).sum()

    gradient = jax.tree.leaves(jax.grad(functional)(own))[0]
    np.testing.assert_allclose(gradient, probe.sum(0), rtol=1e-4, atol=1e-5)


def test_grid_and_point_encodings_swap_two_axes(model: SAM3D) -> None:
    """Trap 3: a token's dense position is a point's with its first two coordinates swapped."""
    position = model.prompt_encoder.position
    dense = position.grid(4)
    centre = np.array([2.0, 0.0, 1.0]) * 8 + 3.5  # voxel coordinates of token (2, 0, 1)
    swapped = centre[[1, 0, 2]]
    np.testing.assert_allclose(
        dense[2, 0, 1], position.voxels(jnp.asarray(swapped, jnp.float32), 32), atol=1e-4
    )


def test_task_tokens(model: SAM3D) -> None:
    tokens, valid = model.prompt_encoder.text_tokens(jnp.array([2, 0]), None)
    assert valid is None
    np.testing.assert_array_equal(tokens, model.prompt_encoder.task_embed[...][np.array([2, 0])])
    out = encode(model, Prompts(POINTS, LABELS, text=tokens))
    assert out.tokens.shape == (2, 8, 48)
    np.testing.assert_array_equal(out.tokens[:, 4:], tokens)
    partly = np.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)
    out = encode(model, Prompts(POINTS, LABELS, text=tokens, text_valid=partly))
    np.testing.assert_array_equal(out.valid[:, 4:], partly)


def test_a_model_without_tasks_or_text_has_no_such_tokens() -> None:
    assert random_model().prompt_encoder.text_tokens(jnp.array([0]), None) == (None, None)


def test_text_tokens_are_adapted_features() -> None:
    """Sec. 3.2.1: linear, nonlinearity, linear, LayerNorm, written out in NumPy."""
    encoder = random_model(text_width=20).prompt_encoder
    draw = np.random.default_rng(0)
    features = draw.standard_normal((5, 3, 20)).astype(np.float32)
    there = np.arange(3) < np.array([1, 3, 2, 3, 1])[:, None]
    tokens, valid = encoder.text_tokens(
        jnp.array([4, 1]), TextTable(jnp.asarray(features), jnp.asarray(there))
    )
    a = encoder.text_adapter
    x = (features[[4, 1]] - a.centre[...]) @ a.whitening[...]
    x = x @ a.lin1.kernel[...] + a.lin1.bias[...]
    x = 0.5 * x * (1 + special.erf(x / np.sqrt(2)))
    x = np.asarray(x @ a.lin2.kernel[...] + a.lin2.bias[...]).reshape(2, 12, 48)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(tokens, x * a.norm.scale[...] + a.norm.bias[...], atol=2e-5)
    np.testing.assert_array_equal(valid, np.repeat(there[[4, 1]], 4, axis=1))
    with pytest.raises(ValueError, match="table"):
        encoder.text_tokens(jnp.array([0]), None)


def test_positions_stay_float32_in_bfloat16() -> None:
    """At 128 voxels a bfloat16 coordinate is off by half a voxel."""
    model = random_model(compute_dtype="bfloat16")
    graph, state = nnx.split(model.prompt_encoder)
    dtypes = input_dtypes(
        lambda s, p, b: nnx.merge(graph, s)(Prompts(p, LABELS, box=b), 2).tokens,
        state,
        POINTS,
        BOX,
    )
    for primitive in ("sin", "cos", "dot_general"):
        assert dtypes[primitive] == {"float32"}, primitive
