"""Layers against their formulas in float64."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from rtsam_jax.models.layers import gelu


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 4e-3)])
def test_gelu_is_exact_and_does_not_cancel(dtype: str, tolerance: float) -> None:
    """Far in the negative tail 1 + erf keeps few digits, which bfloat16 could not spare."""
    x = jnp.linspace(-3, 6, 901, dtype=dtype)
    wide = np.asarray(x, np.float64)
    wanted = 0.5 * wide * special.erfc(-wide / np.sqrt(2))
    got = gelu(x)
    assert got.dtype == x.dtype
    np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=tolerance, atol=1e-6)
