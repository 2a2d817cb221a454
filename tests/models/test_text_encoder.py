"""Laws of the text encoder; against `transformers` see tests/parity/test_text_parity.py."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rtsam_jax.errors import CheckpointError, ConfigError
from rtsam_jax.models.text_encoder import TextEncoder, TextSpec, pool
from rtsam_jax.weights import load_into, model_variables
from tests.models.jaxpr_dtypes import input_dtypes

SPEC = TextSpec(vocab_size=50, width=24, depth=2, heads=3, hidden=40, max_positions=12)
_rng = np.random.default_rng(0)
IDS = _rng.integers(0, 50, (3, 8)).astype(np.int32)
VALID = np.arange(8) < np.array([[8], [5], [1]])


def random_encoder(compute_dtype: str = "float32", **sizes: Any) -> TextEncoder:
    spec = dataclasses.replace(SPEC, **sizes)
    model = nnx.eval_shape(lambda: TextEncoder(spec, compute_dtype=compute_dtype, rngs=nnx.Rngs(0)))
    draw = np.random.default_rng(1)
    shapes = {name: v.shape for name, v in sorted(model_variables(model).items())}
    load_into(model, {n: 0.3 * draw.standard_normal(s, np.float32) for n, s in shapes.items()})
    return model


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return random_encoder()


@pytest.fixture(scope="module")
def encode(encoder: TextEncoder) -> Callable[..., np.ndarray]:
    graph, state = nnx.split(encoder)
    run = jax.jit(lambda *inputs: nnx.merge(graph, state)(*inputs))
    return lambda *inputs: np.asarray(run(*inputs))


def test_one_float32_vector_per_token(encode) -> None:
    out = encode(IDS, VALID)
    assert out.shape == (3, 8, 24) and out.dtype == np.float32
    assert np.isfinite(out).all() and out.std() > 0.1


def test_a_fresh_encoder_is_built_of_zeros() -> None:
    model = TextEncoder(SPEC, rngs=nnx.Rngs(0))
    for name, variable in model_variables(model).items():
        assert (variable[...] == name.endswith("scale")).all(), name  # norms begin at one


def test_padding_changes_nothing(encode) -> None:
    """Neither what it holds nor how much there is of it."""
    out = encode(IDS, VALID)
    other = np.where(VALID, IDS, (IDS + 7) % 50)
    np.testing.assert_allclose(encode(other, VALID)[VALID], out[VALID], atol=1e-6)
    short = encode(IDS[1:2, :5], VALID[1:2, :5])
    np.testing.assert_allclose(short[0], out[1, :5], atol=1e-5)
    # A mask that is ignored would show.
    assert abs(encode(IDS, np.ones_like(VALID))[1, :5] - out[1, :5]).max() > 1e-2


def test_padding_on_the_left_is_masked_as_well(encode) -> None:
    valid = VALID[:, ::-1]
    other = np.where(valid, IDS, 0)
    np.testing.assert_allclose(encode(other, valid)[valid], encode(IDS, valid)[valid], atol=1e-6)


def test_a_text_without_tokens_stays_finite(encode) -> None:
    valid = VALID.copy()
    valid[2] = False
    out = encode(IDS, valid)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out[:2][valid[:2]], encode(IDS, VALID)[:2][valid[:2]], atol=1e-6)
    assert (pool(jnp.asarray(out), jnp.asarray(valid), "mean")[2] == 0).all()


def test_every_token_sees_every_other_and_its_place(encode) -> None:
    out = encode(IDS, VALID)
    last = IDS.copy()
    last[0, 7] = (last[0, 7] + 1) % 50
    assert abs(encode(last, VALID)[0] - out[0]).max(-1).min() > 1e-4
    same = np.full((1, 4), 9, np.int32)
    assert len(np.unique(encode(same, np.ones_like(same, bool))[0, :, 0])) == 4


def test_token_types_are_zero_unless_given(encode) -> None:
    out, types = encode(IDS, VALID), np.zeros_like(IDS)
    np.testing.assert_array_equal(encode(IDS, VALID, types), out)
    types[:, 3:] = 1
    assert abs(encode(IDS, VALID, types) - out).max() > 1e-2


def test_more_tokens_than_positions(encoder: TextEncoder) -> None:
    ids = np.zeros((1, 13), np.int32)
    with pytest.raises(ConfigError, match="13 tokens.* 12 positions"):
        encoder(ids, np.ones_like(ids, bool))


def test_ids_beyond_the_vocabulary_count_as_the_last(encode) -> None:
    ids = IDS.copy()
    ids[0, 0] = 49
    expected = encode(ids, VALID)
    ids[0, 0] = 50
    np.testing.assert_array_equal(encode(ids, VALID), expected)


def test_bfloat16_multiplies_in_bfloat16_and_normalises_in_float32(encode) -> None:
    graph, state = nnx.split(random_encoder("bfloat16"))

    def rough(state: nnx.State) -> jax.Array:
        return nnx.merge(graph, state)(jnp.asarray(IDS), jnp.asarray(VALID))

    dtypes = input_dtypes(rough, state)
    assert dtypes["dot_general"] == {"bfloat16"}
    for primitive in ("exp", "rsqrt", "reduce_max", "erf"):
        assert dtypes[primitive] == {"float32"}, primitive
    out, exact = np.asarray(rough(state)), encode(IDS, VALID)
    assert out.dtype == np.float32
    error = np.linalg.norm((out - exact)[VALID]) / np.linalg.norm(exact[VALID])
    assert 1e-4 < error < 3e-2


def test_pooling() -> None:
    tokens = jnp.asarray(_rng.standard_normal((3, 8, 5)), jnp.float32)
    valid = jnp.asarray(VALID)
    np.testing.assert_array_equal(pool(tokens, valid, "cls"), tokens[:, :1])
    assert pool(tokens, valid, "tokens") is tokens
    mean = pool(tokens, valid, "mean")
    assert mean.shape == (3, 1, 5)
    for row, n in enumerate((8, 5, 1)):
        np.testing.assert_allclose(mean[row, 0], tokens[row, :n].mean(0), atol=1e-6)
    with pytest.raises(ConfigError, match="'max'.*cls, mean, tokens"):
        pool(tokens, valid, "max")


def test_a_spec_survives_json() -> None:
    assert TextSpec.from_dict(json.loads(json.dumps(dataclasses.asdict(SPEC)))) == SPEC


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (None, CheckpointError, "None, not an object"),
        ({"vocab_size": 5}, CheckpointError, "lacks depth, heads, hidden, max_positions, width"),
        (dataclasses.asdict(SPEC) | {"layers": 2}, CheckpointError, "unknown field layers"),
        (dataclasses.asdict(SPEC) | {"depth": "2"}, ConfigError, "depth .* '2'; give a number"),
        (dataclasses.asdict(SPEC) | {"depth": 2.0}, ConfigError, "depth .* 2.0; give a number"),
        (dataclasses.asdict(SPEC) | {"depth": True}, ConfigError, "depth .* True; give"),
        (dataclasses.asdict(SPEC) | {"width": 0}, ConfigError, "width .* 0, which must be > 0"),
        (dataclasses.asdict(SPEC) | {"epsilon": float("nan")}, ConfigError, "epsilon"),
        (dataclasses.asdict(SPEC) | {"heads": 5}, ConfigError, "width 24 .* its 5 heads"),
    ],
)
def test_nonsense_for_a_spec(values: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TextSpec.from_dict(values)
