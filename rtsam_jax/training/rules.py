"""One table of path rules: which parameter is trained, and how it is laid out over the mesh.

The first pattern that matches a parameter's path (`image_encoder/blocks/0/attn/qkv/kernel`)
decides. Sharding over more axes than the batch's replaces the empty `PartitionSpec`s here and
nothing elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flax import nnx
from jax.sharding import PartitionSpec


@dataclass(frozen=True)
class Rule:
    """`trained`: True, False, or "unfrozen" (only where the config does not freeze the encoder)."""

    pattern: str
    trained: bool | str
    sharding: PartitionSpec = PartitionSpec()


RULES = (
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


def trained_filter(freeze_encoder: bool) -> Callable[[tuple[Any, ...], Any], bool]:
    """A filter for `nnx.split` that selects what the optimiser sees."""

    def trained(path: tuple[Any, ...], value: Any) -> bool:
        if not isinstance(value, nnx.Variable) or not isinstance(value, nnx.Param):
            return False
        rule = rule_for(path_of(path))
        return rule.trained is True or (rule.trained == "unfrozen" and not freeze_encoder)

    return trained
