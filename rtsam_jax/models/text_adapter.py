"""From frozen text features to prompt tokens: the adaptation layer (Sec. 3.2.1)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from rtsam_jax.models.layers import Array, Buffer, Precision, gelu


class TextTable(NamedTuple):
    """Features of every distinct text of a run; batches carry row numbers.

    Attributes:
        features: `[n, L, C]` float32, of a frozen language model; L is 1 where they are pooled.
        valid: `[n, L]` bool; False where a text is shorter than the longest.
    """

    features: Array
    valid: Array


class TextAdapter(nnx.Module):
    """Linear, GELU, linear, LayerNorm: each feature `[C]` becomes `tokens` prompt tokens.

    The features of one language model resemble each other far more than they differ (those of two
    records of one task have a cosine above 0.9), so the mean feature of the training texts is taken
    off first and the rest brought to unit scale. Both are constants that travel with the weights.

    Args:
        fan_in: channels of a feature.
        hidden: width between the linear layers.
        tokens: prompt tokens per feature.
        width: of a prompt token.
    """

    def __init__(
        self,
        fan_in: int,
        hidden: int,
        tokens: int,
        width: int,
        *,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        self.centre = Buffer(jnp.zeros((fan_in,)))
        self.spread = Buffer(jnp.zeros(()))  # root mean square of what is left
        self.lin1 = precision.linear(fan_in, hidden, rngs=rngs)
        self.lin2 = precision.linear(hidden, tokens * width, rngs=rngs)
        self.norm = precision.norm(width, 1e-6, rngs=rngs)
        self.tokens, self.width = tokens, width

    def __call__(self, features: Array) -> Array:
        """`[B, L, C]` -> `[B, L * tokens, width]`."""
        b, length, _ = features.shape
        x = (features - self.centre[...]) / self.spread[...]
        x = self.lin2(gelu(self.lin1(x)))
        return self.norm(x.reshape(b, length * self.tokens, self.width))
