"""Prompts to tokens: clicks, dose box, previous mask, and text or task tokens (Sec. 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rtsam_jax.models.layers import Array, Buffer, PatchConv, Precision, gelu
from rtsam_jax.models.presets import ModelSpec
from rtsam_jax.models.text_adapter import TextAdapter, TextTable

POSITIVE, NEGATIVE, NOT_A_POINT, UNUSED = 1, 0, -1, -2  # labels of a click slot


class Prompts(NamedTuple):
    """Everything the decoder may be told about a batch; what is None is absent for all of it.

    Attributes:
        points: `[B, N, 3]` float, voxel indices in the crop.
        point_labels: `[B, N]` int: 1 positive, 0 negative, -1 the reference's "not a point"
            token, -2 unused slot (masked in every attention).
        box: `[B, 2, 3]` float, inclusive corner voxels.
        box_valid: `[B]` bool; False masks the corners as if no box had been given.
        mask: `[B, m, m, m, 1]` low-resolution logits of the previous prediction.
        text: `[B, L, C]` tokens of the text (or task) prompt.
        text_valid: `[B, L]` bool; None: all are.
    """

    points: Array | None = None
    point_labels: Array | None = None
    box: Array | None = None
    box_valid: Array | None = None
    mask: Array | None = None
    text: Array | None = None
    text_valid: Array | None = None


class Encoded(NamedTuple):
    """Sparse tokens `[B, T, C]`, their validity `[B, T]`, dense embedding `[B, g, g, g, C]`."""

    tokens: Array
    valid: Array
    dense: Array


@dataclass(frozen=True)
class PromptSizes:
    """What stands where the paper's text prompt does.

    Attributes:
        tasks: how many tasks have learned tokens, where there is no text; 0 is none.
        tokens: per task, or per text feature.
        text_width: channels of a text feature; 0 is no text.
        adapter_width: hidden width of the adaptation layer.
    """

    tasks: int = 0
    tokens: int = 4
    text_width: int = 0
    adapter_width: int = 384


NO_PROMPT = PromptSizes()


class PositionEmbedding(nnx.Module):
    """Random Fourier features of a position (reference traps 3 and 4)."""

    def __init__(self, channels: int):
        self.gaussian = Buffer(jnp.zeros((3, channels // 3)))

    def encode(self, unit: Array) -> Array:
        """`[..., 3]` in [0, 1] -> `[..., channels]`: sin, cos and, to fill three thirds, sin."""
        projected = jnp.matmul(
            2.0 * unit - 1.0, self.gaussian[...], precision=jax.lax.Precision.HIGHEST
        )
        angle = 2.0 * np.pi * projected
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle), jnp.sin(angle)], axis=-1)

    def voxels(self, index: Array, size: int) -> Array:
        """Encodes voxel indices `[..., 3]`; a voxel's centre lies half a voxel after its index."""
        return self.encode((index + 0.5) / size)

    def grid(self, side: int) -> Array:
        """`[side, side, side, channels]` for the token grid.

        Coordinates stack as (axis 1, axis 0, axis 2) while points stack as (0, 1, 2): the
        reference swaps the two, and the published decoder was trained with it (trap 3).
        """
        centre = (jnp.arange(side) + 0.5) / side
        axis_0, axis_1, axis_2 = jnp.meshgrid(centre, centre, centre, indexing="ij")
        return self.encode(jnp.stack([axis_1, axis_0, axis_2], axis=-1))


class MaskDownscaling(nnx.Module):
    """`[B, 4g, 4g, 4g, 1]` logits -> `[B, g, g, g, C]`."""

    def __init__(self, spec: ModelSpec, *, precision: Precision, rngs: nnx.Rngs):
        few, many = spec.mask_channels // 4, spec.mask_channels
        self.conv1 = PatchConv(2, 1, few, precision=precision)
        self.norm1 = precision.norm(few, 1e-6, rngs=rngs)
        self.conv2 = PatchConv(2, few, many, precision=precision)
        self.norm2 = precision.norm(many, 1e-6, rngs=rngs)
        self.conv3 = precision.linear(many, spec.prompt_width, rngs=rngs)

    def __call__(self, mask: Array) -> Array:
        x = gelu(self.norm1(self.conv1(mask)))
        x = gelu(self.norm2(self.conv2(x)))
        return self.conv3(x)


class PromptEncoder3D(nnx.Module):
    """Clicks, dose box, mask and task tokens.

    The published model has two point embeddings and no usable box branch (trap 6), so
    `corner_embed` (minimum, maximum corner), `task_embed` and `text_adapter` are parameters of our
    own. Of the last two a model has one, or neither.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        prompt: PromptSizes,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        width = spec.prompt_width
        self.position = PositionEmbedding(width)
        self.point_embed = nnx.Param(jnp.zeros((2, width)))  # negative, positive
        self.not_a_point_embed = nnx.Param(jnp.zeros((width,)))
        self.no_mask_embed = nnx.Param(jnp.zeros((width,)))
        self.mask_downscaling = MaskDownscaling(spec, precision=precision, rngs=rngs)
        self.corner_embed = nnx.Param(jnp.zeros((2, width)))
        embed, adapter = None, None
        if prompt.text_width:
            adapter = TextAdapter(
                prompt.text_width,
                prompt.adapter_width,
                prompt.tokens,
                width,
                precision=precision,
                rngs=rngs,
            )
        elif prompt.tasks:
            embed = nnx.Param(jnp.zeros((prompt.tasks, prompt.tokens, width)))
        self.task_embed, self.text_adapter = embed, adapter
        self.image_size, self.grid_side, self.width = spec.image_size, spec.grid, width

    def text_tokens(
        self, text_id: Array, table: TextTable | None
    ) -> tuple[Array, Array | None] | tuple[None, None]:
        """`[B]` ids -> tokens `[B, L, C]` and which count `[B, L]` (None: all).

        Adapted from the table's row, or learned for the task of that index; without either, none.
        """
        if self.text_adapter is not None:
            if table is None:
                raise ValueError("this model adapts text features: give it their table")
            tokens = self.text_adapter(table.features[text_id])
            return tokens, jnp.repeat(table.valid[text_id], self.text_adapter.tokens, axis=1)
        if self.task_embed is not None:
            return self.task_embed[...][text_id], None
        return None, None

    def dense_position(self) -> Array:
        """`[g, g, g, C]` positional encoding of the token grid."""
        return self.position.grid(self.grid_side)

    def __call__(self, prompts: Prompts, batch: int) -> Encoded:
        tokens: list[Array] = []
        valid: list[Array] = []
        if prompts.points is not None and prompts.point_labels is not None:
            points, labels = prompts.points, prompts.point_labels
            if prompts.box is None or prompts.box_valid is not None:
                # Trap 5: the reference appends one -1 token where clicks come without a box.
                absent = jnp.full((batch, 1), NOT_A_POINT, labels.dtype)
                if prompts.box is not None and prompts.box_valid is not None:
                    absent = jnp.where(prompts.box_valid[:, None], UNUSED, absent)
                nowhere = jnp.zeros((batch, 1, 3), points.dtype)
                points = jnp.concatenate([points, nowhere], axis=1)
                labels = jnp.concatenate([labels, absent], axis=1)
            tokens.append(self._points(points, labels))
            valid.append(labels != UNUSED)
        if prompts.box is not None:
            tokens.append(self.position.voxels(prompts.box, self.image_size) + self.corner_embed)
            there = jnp.ones((batch,), bool) if prompts.box_valid is None else prompts.box_valid
            valid.append(jnp.broadcast_to(there[:, None], (batch, 2)))
        if prompts.text is not None:
            tokens.append(prompts.text)
            everywhere = jnp.ones(prompts.text.shape[:2], bool)
            valid.append(everywhere if prompts.text_valid is None else prompts.text_valid)
        if not tokens:
            tokens.append(jnp.zeros((batch, 0, self.width)))
            valid.append(jnp.zeros((batch, 0), bool))
        return Encoded(
            jnp.concatenate(tokens, axis=1),
            jnp.concatenate(valid, axis=1),
            self._dense(prompts, batch),
        )

    def _points(self, points: Array, labels: Array) -> Array:
        encoded = self.position.voxels(points, self.image_size)
        sign = self.point_embed[...][jnp.clip(labels, 0, 1)]
        click = (labels >= 0)[..., None]
        nothing = (labels == NOT_A_POINT)[..., None] * self.not_a_point_embed[...]
        return jnp.where(click, encoded + sign, nothing)

    def _dense(self, prompts: Prompts, batch: int) -> Array:
        if prompts.mask is not None:
            return self.mask_downscaling(prompts.mask)
        side = self.grid_side
        return jnp.broadcast_to(self.no_mask_embed[...], (batch, side, side, side, self.width))
