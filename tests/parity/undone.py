"""Each trap of the reference undone: the same case must then miss by more than 1e-3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rtsam_jax.models import attention, image_encoder, layers, mask_decoder, prompt_encoder
from rtsam_jax.models.prompt_encoder import Encoded, PositionEmbedding, PromptEncoder3D
from rtsam_jax.models.sam3d import SAM3D
from tests.oracles.padded_attention import padded_attention
from tests.parity import cases
from tests.parity.cases import Case

Patch = Callable[[SAM3D], AbstractContextManager[object]]


@dataclass(frozen=True)
class Undone:
    """A trap, the mistake that undoes it, and the cases that must notice."""

    trap: int
    mistake: str
    patch: Patch
    cases: tuple[Case, ...]


def _replace(target: object, name: str, value: object) -> Patch:
    return lambda _: mock.patch.object(target, name, value)


def _standard_position(tokens, bias, tables, window, _precision):  # type: ignore[no-untyped-def]
    return padded_attention(tokens, bias, tables, window, mixed_axes=False)


def _unswapped_grid(self: PositionEmbedding, side: int) -> jax.Array:
    centre = (jnp.arange(side) + 0.5) / side
    return self.encode(jnp.stack(jnp.meshgrid(centre, centre, centre, indexing="ij"), axis=-1))


def _encode(factor: float, parts: tuple[Callable[[jax.Array], jax.Array], ...]):  # type: ignore[no-untyped-def]
    def encode(self: PositionEmbedding, unit: jax.Array) -> jax.Array:
        angle = factor * (2 * unit - 1) @ self.gaussian[...]
        return jnp.concatenate([part(angle) for part in parts], axis=-1)

    return encode


def _no_appended_token(_: SAM3D) -> AbstractContextManager[object]:
    original = PromptEncoder3D.__call__

    def call(self: PromptEncoder3D, prompts: prompt_encoder.Prompts, batch: int) -> Encoded:
        tokens, valid, dense = original(self, prompts, batch)
        return Encoded(tokens[:, :-1], valid[:, :-1], dense)

    return mock.patch.object(PromptEncoder3D, "__call__", call)


def _filled_with_minus_one(labels: np.ndarray, filled: int) -> np.ndarray:
    buffer = np.full((1, cases.SLOTS), -1, np.int32)
    buffer[:, :filled] = labels[:, :filled]
    return buffer


def _tanh_gelu(_: SAM3D) -> AbstractContextManager[object]:
    stack = ExitStack()
    for module in (layers, prompt_encoder, mask_decoder):
        stack.enter_context(mock.patch.object(module, "gelu", nnx.gelu))
    return stack


def _epsilon(value: float, *, of: str, only: type = nnx.LayerNorm) -> Patch:
    """Sets the epsilon of all norms whose path starts with `of`."""

    @contextmanager
    def patch(model: SAM3D) -> Iterator[None]:
        found = 0
        with ExitStack() as stack:
            for path, module in nnx.iter_modules(model):
                name = ".".join(map(str, path))
                if isinstance(module, only) and name.startswith(of):
                    assert module.epsilon != value
                    stack.enter_context(mock.patch.object(module, "epsilon", value))
                    found += 1
            assert found
            yield

    return patch


def _transposed_kernels(change: Callable[[jax.Array], jax.Array]) -> Patch:
    @contextmanager
    def patch(model: SAM3D) -> Iterator[None]:
        upscaling = model.mask_decoder.upscaling
        kernels = [upscaling.conv1.kernel, upscaling.conv2.kernel]
        before = [kernel[...] for kernel in kernels]
        for kernel, value in zip(kernels, before, strict=True):
            kernel.set_value(change(value))
        try:
            yield
        finally:
            for kernel, value in zip(kernels, before, strict=True):
                kernel.set_value(value)

    return patch


def _no_first_mask(_: tuple[int, ...]) -> None:
    return None


_TWO_PI = 2 * np.pi
UNDONE: tuple[Undone, ...] = (
    Undone(
        1,
        "standard relative position",
        _replace(image_encoder, "windowed_attention", _standard_position),
        (cases.WINDOWED_BLOCK, cases.GLOBAL_BLOCK),
    ),
    Undone(
        2,
        "padding masked",
        _replace(attention, "_padding_logit", lambda a, *_: jnp.full(a.shape[:-1], -jnp.inf)),
        (cases.WINDOWED_BLOCK, cases.ENCODER),
    ),
    Undone(
        3,
        "dense positions not swapped",
        _replace(PositionEmbedding, "grid", _unswapped_grid),
        (cases.DENSE_POSITION, cases.DECODER, cases.FULL_FORWARD),
    ),
    Undone(
        4,
        "sin, cos, cos",
        _replace(PositionEmbedding, "encode", _encode(_TWO_PI, (jnp.sin, jnp.cos, jnp.cos))),
        (cases.DENSE_POSITION, cases.CLICKS, cases.BOX_PROMPT, cases.FULL_FORWARD),
    ),
    Undone(
        4,
        "no factor 2 pi",
        _replace(PositionEmbedding, "encode", _encode(1.0, (jnp.sin, jnp.cos, jnp.sin))),
        (cases.DENSE_POSITION, cases.CLICKS, cases.BOX_PROMPT, cases.FULL_FORWARD),
    ),
    Undone(
        4,
        "no shift by half a voxel",
        _replace(PositionEmbedding, "voxels", lambda self, i, size: self.encode(i / size)),
        (cases.CLICKS, cases.BOX_PROMPT, cases.FULL_FORWARD),
    ),
    Undone(5, "no -1 token appended", _no_appended_token, (cases.FULL_FORWARD, cases.REFINEMENT)),
    Undone(
        5,
        "buffer filled with -1 instead of -2",
        _replace(cases, "slot_labels", _filled_with_minus_one),
        (cases.REFINEMENT,),
    ),
    Undone(
        7,
        "tanh GELU",
        _tanh_gelu,
        (cases.WINDOWED_BLOCK, cases.ENCODER, cases.MASK_PROMPT, cases.DECODER),
    ),
    Undone(
        7,
        "encoder norms with 1e-5",
        _epsilon(1e-5, of="image_encoder.blocks"),
        (cases.WINDOWED_BLOCK, cases.GLOBAL_BLOCK),
    ),
    Undone(7, "neck norms with 1e-5", _epsilon(1e-5, of="image_encoder.neck"), (cases.ENCODER,)),
    Undone(
        7,
        "mask prompt's norms with 1e-5",
        _epsilon(1e-5, of="prompt_encoder"),
        (cases.MASK_PROMPT,),
    ),
    Undone(
        7,
        "upscaling's norm with 1e-5",
        _epsilon(1e-5, of="mask_decoder.upscaling"),
        (cases.DECODER,),
    ),
    Undone(
        7,
        "decoder norms with 1e-6",
        _epsilon(1e-6, of="mask_decoder.transformer"),
        (cases.DECODER,),
    ),
    Undone(
        7,
        "residual in the first decoder block",
        lambda m: mock.patch.object(m.mask_decoder.transformer.layers[0], "first", False),
        (cases.DECODER, cases.FULL_FORWARD),
    ),
    Undone(
        7,
        "GELU in the decoder's MLP and hypernetworks",
        _replace(nnx, "relu", nnx.gelu),
        (cases.DECODER,),
    ),
    Undone(
        8,
        "transposed kernels flipped (Flax's default layer)",
        _transposed_kernels(lambda k: k[::-1, ::-1, ::-1]),
        (cases.DECODER, cases.FULL_FORWARD),
    ),
    Undone(
        8,
        "transposed kernels with axes reversed",
        _transposed_kernels(lambda k: k.transpose(2, 1, 0, 3, 4)),
        (cases.DECODER,),
    ),
    Undone(
        9,
        "no_mask_embed on the first pass instead of a mask of zeros",
        _replace(cases, "first_mask", _no_first_mask),
        (cases.FULL_FORWARD, cases.REFINEMENT),
    ),
)
