"""What is compared: each case computes the same thing in both models from the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx

from rtsam_jax.models.layers import upsample
from rtsam_jax.models.prompt_encoder import UNUSED, Prompts
from rtsam_jax.models.sam3d import SAM3D
from tests.parity.reference import Pair, channels_first, channels_last, relative_error

Arrays = dict[str, Any]

_rng = np.random.default_rng(11)
POINTS = _rng.uniform(0, 127, (1, 4, 3)).round().astype(np.float32)
LABELS = np.array([[1, 0, 1, 0]], np.int32)
PADDED_LABELS = np.array([[1, -1, 0, -1]], np.int32)
BOX = np.array([[[20, 31, 9], [77, 64, 101]]], np.float32)
MASK = _rng.normal(size=(2, 32, 32, 32, 1)).astype(np.float32)
DECODER_INPUTS = {
    "embedding": _rng.normal(size=(2, 8, 8, 8, 384)).astype(np.float32),
    "tokens": _rng.normal(size=(2, 5, 384)).astype(np.float32),
    "dense": _rng.normal(size=(2, 8, 8, 8, 384)).astype(np.float32),
}
NO_MASK = np.zeros((1, 32, 32, 32, 1), np.float32)
STEPS = 3  # of the refinement, one click more in each
SLOTS = 12  # of its click buffer


@dataclass(frozen=True)
class Case:
    """One row of the table of relative errors."""

    name: str
    inputs: Callable[[Pair], Arrays]
    ours: Callable[[SAM3D, Arrays], Arrays]
    reference: Callable[[Any, Arrays], Arrays]  # (PyTorch model, inputs)

    def run_ours(self, pair: Pair) -> Arrays:
        """Compiled afresh at each call, so that a patched function takes effect."""
        graph, state = nnx.split(pair.model)
        run = jax.jit(lambda state, inputs: self.ours(nnx.merge(graph, state), inputs))
        return jax.tree.map(np.asarray, run(state, self.inputs(pair)))

    def run_reference(self, pair: Pair) -> Arrays:
        if self.name not in pair.cache:
            with torch.no_grad():
                pair.cache[self.name] = self.reference(pair.torch_model, self.inputs(pair))
        return pair.cache[self.name]

    def error(self, pair: Pair) -> float:
        """The largest relative error of the case's outputs."""
        ours, reference = self.run_ours(pair), self.run_reference(pair)
        assert ours.keys() == reference.keys()
        return max(relative_error(ours[name], reference[name]) for name in ours)


def _image(pair: Pair) -> Arrays:
    return {"image": pair.image}


def _stem(torch_model: Any, inputs: Arrays) -> Arrays:
    encoder = torch_model.image_encoder
    return {"tokens": (encoder.patch_embed(channels_first(inputs["image"])) + encoder.pos_embed)}


def _stem_output(pair: Pair) -> Arrays:
    return {"x": PATCH_EMBEDDING.run_reference(pair)["tokens"].numpy()}


def _our_embedding(pair: Pair) -> np.ndarray:
    if "our embedding" not in pair.cache:
        pair.cache["our embedding"] = ENCODER.run_ours(pair)["embedding"]
    return pair.cache["our embedding"]  # type: ignore[return-value]


PATCH_EMBEDDING = Case(
    "patch embedding",
    _image,
    lambda m, i: {
        "tokens": m.image_encoder.patch_embed(i["image"]) + m.image_encoder.pos_embed[...]
    },
    _stem,
)


def _block(name: str, index: int) -> Case:
    return Case(
        name,
        _stem_output,
        lambda m, i: {"x": m.image_encoder.blocks[index](i["x"])},
        lambda t, i: {"x": t.image_encoder.blocks[index](torch.from_numpy(i["x"]))},
    )


WINDOWED_BLOCK = _block("one windowed block", 0)
GLOBAL_BLOCK = _block("one global block", 2)
ENCODER = Case(
    "whole image encoder",
    _image,
    lambda m, i: {"embedding": m.encode(i["image"])},
    lambda t, i: {"embedding": channels_last(t.image_encoder(channels_first(i["image"])))},
)
DENSE_POSITION = Case(
    "dense positional encoding",
    lambda _: {},
    lambda m, _: {"pe": m.prompt_encoder.dense_position()[None]},
    lambda t, _: {"pe": channels_last(t.prompt_encoder.get_dense_pe())},
)


def _clicks(name: str, labels: np.ndarray) -> Case:
    def ours(model: SAM3D, i: Arrays) -> Arrays:
        return {"tokens": model.prompt_encoder(Prompts(i["points"], i["labels"]), 1).tokens}

    def reference(t: Any, i: Arrays) -> Arrays:
        points = torch.from_numpy(i["points"]), torch.from_numpy(i["labels"])
        return {"tokens": t.prompt_encoder(points, None, None)[0]}

    return Case(name, lambda _: {"points": POINTS, "labels": labels}, ours, reference)


CLICKS = _clicks("prompt: clicks", LABELS)
PADDED_CLICKS = _clicks("prompt: clicks, -1 slots among them", PADDED_LABELS)


def _reference_box(t: Any, i: Arrays) -> Arrays:
    # The published box branch cannot run (trap 6): its positions, and the new corner embeddings.
    encode = t.prompt_encoder.pe_layer.forward_with_coords
    position = encode(torch.from_numpy(i["box"] + 0.5), (128, 128, 128))
    return {"tokens": position.numpy() + i["corners"]}


BOX_PROMPT = Case(
    "prompt: box (positions and corner embeddings)",
    lambda pair: {"box": BOX, "corners": pair.corners},
    lambda m, i: {"tokens": m.prompt_encoder(Prompts(box=i["box"]), 1).tokens},
    _reference_box,
)
MASK_PROMPT = Case(
    "prompt: mask",
    lambda _: {"mask": MASK},
    lambda m, i: {"dense": m.prompt_encoder(Prompts(mask=i["mask"]), 2).dense},
    lambda t, i: {
        "dense": channels_last(t.prompt_encoder(None, None, channels_first(i["mask"]))[1])
    },
)
NO_MASK_PROMPT = Case(
    "prompt: no mask",
    lambda _: {},
    lambda m, _: {"dense": m.prompt_encoder(Prompts(), 1).dense},
    lambda t, _: {"dense": channels_last(t.prompt_encoder(None, None, None)[1])},
)


def our_decoder(model: SAM3D, i: Arrays) -> Arrays:
    position = model.prompt_encoder.dense_position()
    valid = jnp.ones(i["tokens"].shape[:2], bool)
    inputs = i["embedding"], position, i["tokens"], valid, i["dense"]
    one, more = (model.mask_decoder(*inputs, multimask=m) for m in (False, True))
    return {
        "logits": jnp.concatenate([one.low_res_logits, more.low_res_logits], axis=-1),
        "iou": jnp.concatenate([one.iou, more.iou], axis=-1),
    }


def reference_decoder(t: Any, i: Arrays) -> dict[str, torch.Tensor]:
    logits, iou = t.mask_decoder.predict_masks(
        channels_first(i["embedding"]),
        t.prompt_encoder.get_dense_pe(),
        torch.from_numpy(i["tokens"]),
        channels_first(i["dense"]),
    )
    return {"logits": logits.movedim(1, -1), "iou": iou}


DECODER = Case("mask decoder", lambda _: DECODER_INPUTS, our_decoder, reference_decoder)


def _full_inputs(pair: Pair) -> Arrays:
    """Each side decodes from what its own encoder made of the image, which runs once."""
    return {
        "embedding": _our_embedding(pair),
        "reference embedding": ENCODER.run_reference(pair)["embedding"],
        "points": POINTS[:, :2],
        "labels": LABELS[:, :2],
    }


def first_mask(shape: tuple[int, ...]) -> jax.Array | None:
    """The mask prompt of a first pass: zeros, not "no mask" (trap 9)."""
    return jnp.zeros(shape)


def _our_full(model: SAM3D, i: Arrays) -> Arrays:
    prompts = Prompts(i["points"], i["labels"], mask=first_mask(NO_MASK.shape))
    masks = model.decode(i["embedding"], prompts)
    low_res = masks.low_res_logits[..., 0]
    return {"low_res": low_res, "logits": upsample(low_res, 128), "iou": masks.iou}


def _reference_pass(
    t: Any, embedding: torch.Tensor, points: np.ndarray, labels: np.ndarray, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    clicks = torch.from_numpy(points), torch.from_numpy(labels)
    sparse, dense = t.prompt_encoder(clicks, None, mask)
    return t.mask_decoder(embedding, t.prompt_encoder.get_dense_pe(), sparse, dense)


def _reference_full(t: Any, i: Arrays) -> Arrays:
    embedding = channels_first(i["reference embedding"])
    mask = channels_first(NO_MASK)
    low_res, iou = _reference_pass(t, embedding, i["points"], i["labels"], mask)
    logits = F.interpolate(low_res, (128, 128, 128), mode="trilinear", align_corners=False)
    return {"low_res": low_res[:, 0], "logits": logits[:, 0], "iou": iou}


FULL_FORWARD = Case(
    "full forward (clicks, mask of zeros, 128^3 logits)", _full_inputs, _our_full, _reference_full
)


def slot_labels(labels: np.ndarray, filled: int) -> np.ndarray:
    """A buffer of labels of which the first few are used; the others are masked (trap 5)."""
    buffer = np.full((1, SLOTS), UNUSED, np.int32)
    buffer[:, :filled] = labels[:, :filled]
    return buffer


def _our_refinement(model: SAM3D, i: Arrays) -> Arrays:
    points = np.zeros((1, SLOTS, 3), np.float32)
    points[:, : POINTS.shape[1]] = POINTS
    mask, out = first_mask(NO_MASK.shape), {}
    for step in range(STEPS):
        prompts = Prompts(points, slot_labels(LABELS, step + 1), mask=mask)
        mask = model.decode(i["embedding"], prompts).low_res_logits
        out[f"pass {step}"] = mask[..., 0]
    return out


def _reference_refinement(t: Any, i: Arrays) -> Arrays:
    embedding = channels_first(i["reference embedding"])
    mask, out = channels_first(NO_MASK), {}
    for step in range(STEPS):
        used = slice(0, step + 1)
        mask, _ = _reference_pass(t, embedding, POINTS[:, used], LABELS[:, used], mask)
        out[f"pass {step}"] = mask[:, 0]
    return out


REFINEMENT = Case(
    "3-step click refinement, mask fed back", _full_inputs, _our_refinement, _reference_refinement
)

CASES: tuple[Case, ...] = (
    PATCH_EMBEDDING,
    WINDOWED_BLOCK,
    GLOBAL_BLOCK,
    ENCODER,
    DENSE_POSITION,
    CLICKS,
    PADDED_CLICKS,
    BOX_PROMPT,
    MASK_PROMPT,
    NO_MASK_PROMPT,
    DECODER,
    FULL_FORWARD,
    REFINEMENT,
)
