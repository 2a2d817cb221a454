"""BERT, any size of the family: BERT-base (Bio_ClinicalBERT), MiniLM-L6 and what lies between.

Post-norm transformer encoder over WordPiece tokens (Devlin et al. 2019), in inference form:
without dropout and without the pooler head, which was trained for next-sentence prediction.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx

from rtsam_jax.errors import CheckpointError, ConfigError
from rtsam_jax.models.layers import Array, MLPBlock, Precision
from rtsam_jax.models.mask_decoder import DownscaleAttention

POOLINGS = ("cls", "mean", "tokens")


@dataclass(frozen=True)
class TextSpec:
    """Everything that fixes the parameters' shapes, and the norms' epsilon."""

    vocab_size: int
    width: int
    depth: int
    heads: int
    hidden: int  # of the MLP
    max_positions: int  # tokens
    type_vocab: int = 2  # token types, "segments"
    epsilon: float = 1e-12

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kinds = (int, float) if field.name == "epsilon" else (int,)
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise ConfigError(f"{field.name} of a text encoder is {value!r}; give a number.")
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{field.name} of a text encoder is {value}, which must be > 0.")
        if self.width % self.heads:
            raise ConfigError(
                f"A text encoder's width {self.width} is not a multiple of its {self.heads} heads."
            )

    @classmethod
    def from_dict(cls, values: Any) -> TextSpec:
        """The spec that `model.json` holds under `spec`.

        Raises:
            CheckpointError: `values` is no object, or a field is missing or unknown.
            ConfigError: a value makes no sense.
        """
        if not isinstance(values, Mapping):
            raise CheckpointError(
                f"A text encoder's spec is {values!r}, not an object; convert the model again."
            )
        fields = dataclasses.fields(cls)
        needed = {field.name for field in fields if field.default is dataclasses.MISSING}
        for problem, names in (
            ("lacks", needed - set(values)),
            ("has the unknown field", set(values) - {field.name for field in fields}),
        ):
            if names:
                raise CheckpointError(
                    f"A text encoder's spec {problem} {', '.join(sorted(map(str, names)))}; "
                    "convert the model again with this version."
                )
        return cls(**values)


class TextEmbeddings(nnx.Module):
    """Word, learned absolute position and token type, added and normalised."""

    def __init__(self, spec: TextSpec, *, precision: Precision, rngs: nnx.Rngs):
        self.word_embed = nnx.Param(jnp.zeros((spec.vocab_size, spec.width)))
        self.position_embed = nnx.Param(jnp.zeros((spec.max_positions, spec.width)))
        self.type_embed = nnx.Param(jnp.zeros((spec.type_vocab, spec.width)))
        self.norm = precision.norm(spec.width, spec.epsilon, rngs=rngs)

    def __call__(self, ids: Array, type_ids: Array) -> Array:
        """`ids, type_ids [B, T]` -> `[B, T, C]` float32."""
        x = self.word_embed[...][ids] + self.type_embed[...][type_ids]
        return self.norm(x + self.position_embed[...][: ids.shape[1]])


class TextBlock(nnx.Module):
    """Self-attention and MLP, each with its norm after the residual."""

    def __init__(self, spec: TextSpec, *, precision: Precision, rngs: nnx.Rngs):
        self.attn = DownscaleAttention(spec.width, spec.heads, 1, precision=precision, rngs=rngs)
        self.norm1 = precision.norm(spec.width, spec.epsilon, rngs=rngs)
        self.mlp = MLPBlock(
            spec.width, spec.hidden, activation="gelu", precision=precision, rngs=rngs
        )
        self.norm2 = precision.norm(spec.width, spec.epsilon, rngs=rngs)

    def __call__(self, x: Array, valid: Array) -> Array:
        """`x [B, T, C]` float32, `valid [B, T]` bool (as keys) -> `[B, T, C]` float32."""
        x = self.norm1(x + self.attn(x, x, x, valid))
        return self.norm2(x + self.mlp(x))


class TextEncoder(nnx.Module):
    """Token ids to one vector per token."""

    def __init__(self, spec: TextSpec, *, compute_dtype: str = "float32", rngs: nnx.Rngs):
        precision = Precision.named(compute_dtype)
        self.embeddings = TextEmbeddings(spec, precision=precision, rngs=rngs)
        self.layers = nnx.List(
            TextBlock(spec, precision=precision, rngs=rngs) for _ in range(spec.depth)
        )
        self.spec = spec

    def __call__(self, ids: Array, valid: Array, type_ids: Array | None = None) -> Array:
        """The last hidden state.

        Args:
            ids: `[B, T]` integers below `vocab_size`; nothing can check that under jit, where
                larger ones count as the last.
            valid: `[B, T]` bool; False is padding, which no token attends to.
            type_ids: `[B, T]` integers below `type_vocab`; None is 0 everywhere.

        Returns:
            `[B, T, C]` float32; at invalid positions finite, and else meaningless.

        Raises:
            ConfigError: more tokens than learned positions.
        """
        if ids.shape[1] > self.spec.max_positions:
            raise ConfigError(
                f"A text has {ids.shape[1]} tokens, but this encoder has learned "
                f"{self.spec.max_positions} positions; let the tokenizer truncate it."
            )
        x = self.embeddings(ids, jnp.zeros_like(ids) if type_ids is None else type_ids)
        # A softmax over no key at all would be NaN: a text without tokens attends to its padding.
        keys = valid | ~valid.any(axis=1, keepdims=True)
        for layer in self.layers:
            x = layer(x, keys)
        return x


def pool(tokens: Array, valid: Array, kind: str) -> Array:
    """Vectors of a text from those of its tokens.

    Args:
        tokens: `[B, T, C]` of `TextEncoder`.
        valid: `[B, T]` bool.
        kind: `cls`, the first token; `mean`, over the valid tokens (0 where there is none);
            `tokens`, all as they are.

    Returns:
        `[B, 1, C]`, or `[B, T, C]` for `tokens`.

    Raises:
        ConfigError: another kind.
    """
    if kind == "cls":
        return tokens[:, :1]
    if kind == "mean":
        total = jnp.where(valid[..., None], tokens, 0).sum(axis=1, keepdims=True)
        return total / jnp.maximum(valid.sum(axis=1), 1)[:, None, None]
    if kind == "tokens":
        return tokens
    raise ConfigError(f"The pooling {kind!r} does not exist; choose one of {', '.join(POOLINGS)}.")
