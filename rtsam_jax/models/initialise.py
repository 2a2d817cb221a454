"""How a fresh model's parameters are drawn: one table, applied leaf by leaf.

Modules are built with zeros; here each parameter is drawn on its own, from a stream seeded with
(seed, path), and put straight into its sharding. On the host, because compiling the initialisation
took XLA longer than running it is worth (36 s of CPU time for the test preset, whole or leaf by
leaf).
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from scipy import ndimage

# First match decides; scales follow the reference's layers where it draws, and are otherwise ours.
_TABLE = (
    (r".*rel_pos_[dhw]$", "zeros"),  # as in the reference: learned from nothing
    (r".*/norm\w*/scale$", "ones"),
    (r".*text_adapter/centre$", "zeros"),  # both are measured where there are texts
    (r".*text_adapter/whitening$", "identity"),
    (r".*/norm\w*/bias$", "zeros"),
    # Unit scale, not the usual 0.02: tokens start with unit scale too, and positions that they
    # drown cost a training from scratch a third of its steps.
    (r".*pos_embed$", "normal"),
    (r".*(_embed|_tokens?|gaussian)$", "normal"),
    # The first mask prompt is all zeros, and the norm after a convolution without bias would
    # divide by the square root of its epsilon.
    (r"prompt_encoder/mask_downscaling/conv\d/bias$", "normal"),
    (r".*/bias$", "zeros"),
    (r"mask_decoder/upscaling/conv\d/kernel$", "fan_last"),  # every output voxel has one input
    # What a patch holds is smooth: of white noise as filters, most of the response is noise.
    (r"image_encoder/patch_embed/kernel$", "smooth"),
    (r".*/kernel$", "fan_all"),
)


def _kind(path: str) -> str:
    for pattern, kind in _TABLE:
        if re.match(pattern, path):
            return kind
    raise KeyError(f"rtsam_jax/models/initialise.py has no rule for parameter {path}")


def _draw(seed: int, path: str, shape: tuple[int, ...]) -> np.ndarray:
    kind = _kind(path)
    if kind in ("zeros", "ones"):
        return np.full(shape, float(kind == "ones"), np.float32)
    if kind == "identity":
        return np.eye(*shape, dtype=np.float32)
    fan_in = {"fan_last": shape[-2:-1], "fan_all": shape[:-1], "smooth": shape[:-1]}.get(kind, ())
    scale = math.prod(fan_in) ** -0.5
    stream = np.random.default_rng([seed, zlib.crc32(path.encode())])
    noise = stream.standard_normal(shape, np.float32).clip(-3, 3)
    return np.float32(scale) * (_smooth(noise) if kind == "smooth" else noise)


def _smooth(noise: np.ndarray) -> np.ndarray:
    """Filters `[p, p, p, C_in, C_out]` without fine detail, at unit scale.

    Most of each filter's mean is taken out, since otherwise all of them would answer to a patch's
    brightness alone.
    """
    sigma = 3 / 16 * noise.shape[0]
    filters = ndimage.gaussian_filter(noise, (sigma,) * 3 + (0, 0), mode="nearest")
    filters -= 0.8 * filters.mean((0, 1, 2), keepdims=True)
    return filters / filters.std()


def draw_parameters(
    abstract: nnx.State,
    seed: int,
    shardings: Any = None,
    given: Mapping[str, Any] | None = None,
) -> nnx.State:
    """A state of fresh arrays for an abstract one (of `nnx.eval_shape` or a zero model).

    Args:
        abstract: state whose leaves have shapes.
        seed: the same seed gives the same parameter whatever the other parameters are.
        shardings: a tree of the same structure, or None for the default device.
        given: arrays by dotted name that are taken instead of being drawn.
    """
    given = given or {}
    leaves, structure = jax.tree_util.tree_flatten_with_path(abstract)
    places = [None] * len(leaves) if shardings is None else jax.tree.leaves(shardings)
    out = []
    for (path, leaf), place in zip(leaves, places, strict=True):
        name = "/".join(_names(path))
        value = given.get(name.replace("/", "."))
        if value is None:
            value = _draw(seed, name, tuple(leaf.shape))
        out.append(jax.device_put(np.asarray(value, np.float32), place))
    return jax.tree.unflatten(structure, out)


def _names(path: tuple[Any, ...]) -> list[str]:
    """The keys of a pytree path that name the parameter, without the variable's own `value`."""
    keys = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
    return [key for key in keys if key != "value"]
