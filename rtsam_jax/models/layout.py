"""Where activations lie on a mesh: the names of its axes; how long they are, nothing here knows."""

from __future__ import annotations

import math

import jax
from jax.sharding import PartitionSpec

Array = jax.Array
Axes = str | tuple[str, ...] | None

BATCH = ("data", "fsdp")
HEADS = "tensor"


def placed(x: Array, *axes: Axes) -> Array:
    """`x` with its dimensions divided over mesh axes, `None` for whole; without a mesh, `x`.

    A dimension that does not divide stays whole.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    if math.prod(sizes.values()) == 1:
        return x
    spec = []
    for length, entry in zip(x.shape, axes, strict=True):
        names = (entry,) if isinstance(entry, str) else entry or ()
        divides = length % math.prod(sizes.get(name, 1) for name in names) == 0
        spec.append(entry if divides else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))
