"""The two-way mask decoder of SAM-Med3D.

Prompt tokens and image tokens attend to each other; upscaled image features are then multiplied
with coefficients that small networks make of the mask tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rtsam_jax.models.layers import (
    MLP,
    Array,
    MLPBlock,
    PatchConvTranspose,
    Precision,
    gelu,
    place_blocks,
)
from rtsam_jax.models.presets import ModelSpec

NORM_EPSILON = 1e-5  # nn.LayerNorm's default; LayerNorm3d keeps 1e-6 (reference trap 7)


class Masks(NamedTuple):
    """Low-resolution logits `[B, m, m, m, M]` float32 and predicted IoUs `[B, M]`."""

    low_res_logits: Array
    iou: Array


class DownscaleAttention(nnx.Module):
    """Cross-attention whose inner width is `1 / downsample` of the outer."""

    def __init__(
        self, width: int, heads: int, downsample: int, *, precision: Precision, rngs: nnx.Rngs
    ):
        inner = width // downsample
        self.q_proj = precision.linear(width, inner, rngs=rngs)
        self.k_proj = precision.linear(width, inner, rngs=rngs)
        self.v_proj = precision.linear(width, inner, rngs=rngs)
        self.out_proj = precision.linear(inner, width, rngs=rngs)
        self.heads, self.precision = heads, precision

    def __call__(self, q: Array, k: Array, v: Array, key_valid: Array | None = None) -> Array:
        """`q [B, N, C]`, `k, v [B, T, C]`, `key_valid [B, T]` bool -> `[B, N, C]`."""

        def split(x: Array) -> Array:
            return x.reshape(*x.shape[:2], self.heads, -1)

        q, k, v = split(self.q_proj(q)), split(self.k_proj(k)), split(self.v_proj(v))
        logits = jnp.einsum(
            "bnxk,btxk->bxnt",
            q,
            k,
            precision=self.precision.matmul,
            preferred_element_type=jnp.float32,
        )
        logits = logits * q.shape[-1] ** -0.5
        if key_valid is not None:
            logits = jnp.where(key_valid[:, None, None], logits, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        out = jnp.einsum("bxnt,btxk->bnxk", weights, v, precision=self.precision.matmul)
        return self.out_proj(out.reshape(*out.shape[:2], -1))


class TwoWayBlock(nnx.Module):
    """Self-attention on the tokens, tokens to image, MLP, image to tokens (Sec. 3.1)."""

    def __init__(self, spec: ModelSpec, *, first: bool, precision: Precision, rngs: nnx.Rngs):
        width, heads = spec.prompt_width, spec.decoder_heads

        def attention(downsample: int) -> DownscaleAttention:
            return DownscaleAttention(width, heads, downsample, precision=precision, rngs=rngs)

        def norm() -> nnx.LayerNorm:
            return precision.norm(width, NORM_EPSILON, rngs=rngs)

        self.self_attn, self.norm1 = attention(1), norm()
        self.token_to_image, self.norm2 = attention(2), norm()
        self.mlp = MLPBlock(
            width, spec.decoder_mlp, activation="relu", precision=precision, rngs=rngs
        )
        self.norm3, self.norm4 = norm(), norm()
        self.image_to_token = attention(2)
        self.first = first

    def __call__(
        self, queries: Array, keys: Array, query_position: Array, key_position: Array, valid: Array
    ) -> tuple[Array, Array]:
        if self.first:
            # Trap 7: the first block replaces the queries, without position and residual.
            queries = self.self_attn(queries, queries, queries, valid)
        else:
            q = queries + query_position
            queries = queries + self.self_attn(q, q, queries, valid)
        queries = self.norm1(queries)
        q, k = queries + query_position, keys + key_position
        queries = self.norm2(queries + self.token_to_image(q, k, keys))
        queries = self.norm3(queries + self.mlp(queries))
        q = queries + query_position
        keys = self.norm4(keys + self.image_to_token(k, q, queries, valid))
        return queries, keys


class TwoWayTransformer(nnx.Module):
    """Stacked two-way blocks and a last look of the tokens at the image."""

    def __init__(self, spec: ModelSpec, *, precision: Precision, rngs: nnx.Rngs):
        self.layers = nnx.List(
            TwoWayBlock(spec, first=i == 0, precision=precision, rngs=rngs)
            for i in range(spec.decoder_depth)
        )
        self.final_attn = DownscaleAttention(
            spec.prompt_width, spec.decoder_heads, 2, precision=precision, rngs=rngs
        )
        self.norm_final = precision.norm(spec.prompt_width, NORM_EPSILON, rngs=rngs)

    def __call__(
        self, image: Array, position: Array, tokens: Array, valid: Array
    ) -> tuple[Array, Array]:
        """`image, position [B, N, C]`, `tokens [B, T, C]`, `valid [B, T]` -> tokens, image."""
        queries, keys = tokens, image
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, position, valid)
        attended = self.final_attn(queries + tokens, keys + position, keys)
        return self.norm_final(queries + attended), keys


class Upscaling(nnx.Module):
    """`[B, g, g, g, C] -> [B, g, g, g, 8, 8, C / 8]`, the blocks that `place_blocks` takes."""

    def __init__(self, width: int, *, precision: Precision, rngs: nnx.Rngs):
        self.conv1 = PatchConvTranspose(width, width // 4, precision=precision)
        self.norm = precision.norm(width // 4, 1e-6, rngs=rngs)
        self.conv2 = PatchConvTranspose(width // 4, width // 8, precision=precision)

    def __call__(self, x: Array) -> Array:
        return gelu(self.conv2(gelu(self.norm(self.conv1(x)))))


class MaskDecoder3D(nnx.Module):
    """Image embedding and prompt tokens to mask logits."""

    def __init__(self, spec: ModelSpec, *, precision: Precision, rngs: nnx.Rngs):
        width, masks = spec.prompt_width, spec.mask_tokens
        self.iou_token = nnx.Param(jnp.zeros((1, width)))
        self.mask_tokens = nnx.Param(jnp.zeros((masks, width)))
        self.transformer = TwoWayTransformer(spec, precision=precision, rngs=rngs)
        self.upscaling = Upscaling(width, precision=precision, rngs=rngs)
        self.hypernetworks = nnx.List(
            MLP(width, width, width // 8, 3, precision=precision, rngs=rngs) for _ in range(masks)
        )
        self.iou_head = MLP(width, spec.iou_hidden, masks, 3, precision=precision, rngs=rngs)
        self.precision = precision

    def __call__(
        self,
        embedding: Array,
        position: Array,
        tokens: Array,
        valid: Array,
        dense: Array,
        *,
        multimask: bool = False,
    ) -> Masks:
        """Predicts one mask (token 0), or with `multimask` the other three.

        Args:
            embedding: `[B, g, g, g, C]` of the image encoder.
            position: `[g, g, g, C]` of `PromptEncoder3D.dense_position`.
            tokens: `[B, T, C]` sparse prompts.
            valid: `[B, T]` bool; False is masked as a key everywhere.
            dense: `[B, g, g, g, C]` mask prompt.
        """
        b, g, _, _, c = embedding.shape
        own = jnp.concatenate([self.iou_token[...], self.mask_tokens[...]])  # [1 + M, C]
        n_own = own.shape[0]
        all_tokens = jnp.concatenate([jnp.broadcast_to(own, (b, n_own, c)), tokens], axis=1)
        all_valid = jnp.concatenate([jnp.ones((b, n_own), bool), valid], axis=1)
        image = (embedding + dense).reshape(b, -1, c)
        out, image = self.transformer(image, position.reshape(1, -1, c), all_tokens, all_valid)

        wanted = range(1, self.mask_tokens.shape[0]) if multimask else range(1)
        upscaled = self.upscaling(image.reshape(b, g, g, g, c))
        coefficients = jnp.stack([self.hypernetworks[i](out[:, 1 + i]) for i in wanted], axis=1)
        logits = jnp.einsum(
            "bxyzpqc,bmc->bxyzpqm",
            upscaled,
            coefficients,
            precision=self.precision.matmul,
            preferred_element_type=jnp.float32,
        )
        iou = self.iou_head(out[:, 0]).astype(jnp.float32)
        return Masks(place_blocks(logits), iou[:, jnp.array(list(wanted))])
