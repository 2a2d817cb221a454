"""Fresh parameters: drawn by path, and what is drawn in a way of its own."""

from __future__ import annotations

import numpy as np
from flax import nnx

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.models.initialise import draw_parameters
from rtsam_jax.training.state import make_model
from rtsam_jax.weights import flatten


def drawn(seed: int) -> dict[str, np.ndarray]:
    cfg = ExperimentConfig()
    cfg.model.preset = "test"
    abstract = nnx.state(nnx.eval_shape(lambda: make_model(cfg, 3)))
    state = draw_parameters(abstract, seed)
    return {name: np.asarray(x) for name, x in flatten(nnx.to_pure_dict(state)).items()}


def test_the_seed_decides() -> None:
    first, again, other = drawn(0), drawn(0), drawn(1)
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
    name = "image_encoder.blocks.0.attn.qkv.kernel"
    assert abs(np.corrcoef(first[name].ravel(), other[name].ravel())[0, 1]) < 0.1


def test_patch_filters_are_smooth_and_of_unit_response() -> None:
    filters = drawn(0)["image_encoder.patch_embed.kernel"]  # [p, p, p, 1, width]
    assert abs(filters.std() * np.sqrt(filters.shape[0] ** 3) - 1) < 1e-3
    # Neighbouring weights agree, unlike white noise's, and little of a filter is its mean.
    a, b = filters[1:].ravel(), filters[:-1].ravel()
    assert np.corrcoef(a, b)[0, 1] > 0.7
    assert filters.mean((0, 1, 2)).std() < 0.2 * filters.std()
