"""The 3-D vision transformer of SAM-Med3D, frozen in adaptation (Sec. 3.1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from rtsam_jax.models.attention import QKV, Tables, windowed_attention
from rtsam_jax.models.layers import Array, MLPBlock, PatchConv, Precision, SameConv
from rtsam_jax.models.layout import BATCH, HEADS, placed
from rtsam_jax.models.presets import ModelSpec
from rtsam_jax.models.remat import rematerialised

NORM_EPSILON = 1e-6  # the encoder's norms; the decoder's are 1e-5 (reference trap 7)


class Attention(nnx.Module):
    """Multi-head self-attention in windows of `side`^3 tokens, relative position added."""

    def __init__(self, spec: ModelSpec, side: int, *, precision: Precision, rngs: nnx.Rngs):
        head = spec.width // spec.heads
        self.qkv = precision.linear(spec.width, 3 * spec.width, rngs=rngs)
        self.proj = precision.linear(spec.width, spec.width, rngs=rngs)
        self.rel_pos_d = nnx.Param(jnp.zeros((2 * side - 1, head)))
        self.rel_pos_h = nnx.Param(jnp.zeros((2 * side - 1, head)))
        self.rel_pos_w = nnx.Param(jnp.zeros((2 * side - 1, head)))
        self.heads, self.side, self.precision = spec.heads, side, precision

    def __call__(self, x: Array) -> Array:
        """`[B, D, H, W, C] -> [B, D, H, W, C]`."""
        b, d, h, w, c = x.shape
        if not d == h == w:
            # Trap 1 adds terms whose axes only match on a cube.
            raise ValueError(f"relative position needs a cube of tokens, not {d} x {h} x {w}")
        head = c // self.heads
        heads, dtype = (3, self.heads, head), self.precision.compute
        assert self.qkv.bias is not None
        bias = self.qkv.bias[...].astype(dtype).reshape(heads)
        # Heads are told apart before the product: its columns could not be divided into them.
        kernel = self.qkv.kernel[...].astype(dtype).reshape(c, *heads)
        kernel = placed(placed(kernel, HEADS, None, None, None), None, None, HEADS, None)
        x = x.astype(dtype)
        qkv = jnp.einsum("bdhwc,csxk->bdhwsxk", x, kernel, precision=self.precision.matmul) + bias
        qkv = placed(qkv, BATCH, None, None, None, None, HEADS, None)
        out = windowed_attention(
            QKV(qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]),
            QKV(bias[0], bias[1], bias[2]),
            Tables(self.rel_pos_d[...], self.rel_pos_h[...], self.rel_pos_w[...]),
            self.side,
            self.precision,
        )
        return self.proj(out.reshape(b, d, h, w, c))


@jax.custom_vjp
def summed_once(x: Array) -> Array:
    """`x`, whose gradient is a sum that is made here, once.

    Along the blocks gradients add up. XLA fuses such a chain of sums into each of its readers, and
    each then adds all of it again: on a CPU a tenth of an encoder's backward pass.
    """
    return x


summed_once.defvjp(lambda x: (x, None), lambda _, grad: (jax.lax.optimization_barrier(grad),))


class Block(nnx.Module):
    """Pre-norm transformer block; `side` is the window's, or the grid's for global attention."""

    def __init__(self, spec: ModelSpec, side: int, *, precision: Precision, rngs: nnx.Rngs):
        self.norm1 = precision.norm(spec.width, NORM_EPSILON, rngs=rngs)
        self.attn = Attention(spec, side, precision=precision, rngs=rngs)
        self.norm2 = precision.norm(spec.width, NORM_EPSILON, rngs=rngs)
        self.mlp = MLPBlock(
            spec.width,
            spec.mlp_ratio * spec.width,
            activation="gelu",
            precision=precision,
            rngs=rngs,
        )

    def __call__(self, x: Array) -> Array:
        x = summed_once(placed(x, BATCH, None, None, None, None))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Neck(nnx.Module):
    """Brings the tokens to the prompt width: 1^3 and 3^3 convolution, each with a norm."""

    def __init__(self, spec: ModelSpec, *, precision: Precision, rngs: nnx.Rngs):
        out = spec.prompt_width
        self.conv1 = precision.linear(spec.width, out, bias=False, rngs=rngs)
        self.norm1 = precision.norm(out, NORM_EPSILON, rngs=rngs)
        self.conv2 = SameConv(out, out, precision=precision)
        self.norm2 = precision.norm(out, NORM_EPSILON, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.norm2(self.conv2(self.norm1(self.conv1(x))))


class ImageEncoder3D(nnx.Module):
    """`[B, S, S, S, 1]` normalised image -> `[B, g, g, g, prompt_width]` float32 embedding.

    `remat`: a backward pass keeps each block's input alone and computes the rest again.
    """

    def __init__(
        self, spec: ModelSpec, *, remat: bool = False, precision: Precision, rngs: nnx.Rngs
    ):
        grid = spec.grid
        self.patch_embed = PatchConv(spec.patch_size, 1, spec.width, precision=precision)
        self.pos_embed = nnx.Param(jnp.zeros((1, grid, grid, grid, spec.width)))
        self.blocks = nnx.List(
            Block(
                spec,
                grid if i in spec.global_blocks else spec.window,
                precision=precision,
                rngs=rngs,
            )
            for i in range(spec.depth)
        )
        self.neck = Neck(spec, precision=precision, rngs=rngs)
        self.remat = remat

    def __call__(self, image: Array) -> Array:
        x = self.patch_embed(image)
        x = x + self.pos_embed[...].astype(x.dtype)
        if self.remat:
            x = rematerialised(list(self.blocks), x)
        else:
            for block in self.blocks:
                x = block(x).astype(x.dtype)
        return self.neck(placed(x, BATCH, None, None, None, None))
