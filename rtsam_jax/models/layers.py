"""Layers shared by the models, and the precision policy.

Policy: parameters float32; matrix products in the compute dtype (float32 products at the
backend's highest precision, never TF32 or bfloat16 passes); softmax, norms and losses float32.
Everything is channels-last.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array
ZEROS = nnx.initializers.zeros_init()  # modules are built with zeros; see models/initialise.py


class Buffer(nnx.Variable[Any]):
    """A constant that belongs to the weights but is never trained (a PyTorch buffer)."""


@dataclass(frozen=True)
class Precision:
    """The one place that decides dtypes."""

    compute: Any = jnp.float32

    @classmethod
    def named(cls, name: str) -> Precision:
        return cls(jnp.dtype(name))

    @property
    def matmul(self) -> jax.lax.Precision | None:
        return jax.lax.Precision.HIGHEST if self.compute == jnp.float32 else None

    @property
    def softmax(self) -> Any:
        """Dtype of logits and softmax: float32, or wider where float64 checks exactness."""
        return jnp.promote_types(self.compute, jnp.float32)

    def linear(self, fan_in: int, fan_out: int, *, bias: bool = True, rngs: nnx.Rngs) -> nnx.Linear:
        return nnx.Linear(
            fan_in,
            fan_out,
            use_bias=bias,
            kernel_init=ZEROS,
            dtype=self.compute,
            precision=self.matmul,
            rngs=rngs,
        )

    def norm(self, channels: int, epsilon: float, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
        # The two-pass variance: E[x^2] - E[x]^2 loses digits where the mean is large.
        return nnx.LayerNorm(
            channels, epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, rngs=rngs
        )


class PatchConv(nnx.Module):
    """Convolution whose stride equals its kernel, as one matrix product over patches.

    `[B, p*X, p*Y, p*Z, C_in] -> [B, X, Y, Z, C_out]`; kernel `[p, p, p, C_in, C_out]`.
    """

    def __init__(self, patch: int, fan_in: int, fan_out: int, *, precision: Precision):
        self.kernel = nnx.Param(jnp.zeros((patch, patch, patch, fan_in, fan_out)))
        self.bias = nnx.Param(jnp.zeros((fan_out,)))
        self.precision = precision

    def __call__(self, x: Array) -> Array:
        dtype = self.precision.compute
        p = self.kernel.shape[0]
        b, x_, y_, z_, c = x.shape
        x = x.astype(dtype).reshape(b, x_ // p, p, y_ // p, p, z_ // p, p, c)
        x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, x_ // p, y_ // p, z_ // p, -1)
        kernel = self.kernel[...].astype(dtype).reshape(-1, self.kernel.shape[-1])
        return jnp.matmul(x, kernel, precision=self.precision.matmul) + self.bias[...].astype(dtype)


class SameConv(nnx.Module):
    """3^3 convolution with zeros around and without bias, as matrix products over patches.

    `[B, X, Y, Z, C_in] -> [B, X, Y, Z, C_out]`; kernel `[3, 3, 3, C_in, C_out]`. On a CPU, value
    and gradient together take XLA about twice as long with its own convolution. The patches of one
    plane of the kernel are 9 times the input, 7 MB for a case of 8^3 tokens of 384 channels; those
    of all three planes at once were the most that the encoder held.
    """

    def __init__(self, fan_in: int, fan_out: int, *, precision: Precision):
        self.kernel = nnx.Param(jnp.zeros((3, 3, 3, fan_in, fan_out)))
        self.precision = precision

    def __call__(self, x: Array) -> Array:
        dtype = self.precision.compute
        b, x_, y_, z_, c = x.shape
        around = jnp.pad(x.astype(dtype), ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0)))
        kernel = self.kernel[...].astype(dtype).reshape(3, 9 * c, -1)

        def add_plane(total: Array, plane: tuple[Array, Array]) -> tuple[Array, None]:
            i, weights = plane
            rows = jax.lax.dynamic_slice_in_dim(around, i, x_, axis=1)
            patches = jnp.concatenate(
                [
                    rows[:, :, j : j + y_, k : k + z_]
                    for j, k in itertools.product(range(3), repeat=2)
                ],
                axis=-1,
            )
            part = jnp.matmul(
                patches,
                weights,
                precision=self.precision.matmul,
                preferred_element_type=total.dtype,
            )
            return total + part, None

        zeros = jnp.zeros((b, x_, y_, z_, kernel.shape[-1]), self.precision.softmax)
        total, _ = jax.lax.scan(add_plane, zeros, (jnp.arange(3), kernel))
        return total.astype(dtype)


class PatchConvTranspose(nnx.Module):
    """Transposed convolution, kernel 2 and stride 2: every voxel becomes its own 2^3 block.

    `[..., C_in] -> [..., 8, C_out]`; kernel `[2, 2, 2, C_in, C_out]`, unflipped: output voxel
    `2i + a` is `x[i] @ kernel[a]` (reference trap 8). The blocks stay beside their voxel: what
    follows takes each voxel alone, so `place_blocks` need not move them before the last, which has
    one channel left.
    """

    def __init__(self, fan_in: int, fan_out: int, *, precision: Precision):
        self.kernel = nnx.Param(jnp.zeros((2, 2, 2, fan_in, fan_out)))
        self.bias = nnx.Param(jnp.zeros((fan_out,)))
        self.precision = precision

    def __call__(self, x: Array) -> Array:
        dtype = self.precision.compute
        c, out = self.kernel.shape[-2:]
        kernel = self.kernel[...].astype(dtype).transpose(3, 0, 1, 2, 4).reshape(c, -1)
        y = jnp.matmul(x.astype(dtype), kernel, precision=self.precision.matmul)
        return y.reshape(*x.shape[:-1], 8, out) + self.bias[...].astype(dtype)


def place_blocks(x: Array) -> Array:
    """Blocks of blocks to where they belong: `[B, X, Y, Z, 8, 8, C] -> [B, 4X, 4Y, 4Z, C]`."""
    b, x_, y_, z_, _, _, c = x.shape
    x = x.reshape(b, x_, y_, z_, 2, 2, 2, 2, 2, 2, c)
    x = x.transpose(0, 1, 4, 7, 2, 5, 8, 3, 6, 9, 10)
    return x.reshape(b, 4 * x_, 4 * y_, 4 * z_, c)


class MLP(nnx.Module):
    """A stack of linear layers with ReLU between them (hypernetworks, IoU head)."""

    def __init__(
        self,
        fan_in: int,
        hidden: int,
        fan_out: int,
        depth: int,
        *,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        sizes = [fan_in] + [hidden] * (depth - 1) + [fan_out]
        self.layers = nnx.List(
            precision.linear(n, m, rngs=rngs) for n, m in zip(sizes[:-1], sizes[1:], strict=True)
        )

    def __call__(self, x: Array) -> Array:
        *hidden, last = self.layers
        for layer in hidden:
            x = nnx.relu(layer(x))
        return last(x)


class MLPBlock(nnx.Module):
    """The transformer's two-layer MLP.

    The activation is exact GELU in the encoder, ReLU in the decoder (reference trap 7).
    """

    def __init__(
        self, width: int, hidden: int, *, activation: str, precision: Precision, rngs: nnx.Rngs
    ):
        self.lin1 = precision.linear(width, hidden, rngs=rngs)
        self.lin2 = precision.linear(hidden, width, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Array) -> Array:
        x = self.lin1(x)
        x = gelu(x) if self.activation == "gelu" else nnx.relu(x)
        return self.lin2(x)


def gelu(x: Array) -> Array:
    """The exact (erf) GELU of the reference, not Flax's default tanh form.

    By erf as in PyTorch; by erfc, as in JAX, it takes a CPU two to three times as long. At least
    in float32, since 1 + erf cancels for negative x.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def upsample(low_res: Array, size: int) -> Array:
    """Trilinear, half-pixel centres, clamped edges. `[B, m, m, m] -> [B, size, size, size]`."""
    return jax.image.resize(low_res, (low_res.shape[0], size, size, size), "linear")
