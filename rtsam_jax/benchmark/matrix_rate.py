"""What the machine can do: the rate of one plain matrix product, which bounds the encoder's."""

from __future__ import annotations

import statistics
import time

import jax
import jax.numpy as jnp

from rtsam_jax.models.layers import Precision
from rtsam_jax.models.presets import ModelSpec


def matrix_rate(
    spec: ModelSpec, *, dtype: str = "float32", batch: int = 1, rounds: int = 20
) -> float:
    """FLOP/s (two per multiply-add) of a product of the size of the encoder's MLP.

    Median over `rounds`, of the tokens of `batch` volumes with the MLP's first weights.

    Args:
        dtype: of the model's products, "float32" or "bfloat16".
    """
    precision = Precision.named(dtype)
    rows, inner, columns = batch * spec.grid**3, spec.width, spec.mlp_ratio * spec.width
    a, b = (
        jax.random.normal(key, shape, precision.compute)
        for key, shape in zip(
            jax.random.split(jax.random.key(0)), ((rows, inner), (inner, columns)), strict=True
        )
    )
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision.matmul))
    product(a, b).block_until_ready()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        product(a, b).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2.0 * rows * inner * columns / statistics.median(seconds)
