"""The rivals' loss is our model's: value and gradient, whatever its weights."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax import losses
from rtsam_jax.config import LossConfig
from rtsam_jax.rivals.losses import recipe, segmentation_loss
from tests.rivals import needs

torch = needs.torch()

WEIGHTS = st.sampled_from([0.0, 0.3, 1.0])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999),
    weights=st.tuples(WEIGHTS, WEIGHTS, WEIGHTS).filter(any),
    alpha=st.sampled_from([0.3, 0.5]),
    gamma=st.sampled_from([0.75, 1.0, 1.33]),
    densities=st.tuples(*[st.sampled_from([0.0, 0.3, 1.0])] * 2),
    scale=st.sampled_from([0.1, 3.0, 40.0]),
)
def test_value_and_gradient_are_those_of_our_loss(
    seed: int,
    weights: tuple[float, float, float],
    alpha: float,
    gamma: float,
    densities: tuple[float, float],
    scale: float,
) -> None:
    dice, focal_tversky, dice_ce = weights
    cfg = LossConfig(
        dice=dice, focal_tversky=focal_tversky, dice_ce=dice_ce, alpha=alpha, gamma=gamma
    )
    rng = np.random.default_rng(seed)
    shape = (2, 4, 3, 5)
    logits = rng.normal(0, scale, shape).astype(np.float32)
    label, roi = (rng.random(shape) < density for density in densities)

    def ours(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        target = losses.make_target(jnp.asarray(label), jnp.asarray(roi))
        loss, _ = losses.segmentation_loss(x, target, None, cfg)
        return loss.sum(), loss

    slope, loss = jax.grad(ours, has_aux=True)(jnp.asarray(logits))
    x = torch.from_numpy(logits).requires_grad_()
    found = segmentation_loss(x, torch.from_numpy(label), torch.from_numpy(roi), cfg)
    found.sum().backward()
    np.testing.assert_allclose(found.detach(), loss, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(x.grad, slope, rtol=1e-4, atol=1e-6)


def test_a_recipe_is_dice_ce_alone_or_the_configs_weights() -> None:
    cfg = LossConfig(dice=0.7, focal_tversky=0.3, dice_ce=0.5, epsilon=2.0)
    assert recipe("ours", cfg) == cfg
    plain = dataclasses.replace(cfg, dice=0.0, focal_tversky=0.0, dice_ce=1.0)
    assert recipe("dice_ce", cfg) == plain
