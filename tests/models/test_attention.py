"""Attention without the padding against the plain padded form: equal, values and gradients."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtsam_jax.models import attention
from rtsam_jax.models.attention import QKV, Tables, windowed_attention
from rtsam_jax.models.layers import Precision
from tests.oracles.padded_attention import padded_attention


def draw(grid: tuple[int, int, int], window: int, heads: int, width: int, dtype: str):
    """Random inputs whose attention is far from uniform and from one-hot."""
    rng = np.random.default_rng(7)

    def array(*shape: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(scale * rng.standard_normal(shape), dtype)

    tokens = QKV(*(array(1, *grid, heads, width) for _ in range(3)))
    bias = QKV(*(array(heads, width) for _ in range(3)))
    tables = Tables(*(array(2 * window - 1, width, scale=0.3) for _ in range(3)))
    return tokens, bias, tables


def relative(a: jax.Array, b: jax.Array) -> float:
    return float(jnp.linalg.norm(jnp.ravel(a - b)) / jnp.linalg.norm(jnp.ravel(b)))


@partial(jax.jit, static_argnums=(1, 2))
def ours(inputs, window: int, dtype: str) -> jax.Array:
    return windowed_attention(*inputs, window, Precision.named(dtype))


@partial(jax.jit, static_argnums=1, static_argnames="mixed_axes")
def oracle(inputs, window: int, *, mixed_axes: bool = True) -> jax.Array:
    return padded_attention(*inputs, window, mixed_axes=mixed_axes)


def both(inputs, window: int, dtype: str):
    """Values and gradients of a random linear functional, for ours and the oracle."""
    shape = inputs[0].v.shape
    probe = jnp.asarray(np.random.default_rng(1).standard_normal(shape), dtype)
    results = []
    for attend in (lambda i: ours(i, window, dtype), lambda i: oracle(i, window)):
        out, back = jax.vjp(attend, inputs)
        results.append((out, back(probe)[0]))
    return results


# Side of the grid and of the window. 8 and 10 fit into one padded window (ViT-B, and a larger
# crop); 16 makes eight windows, of which one is full (ViT-L/H); 8 in 6 fills windows by 6 and 2;
# 8 in 4 and 5 in 5 have no padding at all.
@pytest.mark.parametrize(
    ("side", "window"), [(8, 14), (10, 14), (16, 14), (8, 6), (8, 4), (5, 5), (1, 3)]
)
def test_equals_the_padded_form_in_float64(side: int, window: int) -> None:
    with jax.enable_x64(True):
        heads = 1 if side == 16 else 2
        inputs = draw((side,) * 3, window, heads, 4, "float64")
        (out, gradient), (wanted, wanted_gradient) = both(inputs, window, "float64")
        assert out.dtype == jnp.float64
        assert relative(out, wanted) < 1e-12
        for part, wanted_part in zip(
            jax.tree.leaves(gradient), jax.tree.leaves(wanted_gradient), strict=True
        ):
            if side % window == 0 and not np.any(wanted_part):
                assert not np.any(part)  # no padding, so the biases matter to neither
            else:
                assert relative(part, wanted_part) < 1e-11


def test_equals_the_padded_form_in_float32() -> None:
    inputs = draw((8, 8, 8), 14, 2, 8, "float32")
    (out, gradient), (wanted, wanted_gradient) = both(inputs, 14, "float32")
    assert relative(out, wanted) < 1e-5
    for part, wanted_part in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(wanted_gradient), strict=True
    ):
        assert relative(part, wanted_part) < 1e-4


@pytest.mark.parametrize("fill", [(3, 4, 2), (4, 4, 1), (4, 1, 4), (1, 4, 4), (4, 2, 2), (2, 2, 4)])
def test_any_filling_of_a_window(fill: tuple[int, int, int]) -> None:
    """The windows at a grid's edges are filled differently along each axis."""
    with jax.enable_x64(True):
        inputs = draw(fill, 4, 2, 4, "float64")
        out = ours(inputs, 4, "float64")
        assert relative(out, oracle(inputs, 4)) < 1e-12


@pytest.mark.parametrize("slabs", [2, 4])
@pytest.mark.parametrize("window", [4, 6])
def test_slab_by_slab_equals_the_padded_form(
    monkeypatch: pytest.MonkeyPatch, window: int, slabs: int
) -> None:
    """What a CPU does with many logits, without and with padding."""
    logits_bytes = 4 * 2 * 4**6  # float32, two heads, 4^3 queries and keys
    monkeypatch.setattr(attention, "_WHOLE_ON_CPU", logits_bytes // slabs)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    with jax.enable_x64(True):
        inputs = draw((4, 4, 4), window, 2, 4, "float64")
        in_slabs = partial(ours.__wrapped__, window=window, dtype="float64")
        assert "scan" in str(jax.make_jaxpr(in_slabs)(inputs))
        out, back = jax.vjp(jax.jit(in_slabs), inputs)
        wanted, wanted_back = jax.vjp(lambda i: oracle(i, window), inputs)
        assert relative(out, wanted) < 1e-12
        probe = jnp.cos(wanted)
        for part, wanted_part in zip(
            jax.tree.leaves(back(probe)), jax.tree.leaves(wanted_back(probe)), strict=True
        ):
            assert np.linalg.norm(part - wanted_part) < 1e-11 * np.linalg.norm(probe)


def test_extreme_logits_stay_finite() -> None:
    """A position term of hundreds overflows a naive sum of exponentials."""
    tokens, bias, tables = draw((3, 3, 3), 5, 2, 8, "float32")
    tables = Tables(*(200 * table for table in tables))
    (out, gradient), (wanted, _) = both((tokens, bias, tables), 5, "float32")
    assert relative(out, wanted) < 1e-4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_masking_the_padding_is_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 2 undone, and trap 1 undone: the comparisons above would notice."""
    inputs = draw((4, 4, 4), 7, 2, 8, "float32")
    wanted = oracle(inputs, 7)
    assert relative(ours(inputs, 7, "float32"), wanted) < 1e-5
    assert relative(oracle(inputs, 7, mixed_axes=False), wanted) > 1e-2
    monkeypatch.setattr(attention, "_padding_logit", lambda a, *_: jnp.full(a.shape[:-1], -jnp.inf))
    assert relative(ours.__wrapped__(inputs, 7, "float32"), wanted) > 1e-2


def test_batch_entries_do_not_mix() -> None:
    tokens, bias, tables = draw((5, 4, 4), 4, 2, 4, "float32")
    other = jax.tree.map(lambda t: t[:, ::-1], tokens)
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), tokens, other)
    out = ours((joined, bias, tables), 4, "float32")
    for i, alone in enumerate((tokens, other)):
        wanted = ours((alone, bias, tables), 4, "float32")
        np.testing.assert_allclose(out[i : i + 1], wanted, rtol=1e-4, atol=1e-5)
