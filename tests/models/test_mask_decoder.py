from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rtsam_jax.models.layers import upsample
from rtsam_jax.models.mask_decoder import Masks
from rtsam_jax.models.prompt_encoder import NOT_A_POINT, UNUSED, Prompts
from rtsam_jax.models.sam3d import SAM3D
from tests.models.jaxpr_dtypes import input_dtypes
from tests.models.random_model import random_model

_rng = np.random.default_rng(4)
EMBEDDING = _rng.standard_normal((2, 4, 4, 4, 48), dtype=np.float32)
MASK = _rng.standard_normal((2, 16, 16, 16, 1), dtype=np.float32)
POINTS = _rng.uniform(0, 31, (2, 16, 3)).astype(np.float32)
BOX = np.array([[[2, 3, 4], [20, 25, 30]], [[0, 0, 0], [9, 8, 7]]], np.float32)


@pytest.fixture(scope="module")
def model() -> SAM3D:
    return random_model()


def jitted(model: SAM3D, *, multimask: bool = False):
    graph, state = nnx.split(model)

    @jax.jit
    def run(prompts: Prompts) -> Masks:
        return nnx.merge(graph, state).decode(EMBEDDING, prompts, multimask=multimask)

    return run


@pytest.fixture(scope="module")
def decode(model: SAM3D):
    return jitted(model)


def clicks(slots: int, used: int, filling: int) -> Prompts:
    labels = np.full((2, slots), filling, np.int32)
    labels[:, :used] = np.arange(used) % 2
    return Prompts(POINTS[:, :slots], labels, mask=MASK)


def difference(a: Masks, b: Masks) -> float:
    left, right = np.asarray(a.low_res_logits), np.asarray(b.low_res_logits)
    return float(np.linalg.norm(left - right) / np.linalg.norm(right))


def test_shapes(model: SAM3D, decode) -> None:
    one = decode(clicks(4, 4, UNUSED))
    assert one.low_res_logits.shape == (2, 16, 16, 16, 1) and one.iou.shape == (2, 1)
    three = jitted(model, multimask=True)(clicks(4, 4, UNUSED))
    assert three.low_res_logits.shape == (2, 16, 16, 16, 3) and three.iou.shape == (2, 3)


@pytest.mark.parametrize("slots", [8, 16])
def test_length_of_the_click_buffer_does_not_matter(decode, slots: int) -> None:
    assert difference(decode(clicks(slots, 4, UNUSED)), decode(clicks(4, 4, UNUSED))) < 1e-5


def test_filling_the_buffer_with_minus_one_does_matter(decode) -> None:
    """Trap 5: -1 is a real token of the reference, so it cannot mark an unused slot."""
    full = decode(clicks(4, 4, UNUSED))
    assert difference(decode(clicks(8, 4, NOT_A_POINT)), full) > 1e-3


def test_where_an_unused_slot_points_does_not_matter(decode) -> None:
    prompts = clicks(8, 4, UNUSED)
    moved = prompts._replace(points=np.where(np.arange(8)[:, None] < 4, prompts.points, 999.0))
    assert difference(decode(moved), decode(prompts)) < 1e-6


def test_unused_slots_get_no_gradient_but_used_ones_do(model: SAM3D) -> None:
    prompts = clicks(8, 4, UNUSED)

    @jax.jit
    @jax.grad
    def gradient(points: jax.Array) -> jax.Array:
        logits = model.decode(EMBEDDING, prompts._replace(points=points)).low_res_logits
        return (logits**2).sum()

    g = gradient(jnp.asarray(prompts.points))
    assert np.isfinite(g).all() and not g[:, 4:].any() and g[:, :4].any(-1).all()


def test_a_valid_box_is_as_if_there_were_no_flag(decode) -> None:
    prompts = clicks(4, 4, UNUSED)._replace(box=BOX)
    flagged = prompts._replace(box_valid=np.array([True, True]))
    assert difference(decode(flagged), decode(prompts)) < 1e-5


def test_an_invalid_box_is_as_if_there_were_none(decode) -> None:
    prompts = clicks(4, 4, UNUSED)
    flagged = prompts._replace(box=BOX, box_valid=np.array([False, False]))
    assert difference(decode(flagged), decode(prompts)) < 1e-5


def test_the_box_and_each_of_its_corners_matter(decode) -> None:
    """Trap 6."""
    prompts = clicks(4, 4, UNUSED)
    boxed = decode(prompts._replace(box=BOX))
    assert difference(boxed, decode(prompts)) > 1e-3
    for corner in (0, 1):
        moved = BOX.copy()
        moved[:, corner] += 1.0 - 2.0 * corner
        assert difference(decode(prompts._replace(box=moved)), boxed) > 1e-3
    assert difference(decode(prompts._replace(box=BOX[:, ::-1])), boxed) > 1e-3


def test_text_tokens_matter_only_where_valid(decode) -> None:
    prompts = clicks(4, 4, UNUSED)
    text = _rng.standard_normal((2, 3, 48), dtype=np.float32)
    none, every = np.zeros((2, 3), bool), np.ones((2, 3), bool)
    masked = decode(prompts._replace(text=text, text_valid=none))
    assert difference(masked, decode(prompts)) < 1e-5
    assert difference(decode(prompts._replace(text=text, text_valid=every)), masked) > 1e-3


def test_a_mask_of_zeros_is_not_no_mask(decode) -> None:
    """Trap 9: the published loop feeds zeros first and never trained the other embedding."""
    prompts = clicks(4, 4, UNUSED)
    zeros, nothing = prompts._replace(mask=np.zeros_like(MASK)), prompts._replace(mask=None)
    assert difference(decode(zeros), decode(nothing)) > 1e-3


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_precision_policy(compute: str) -> None:
    graph, state = nnx.split(random_model(compute_dtype=compute))
    dtypes = input_dtypes(
        lambda s, e: nnx.merge(graph, s).decode(e, clicks(4, 3, UNUSED)), state, EMBEDDING
    )
    for primitive in ("exp", "rsqrt", "reduce_sum", "reduce_max", "sin"):  # softmax and norms
        assert dtypes[primitive] == {"float32"}, primitive
    assert compute in dtypes["dot_general"]


def test_bfloat16_outputs_are_float32_and_near(decode) -> None:
    prompts = clicks(4, 4, UNUSED)
    rough = jitted(random_model(compute_dtype="bfloat16"))(prompts)
    assert rough.low_res_logits.dtype == rough.iou.dtype == jnp.float32
    assert 1e-4 < difference(rough, decode(prompts)) < 0.1


def test_upsampling_is_half_pixel_trilinear() -> None:
    line = np.array([0.0, 4.0], np.float32)
    cube = np.broadcast_to(line[None, :, None, None], (1, 2, 2, 2))
    out = upsample(jnp.asarray(cube), 8)
    expected = [0.0, 0.0, 0.5, 1.5, 2.5, 3.5, 4.0, 4.0]
    np.testing.assert_allclose(out[0, :, 3, 5], expected, atol=1e-6)
