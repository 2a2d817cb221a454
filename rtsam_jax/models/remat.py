"""Blocks whose activations a backward pass computes again instead of keeping them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from rtsam_jax.models.layers import Array

Block = Callable[[Array], Array]  # a module


def rematerialised(blocks: Sequence[Block], x: Array) -> Array:
    """`x` through all blocks; of a forward pass, only what each was given is kept.

    What repeats is scanned (of ViT-H, four times: seven windowed blocks, themselves scanned, and a
    global one). So XLA compiles every kind once. Nor can it take the second computation for the
    first and keep everything after all, which it does on a CPU where both are in one program. The
    price is a stacked copy of the weights.
    """
    if len(blocks) == 1:
        return jax.checkpoint(lambda x: blocks[0](x).astype(x.dtype))(x)
    kinds = [nnx.graphdef(block) for block in blocks]
    repeats = (n for n in range(1, len(blocks)) if len(blocks) % n == 0)
    period = next((n for n in repeats if kinds == kinds[:n] * (len(kinds) // n)), None)
    if period is None:
        for _, run in itertools.groupby(zip(kinds, blocks, strict=True), lambda pair: pair[0]):
            x = rematerialised([block for _, block in run], x)
        return x
    groups = [blocks[i : i + period] for i in range(0, len(blocks), period)]
    states = [[nnx.state(block) for block in group] for group in groups]

    def turn(x: Array, group: list[nnx.State]) -> tuple[Array, None]:
        merged = [nnx.merge(*pair) for pair in zip(kinds[:period], group, strict=True)]
        return rematerialised(merged, x), None

    return jax.lax.scan(turn, x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))[0]
