"""Which PyTorch key of SAM-Med3D is which parameter here, and how the array is turned.

`<n>` stands for a number and `<name>` for one part of a dotted name; the k-th placeholder of a key
is the k-th of the path. Where the key has one `<n>` more than the path, it counts rows that are
stacked into one array. Nothing here needs PyTorch: arrays are NumPy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from rtsam_jax.errors import CheckpointError

ArrayMap = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Transform:
    """How one array changes on the way to Flax, and back."""

    name: str
    to_flax: ArrayMap
    to_torch: ArrayMap


def _permutation(name: str, *axes: int) -> Transform:
    back = tuple(int(i) for i in np.argsort(axes))
    return Transform(name, lambda a: a.transpose(axes), lambda a: a.transpose(back))


IDENTITY = Transform("as it is", lambda a: a, lambda a: a)
LINEAR = _permutation("linear: [out, in] -> [in, out]", 1, 0)
CONV = _permutation("convolution: [out, in, d, h, w] -> [d, h, w, in, out]", 2, 3, 4, 1, 0)
# PyTorch keeps a transposed convolution as [in, out, d, h, w]; nothing is flipped (trap 8).
CONV_T = _permutation(
    "transposed convolution: [in, out, d, h, w] -> [d, h, w, in, out]", 2, 3, 4, 0, 1
)
POINTWISE = Transform(
    "1^3 convolution: [out, in, 1, 1, 1] -> [in, out]",
    lambda a: a[:, :, 0, 0, 0].T,
    lambda a: a.T[:, :, None, None, None],
)
ROW = Transform("embedding of one row: [1, C] -> [C]", lambda a: a[0], lambda a: a[None])


@dataclass(frozen=True)
class Rule:
    """A family of PyTorch keys and the path of the parameter each becomes."""

    key: str
    path: str
    transform: Transform

    @property
    def stacked(self) -> bool:
        return self.key.count("<") > self.path.count("<")

    def keys_of(self, path: str, shape: tuple[int, ...]) -> list[str] | None:
        """The PyTorch keys of a parameter, one per row where rows are stacked; None: no match."""
        match = re.fullmatch(_regex(self.path), path)
        if match is None:
            return None
        if self.stacked:
            return [_fill(self.key, (*match.groups(), str(i))) for i in range(shape[0])]
        return [_fill(self.key, match.groups())]

    def matches_key(self, key: str) -> bool:
        return re.fullmatch(_regex(self.key), key) is not None


def rule_of(table: Iterable[Rule], path: str, shape: tuple[int, ...]) -> tuple[Rule, list[str]]:
    """The rule of a parameter, and the PyTorch keys it is made of; `CheckpointError`: none."""
    for rule in table:
        keys = rule.keys_of(path, shape)
        if keys is not None:
            return rule, keys
    raise CheckpointError(f"The conversion table has no rule for the parameter {path}.")


def torch_shape(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the PyTorch array from which a parameter (or a row of it) is made."""
    empty = np.broadcast_to(np.float32(0), shape[1:] if rule.stacked else shape)  # no memory
    return rule.transform.to_torch(empty).shape


def _regex(pattern: str) -> str:
    return re.escape(pattern).replace("<n>", r"(\d+)").replace("<name>", r"([a-z_]\w*)")


def _fill(pattern: str, values: tuple[str, ...]) -> str:
    remaining = iter(values)
    return re.sub(r"<\w+>", lambda _: next(remaining), pattern)


def layer(key: str, path: str, weight: Transform, *, bias: bool = True) -> list[Rule]:
    """A layer with a kernel, or a norm (whose weight stays as it is and is called scale)."""
    leaf = "scale" if weight is IDENTITY else "kernel"
    rules = [Rule(f"{key}.weight", f"{path}.{leaf}", weight)]
    return rules + ([Rule(f"{key}.bias", f"{path}.bias", IDENTITY)] if bias else [])


_BLOCK = "image_encoder.blocks.<n>"
_NECK = "image_encoder.neck"
_PROMPT = "prompt_encoder"
_MASK = f"{_PROMPT}.mask_downscaling"
_TWO_WAY = "mask_decoder.transformer"
_LAYER = f"{_TWO_WAY}.layers.<n>"
_UP_TORCH, _UP = "mask_decoder.output_upscaling", "mask_decoder.upscaling"

TABLE: tuple[Rule, ...] = (
    # Image encoder
    Rule("image_encoder.pos_embed", "image_encoder.pos_embed", IDENTITY),
    *layer("image_encoder.patch_embed.proj", "image_encoder.patch_embed", CONV),
    *layer(f"{_BLOCK}.norm<n>", f"{_BLOCK}.norm<n>", IDENTITY),
    Rule(f"{_BLOCK}.attn.rel_pos_<name>", f"{_BLOCK}.attn.rel_pos_<name>", IDENTITY),
    *layer(f"{_BLOCK}.attn.<name>", f"{_BLOCK}.attn.<name>", LINEAR),
    *layer(f"{_BLOCK}.mlp.<name>", f"{_BLOCK}.mlp.<name>", LINEAR),
    *layer(f"{_NECK}.0", f"{_NECK}.conv1", POINTWISE, bias=False),
    *layer(f"{_NECK}.1", f"{_NECK}.norm1", IDENTITY),
    *layer(f"{_NECK}.2", f"{_NECK}.conv2", CONV, bias=False),
    *layer(f"{_NECK}.3", f"{_NECK}.norm2", IDENTITY),
    # Prompt encoder
    Rule(
        f"{_PROMPT}.pe_layer.positional_encoding_gaussian_matrix",
        f"{_PROMPT}.position.gaussian",
        IDENTITY,
    ),
    Rule(f"{_PROMPT}.point_embeddings.<n>.weight", f"{_PROMPT}.point_embed", ROW),
    Rule(f"{_PROMPT}.not_a_point_embed.weight", f"{_PROMPT}.not_a_point_embed", ROW),
    Rule(f"{_PROMPT}.no_mask_embed.weight", f"{_PROMPT}.no_mask_embed", ROW),
    *layer(f"{_MASK}.0", f"{_MASK}.conv1", CONV),
    *layer(f"{_MASK}.1", f"{_MASK}.norm1", IDENTITY),
    *layer(f"{_MASK}.3", f"{_MASK}.conv2", CONV),
    *layer(f"{_MASK}.4", f"{_MASK}.norm2", IDENTITY),
    *layer(f"{_MASK}.6", f"{_MASK}.conv3", POINTWISE),
    # Mask decoder
    *layer(f"{_LAYER}.self_attn.<name>", f"{_LAYER}.self_attn.<name>", LINEAR),
    *layer(f"{_LAYER}.cross_attn_token_to_image.<name>", f"{_LAYER}.token_to_image.<name>", LINEAR),
    *layer(f"{_LAYER}.cross_attn_image_to_token.<name>", f"{_LAYER}.image_to_token.<name>", LINEAR),
    *layer(f"{_LAYER}.mlp.<name>", f"{_LAYER}.mlp.<name>", LINEAR),
    *layer(f"{_LAYER}.norm<n>", f"{_LAYER}.norm<n>", IDENTITY),
    *layer(f"{_TWO_WAY}.final_attn_token_to_image.<name>", f"{_TWO_WAY}.final_attn.<name>", LINEAR),
    *layer(f"{_TWO_WAY}.norm_final_attn", f"{_TWO_WAY}.norm_final", IDENTITY),
    Rule("mask_decoder.iou_token.weight", "mask_decoder.iou_token", IDENTITY),
    Rule("mask_decoder.mask_tokens.weight", "mask_decoder.mask_tokens", IDENTITY),
    *layer(f"{_UP_TORCH}.0", f"{_UP}.conv1", CONV_T),
    *layer(f"{_UP_TORCH}.1", f"{_UP}.norm", IDENTITY),
    *layer(f"{_UP_TORCH}.3", f"{_UP}.conv2", CONV_T),
    *layer(
        "mask_decoder.output_hypernetworks_mlps.<n>.layers.<n>",
        "mask_decoder.hypernetworks.<n>.layers.<n>",
        LINEAR,
    ),
    *layer(
        "mask_decoder.iou_prediction_head.layers.<n>", "mask_decoder.iou_head.layers.<n>", LINEAR
    ),
)

_INTENSITY = "2-D photograph statistics; intensities are normalised by modality before the model"
SKIPPED_KEYS: dict[str, str] = {"pixel_mean": _INTENSITY, "pixel_std": _INTENSITY}

OWN_REASON: dict[str, str] = {
    "prompt_encoder.corner_embed": "box corners: the published model has no usable box prompt",
    "prompt_encoder.task_embed": "task prompt: a parameter of this project",
    "prompt_encoder.text_adapter": "adaptation layer of the text prompt: this project's own",
}


def own_reason(path: str) -> str | None:
    """Why a parameter of this project is in no published file; None for any other."""
    return next((why for own, why in OWN_REASON.items() if f"{path}.".startswith(f"{own}.")), None)
