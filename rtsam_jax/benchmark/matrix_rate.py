"""What the machine can do: the rate of one plain matrix product, which bounds the encoder's."""

from __future__ import annotations

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from rtsam_jax.models.presets import ModelSpec


def matrix_rate(spec: ModelSpec, rounds: int = 20) -> float:
    """FLOP/s (two per multiply-add) of a float32 product of the size of the encoder's MLP.

    Median over `rounds`, of one volume's tokens with the MLP's first weights.
    """
    rng = np.random.default_rng(0)
    rows, inner, columns = spec.grid**3, spec.width, spec.mlp_ratio * spec.width
    a = jnp.asarray(rng.standard_normal((rows, inner), dtype=np.float32))
    b = jnp.asarray(rng.standard_normal((inner, columns), dtype=np.float32))
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST))
    product(a, b).block_until_ready()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        product(a, b).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2.0 * rows * inner * columns / statistics.median(seconds)
