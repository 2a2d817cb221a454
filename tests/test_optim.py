"""The schedule and the optimiser, against the paper's numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtsam_jax.config import OptimConfig
from rtsam_jax.optim import learning_rate, make_optimizer


def rates(cfg: OptimConfig, steps: int) -> np.ndarray:
    schedule = learning_rate(cfg, steps)
    return np.array([float(schedule(step)) for step in range(steps)])


def test_multistep() -> None:
    found = rates(OptimConfig(lr=3e-4, milestones=(0.6, 0.8), decay=0.1), 10)
    np.testing.assert_allclose(found, [3e-4] * 6 + [3e-5] * 2 + [3e-6] * 2, rtol=1e-5)


def test_without_milestones() -> None:
    np.testing.assert_allclose(rates(OptimConfig(lr=2.0, milestones=()), 5), 2.0)


def test_warm_up_moves_no_milestone() -> None:
    plain = rates(OptimConfig(lr=1.0), 20)
    warm = rates(OptimConfig(lr=1.0, warmup_steps=4), 20)
    np.testing.assert_allclose(warm[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
    np.testing.assert_allclose(warm[4:], plain[4:], rtol=1e-6)


def test_a_warm_up_of_one_step_is_none() -> None:
    np.testing.assert_allclose(
        rates(OptimConfig(warmup_steps=1), 10), rates(OptimConfig(), 10), rtol=1e-6
    )


def test_first_step_of_adamw() -> None:
    """Bias-corrected: lr * (sign of the gradient + decay * parameter)."""
    cfg = OptimConfig(lr=0.1, weight_decay=0.5)
    optimizer = make_optimizer(cfg, 10)
    params = {"w": jnp.array([2.0, -1.0])}
    updates, _ = optimizer.update({"w": jnp.array([3.0, -4.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.1 * (1 + 1.0), -0.1 * (-1 - 0.5)], rtol=1e-5)


@pytest.mark.parametrize("norm", [0.0, 1.0])
def test_clipping(norm: float) -> None:
    """Seen in the second moment: Adam's own update hardly depends on the gradient's scale."""
    cfg = OptimConfig(clip_norm=norm, b1=0.9, b2=0.999)
    optimizer = make_optimizer(cfg, 10)
    params = {"w": jnp.zeros(1)}
    _, state = optimizer.update({"w": jnp.array([4.0])}, optimizer.init(params), params)
    moments = [float(x[0]) for x in jax.tree.leaves(state) if jnp.ndim(x)]
    scale = 1.0 if norm else 4.0
    np.testing.assert_allclose(moments, [0.1 * scale, 0.001 * scale**2], rtol=1e-4)
