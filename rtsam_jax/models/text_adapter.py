"""From frozen text features to prompt tokens: the adaptation layer (Sec. 3.2.1)."""

from __future__ import annotations

from typing import NamedTuple

import jax
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

    What decides is often one word, and features hardly tell it: those of "Segment the right parotid
    gland" and of "the left" have a cosine of 0.99 (MiniLM), and a model trained on them as they are
    took both for one. So the features are first centred and whitened, by constants of the training
    texts that travel with the weights (`rtsam_jax.text.prompt_set`): a start for the first linear
    layer from which every difference between texts counts.

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
        self.whitening = Buffer(jnp.zeros((fan_in, fan_in)))
        self.lin1 = precision.linear(fan_in, hidden, rngs=rngs)
        self.lin2 = precision.linear(hidden, tokens * width, rngs=rngs)
        self.norm = precision.norm(width, 1e-6, rngs=rngs)
        self.tokens, self.width = tokens, width

    def __call__(self, features: Array) -> Array:
        """`[B, L, C]` -> `[B, L * tokens, width]`."""
        b, length, _ = features.shape
        x = jnp.matmul(
            features - self.centre[...], self.whitening[...], precision=jax.lax.Precision.HIGHEST
        )
        x = self.lin2(gelu(self.lin1(x)))
        return self.norm(x.reshape(b, length * self.tokens, self.width))
