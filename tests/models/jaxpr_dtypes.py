"""Which primitives a function runs on which dtypes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tests.prompts.jaxprs import equations


def input_dtypes(function: Callable[..., Any], *arguments: Any) -> dict[str, set[str]]:
    """Primitive name -> dtypes of its floating-point inputs, inner functions included."""
    found: dict[str, set[str]] = defaultdict(set)
    for equation in equations(jax.make_jaxpr(function)(*arguments).jaxpr):
        for operand in equation.invars:
            if jnp.issubdtype(operand.aval.dtype, jnp.floating):
                found[equation.primitive.name].add(str(operand.aval.dtype))
    return found
