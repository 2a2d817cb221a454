"""A small model whose every parameter is random, zero-initialised tables included."""

from __future__ import annotations

import dataclasses

import numpy as np
from flax import nnx

from rtsam_jax.models.presets import ModelSpec, get_spec
from rtsam_jax.models.prompt_encoder import PromptSizes
from rtsam_jax.models.sam3d import SAM3D
from rtsam_jax.weights import load_into, model_variables


def random_model(
    seed: int = 0,
    *,
    tasks: int = 0,
    text_width: int = 0,
    compute_dtype: str = "float32",
    **sizes: object,
) -> SAM3D:
    """Preset `test`, changed by `sizes`; built abstractly and filled, which takes no compiler."""
    spec: ModelSpec = dataclasses.replace(get_spec("test"), **sizes)
    prompt = PromptSizes(tasks=tasks, text_width=text_width, adapter_width=24)
    model = nnx.eval_shape(
        lambda: SAM3D(spec, prompt=prompt, compute_dtype=compute_dtype, rngs=nnx.Rngs(0))
    )
    draw = np.random.default_rng(seed)
    load_into(
        model,
        {name: _value(name, v.shape, draw) for name, v in sorted(model_variables(model).items())},
    )
    return model


def _value(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    noise = draw.standard_normal(shape).astype(np.float32)
    if name.endswith("kernel"):
        return noise / np.sqrt(np.prod(shape[:-1], dtype=np.float32))
    if name.endswith("whitening"):
        return noise / np.sqrt(shape[0], dtype=np.float32)
    if name.endswith("scale"):
        return 1 + 0.2 * noise
    if name.endswith("bias") or "rel_pos" in name:
        return 0.3 * noise
    return noise
