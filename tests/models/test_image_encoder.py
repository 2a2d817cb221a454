from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rtsam_jax.models.presets import PRESETS, get_spec
from rtsam_jax.models.sam3d import SAM3D
from tests.models.jaxpr_dtypes import input_dtypes
from tests.models.random_model import random_model

IMAGE = np.random.default_rng(0).standard_normal((2, 32, 32, 32, 1), dtype=np.float32)


@pytest.fixture(scope="module")
def model() -> SAM3D:
    return random_model()


def jitted(model: SAM3D):
    graph, state = nnx.split(model)
    return jax.jit(lambda image: nnx.merge(graph, state).encode(image))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_shapes_of_every_preset(preset: str) -> None:
    spec = dataclasses.replace(get_spec(preset), depth=2, global_blocks=(1,))
    side = spec.image_size
    model = nnx.eval_shape(lambda: SAM3D(spec, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    embedding = jax.eval_shape(
        lambda s, x: nnx.merge(graph, s).encode(x),
        state,
        jax.ShapeDtypeStruct((1, side, side, side, 1), jnp.float32),
    )
    assert embedding.shape == (1, spec.grid, spec.grid, spec.grid, spec.prompt_width)
    assert embedding.dtype == jnp.float32


def test_batch_entries_do_not_mix(model: SAM3D) -> None:
    encode = jitted(model)
    together = encode(IMAGE)
    np.testing.assert_allclose(together[1:], encode(IMAGE[1:]), rtol=1e-4, atol=1e-4)
    assert not np.allclose(together[0], together[1])


def test_axes_are_not_interchangeable(model: SAM3D) -> None:
    encode = jitted(model)
    out = encode(IMAGE)
    for axes in ((0, 2, 1, 3, 4), (0, 1, 3, 2, 4), (0, 3, 2, 1, 4)):
        turned = encode(IMAGE.transpose(axes)).transpose(axes)
        assert np.linalg.norm(turned - out) > 1e-2 * np.linalg.norm(out)


def test_a_grid_that_is_no_cube_is_an_error(model: SAM3D) -> None:
    """Trap 1 adds terms along axes that have to be of equal length."""
    tokens = jnp.zeros((1, 4, 4, 3, 48))
    with pytest.raises(ValueError, match="cube.*4 x 4 x 3"):
        model.image_encoder.blocks[0].attn(tokens)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_precision_policy(compute: str) -> None:
    model = random_model(compute_dtype=compute)
    graph, state = nnx.split(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    dtypes = input_dtypes(lambda s, x: nnx.merge(graph, s).encode(x), state, IMAGE)
    for primitive in ("exp", "log", "rsqrt", "reduce_sum", "reduce_max"):  # softmax and norms
        assert dtypes[primitive] == {"float32"}, primitive
    assert dtypes["dot_general"] == {compute}


def test_bfloat16_is_near_float32(model: SAM3D) -> None:
    exact = jitted(model)(IMAGE)
    rough = jitted(random_model(compute_dtype="bfloat16"))(IMAGE)
    assert rough.dtype == jnp.float32
    error = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.1


@pytest.mark.parametrize(
    ("depth", "global_blocks", "loops"),
    [
        (6, (2, 5), 2),  # twice: two windowed, themselves scanned, and a global one
        (4, (2, 3), 2),  # two windowed, then two global ones
    ],
)
def test_remat_changes_neither_values_nor_gradients(
    depth: int, global_blocks: tuple[int, ...], loops: int
) -> None:
    def value_and_grad(remat: bool) -> tuple[jax.Array, nnx.State, str]:
        model = random_model(depth=depth, global_blocks=global_blocks)
        model.image_encoder.remat = remat
        graph, state = nnx.split(model.image_encoder)

        def loss(state: nnx.State) -> jax.Array:
            return jnp.sin(nnx.merge(graph, state)(IMAGE)).sum()

        forward = str(jax.make_jaxpr(loss)(state))
        return *jax.jit(jax.value_and_grad(loss))(state), forward

    (kept, kept_grad, plain), (again, again_grad, rematted) = map(value_and_grad, (False, True))
    assert "remat" in rematted and "remat" not in plain
    assert rematted.count("scan[") - plain.count("scan[") == loops
    np.testing.assert_allclose(again, kept, rtol=1e-4, atol=1e-3)
    for a, b in zip(jax.tree.leaves(again_grad), jax.tree.leaves(kept_grad), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())
    assert any(np.abs(x).max() > 0.1 for x in jax.tree.leaves(again_grad))
