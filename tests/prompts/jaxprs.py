"""Reading jaxprs: what a function would compute, without running it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation, through scan, checkpoint, jit and the like."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def largest_random_array(function: Callable[..., Any], *args: Any) -> int:
    """The size of the largest array of random bits in a function's jaxpr."""
    sizes = [
        max(out.aval.size for out in equation.outvars)
        for equation in equations(jax.make_jaxpr(function)(*args).jaxpr)
        if equation.primitive.name in ("random_bits", "threefry2x32")
    ]
    assert sizes
    return max(sizes)
