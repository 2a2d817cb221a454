"""The authors' PyTorch model and ours with the same random weights, and what compares them.

Every parameter is random. Standard deviations are chosen so that no mistake can hide: attention
neither uniform nor saturated, variances before the norms small enough (about 1e-3) for their
epsilon to matter, GELU fed around -2, where its tanh form differs most in relation to its value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import medim
import numpy as np
import torch
from flax import nnx

from converters.sam_med3d import to_flax
from rtsam_jax.models.presets import get_spec
from rtsam_jax.models.sam3d import SAM3D
from rtsam_jax.weights import load_into

PRESET = "vit_b_ori"

# First match decides: regular expression of the PyTorch key -> mean and standard deviation.
_SCALES: tuple[tuple[str, float, float], ...] = (
    # Image encoder: a residual stream of about 0.03, so that the norms' epsilon counts.
    (r"image_encoder\.pos_embed", 0.0, 0.02),
    (r"patch_embed\.proj\.weight", 0.0, 5e-4),
    (r"patch_embed\.proj\.bias", 0.0, 0.01),
    (r"rel_pos", 0.0, 0.2),
    (r"image_encoder.*norm\d\.weight", 1.0, 0.2),
    (r"image_encoder.*norm\d\.bias", 0.0, 0.2),
    (r"attn\.qkv\.weight", 0.0, 0.042),
    (r"attn\.qkv\.bias", 0.0, 0.4),
    (r"attn\.proj\.weight", 0.0, 0.004),
    (r"image_encoder.*mlp\.lin1\.weight", 0.0, 0.01),
    (r"image_encoder.*mlp\.lin1\.bias", -2.0, 0.2),
    (r"image_encoder.*mlp\.lin2\.weight", 0.0, 0.012),
    (r"image_encoder.*(proj|lin2)\.bias", 0.0, 0.01),
    (r"neck\.0\.weight", 0.0, 0.007),
    (r"neck\.2\.weight", 0.0, 3e-4),
    (r"neck\.[13]\.weight", 1.0, 0.2),
    (r"neck\.[13]\.bias", 0.0, 0.2),
    # Prompt encoder
    (r"mask_downscaling\.0\.", 0.0, 0.03),
    (r"mask_downscaling\.3\.weight", 0.0, 0.1),
    (r"mask_downscaling\.3\.bias", 0.0, 0.03),
    (r"mask_downscaling\.[14]\.weight", 0.4, 0.1),
    (r"mask_downscaling\.[14]\.bias", -2.0, 0.2),
    (r"mask_downscaling\.6\.weight", 0.0, 2.5),
    (r"mask_downscaling\.6\.bias", 0.0, 0.3),
    (r"prompt_encoder", 0.0, 1.0),  # embeddings and the Gaussian matrix
    # Mask decoder: first self-attention and last norm see small variances.
    (r"layers\.0\.self_attn\.out_proj", 0.0, 0.002),
    (r"layers\.1\.norm3\.(weight|bias)", 0.0, 0.03),
    (r"final_attn.*out_proj", 0.0, 0.002),
    (r"transformer.*norm\w*\.weight", 1.0, 0.2),
    (r"transformer.*norm\w*\.bias", 0.0, 0.2),
    (r"transformer.*mlp\.lin2\.weight", 0.0, 0.02),
    (r"transformer.*weight", 0.0, 0.05),
    (r"transformer.*bias", 0.0, 0.2),
    (r"(iou_token|mask_tokens)", 0.0, 1.0),
    (r"output_upscaling\.0\.weight", 0.0, 1.5e-3),
    (r"output_upscaling\.0\.bias", 0.0, 0.02),
    (r"output_upscaling\.1\.weight", 0.4, 0.1),
    (r"output_upscaling\.1\.bias", -2.0, 0.2),
    (r"output_upscaling\.3\.weight", 0.0, 0.6),
    (r"output_upscaling\.3\.bias", -2.0, 0.2),
    (r"(hypernetworks|iou_prediction).*weight", 0.0, 0.07),
    (r"(hypernetworks|iou_prediction).*bias", 0.0, 0.2),
)


def random_state(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """One draw of every parameter and buffer, by PyTorch key."""
    rng = np.random.default_rng(seed)
    state = {}
    for key, shape in shapes.items():
        mean, std = next((m, s) for pattern, m, s in _SCALES if re.search(pattern, key))
        noise = rng.standard_normal(shape, dtype=np.float32)
        noise *= np.float32(std)
        noise += np.float32(mean)
        state[key] = noise
    return state


@dataclass
class Pair:
    """Reference and port with equal weights, and the inputs both are given."""

    torch_model: torch.nn.Module
    model: SAM3D
    state: dict[str, np.ndarray]
    corners: np.ndarray  # [2, 384], the corner embeddings the reference does not have
    image: np.ndarray  # [1, 128, 128, 128, 1]
    cache: dict[str, object] = field(default_factory=dict)


def build_pair(seed: int = 0) -> Pair:
    """Both models; the port is filled by the converter, in memory."""
    with torch.device("meta"):  # skips PyTorch's own initialisation
        reference = medim.create_model("SAM-Med3D")
    shapes = {key: tuple(t.shape) for key, t in reference.state_dict().items()}
    state = random_state(shapes, seed)
    tensors = {key: torch.from_numpy(array) for key, array in state.items()}
    reference.load_state_dict(tensors, strict=True, assign=True)
    reference.eval()

    rng = np.random.default_rng(seed + 1)
    corners = rng.standard_normal((2, 384), dtype=np.float32)
    params, _ = to_flax(state, PRESET)
    model = nnx.eval_shape(lambda: SAM3D(get_spec(PRESET), rngs=nnx.Rngs(0)))
    load_into(model, params | {"prompt_encoder.corner_embed": corners})
    image = rng.standard_normal((1, 128, 128, 128, 1), dtype=np.float32)
    return Pair(reference, model, state, corners, image)


def relative_error(ours: object, reference: object) -> float:
    """||a - b|| / ||b|| in float64."""
    a = np.asarray(ours, np.float64)
    b = np.asarray(reference, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def channels_first(array: np.ndarray) -> torch.Tensor:
    """`[B, D, H, W, C]` -> `[B, C, D, H, W]`."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(array), -1, 1)))


def channels_last(tensor: torch.Tensor) -> np.ndarray:
    """`[B, C, D, H, W]` -> `[B, D, H, W, C]`."""
    return np.moveaxis(tensor.detach().numpy(), 1, -1)


@contextmanager
def recorded_entropy() -> Iterator[list[tuple[int, float]]]:
    """Notes for every softmax of the reference (number of keys, mean entropy / log of it).

    0 is one-hot, 1 is uniform. Rows are thinned out where there are many.
    """
    seen: list[tuple[int, float]] = []
    originals = torch.softmax, torch.Tensor.softmax

    def note(p: torch.Tensor) -> torch.Tensor:
        rows = p.detach().reshape(-1, p.shape[-1])
        rows = rows[:: max(1, rows.shape[0] // 500)].double()
        entropy = -(rows * rows.clamp_min(1e-300).log()).sum(-1).mean()
        seen.append((p.shape[-1], float(entropy / np.log(p.shape[-1]))))
        return p

    try:
        torch.softmax = lambda x, dim: note(originals[0](x, dim))
        torch.Tensor.softmax = lambda x, dim: note(originals[1](x, dim))
        yield seen
    finally:
        torch.softmax, torch.Tensor.softmax = originals
