"""One table of path rules: which parameter is trained, and how it is laid out over the mesh.

The first pattern that matches a parameter's path (`image_encoder/blocks/0/attn/qkv/kernel`)
decides. Heads and hidden channels of the encoder are divided over `tensor`: columns of the first
product, rows of the second, so that a block adds up over `tensor` twice (Megatron-LM, Sec. 3). The
decoder is not: its share of the work is small, and its tokens are few. What is large is divided
over `fsdp` and gathered where it is used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flax import nnx
from jax.sharding import PartitionSpec

# Parameters of fewer elements (16 KiB) are not divided over `fsdp`: gathering one takes a link's
# latency, whatever its size.
FSDP_FROM = 2**12


@dataclass(frozen=True)
class Rule:
    """`trained`: True, False, or "unfrozen" (only where the config does not freeze the encoder).

    `sharding` is of the last dimensions, those before them stay whole.
    """

    pattern: str
    trained: bool | str
    sharding: PartitionSpec = PartitionSpec("fsdp")


_BLOCK = r"image_encoder/blocks/\d+/"

RULES = (
    # Columns are (q, k, v) x heads x channels, so an equal part of them is no part of the heads.
    # Divided by rows, one exchange of the weights over `tensor` makes heads of it.
    Rule(_BLOCK + "attn/qkv/kernel", "unfrozen", PartitionSpec(("tensor", "fsdp"), None)),
    Rule(_BLOCK + "attn/proj/kernel", "unfrozen", PartitionSpec("tensor", "fsdp")),
    Rule(_BLOCK + "mlp/lin1/kernel", "unfrozen", PartitionSpec("fsdp", "tensor")),
    Rule(_BLOCK + "mlp/lin1/bias", "unfrozen", PartitionSpec("tensor")),
    Rule(_BLOCK + "mlp/lin2/kernel", "unfrozen", PartitionSpec("tensor", "fsdp")),
    Rule(r"image_encoder/", trained="unfrozen"),
    # Constant of the published weights: random Fourier frequencies.
    Rule(r"prompt_encoder/position/gaussian", trained=False),
    # The loop always feeds a mask, zeros first (reference trap 9), so this embedding has no
    # gradient; excluded lest weight decay shrink it.
    Rule(r"prompt_encoder/no_mask_embed", trained=False),
    Rule(r"prompt_encoder/", trained=True),
    Rule(r"mask_decoder/", trained=True),
)


def path_of(path: tuple[Any, ...]) -> str:
    """The path of a parameter as one string, parts joined by slashes."""
    return "/".join(map(str, path))


def rule_for(path: str) -> Rule:
    """The first rule whose pattern starts the path; `KeyError` if a new parameter has none."""
    for rule in RULES:
        if re.match(rule.pattern, path):
            return rule
    raise KeyError(f"no rule in rtsam_jax/training/rules.py covers parameter {path}")


def placement(path: str, shape: tuple[int, ...], mesh: Mapping[str, int]) -> PartitionSpec:
    """How a parameter lies on a mesh; an axis that does not divide its dimension is left out.

    Args:
        path: of the parameter, see `path_of`.
        shape: its shape.
        mesh: sizes of the axes by name.
    """
    wanted = rule_for(path).sharding
    small = math.prod(shape) < FSDP_FROM
    dims: list[tuple[str, ...] | None] = []
    for size, entry in zip(shape, (None,) * (len(shape) - len(wanted)) + wanted, strict=True):
        kept: tuple[str, ...] = ()
        for axis in (entry,) if isinstance(entry, str) else entry or ():
            parts = math.prod(mesh[name] for name in (*kept, axis))
            if mesh[axis] > 1 and size % parts == 0 and not (small and axis == "fsdp"):
                kept += (axis,)
        dims.append(kept or None)
    while dims and dims[-1] is None:
        dims.pop()
    return PartitionSpec(*dims)


def trained_filter(freeze_encoder: bool) -> Callable[[tuple[Any, ...], Any], bool]:
    """A filter for `nnx.split` that selects what the optimiser sees."""

    def trained(path: tuple[Any, ...], value: Any) -> bool:
        if not isinstance(value, nnx.Variable) or not isinstance(value, nnx.Param):
            return False
        rule = rule_for(path_of(path))
        return rule.trained is True or (rule.trained == "unfrozen" and not freeze_encoder)

    return trained
