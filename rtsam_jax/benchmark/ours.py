"""Our side of the bench: the encoder and the training step as they are used."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rtsam_jax.benchmark.flops import encoder_flop
from rtsam_jax.benchmark.timing import Contender
from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.sample import Sample
from rtsam_jax.models.initialise import draw_parameters
from rtsam_jax.models.presets import get_spec
from rtsam_jax.models.sam3d import SAM3D
from rtsam_jax.optim import make_optimizer
from rtsam_jax.training.rules import trained_filter
from rtsam_jax.training.state import TrainState, make_model
from rtsam_jax.training.step import make_train_step

SIDE = "rtsam_jax"
_TASKS = 3


def synthetic_batch(size: int, batch: int, seed: int = 0) -> Sample:
    """Noise with a ball as truth inside a larger ball as high-dose region. Nothing clinical."""
    rng = np.random.default_rng(seed)
    axes = np.ogrid[:size, :size, :size]
    distance = np.sqrt(sum((axis - size / 2) ** 2 for axis in axes))

    def balls(radius: float) -> np.ndarray:
        return np.broadcast_to(distance < radius, (batch, *distance.shape)).astype(np.uint8)

    return Sample(
        image=rng.standard_normal((batch, size, size, size, 1), dtype=np.float32),
        label=balls(size / 8),
        roi=balls(size / 4),
        text_id=np.arange(batch, dtype=np.int32) % _TASKS,
        mirrored_text_id=np.arange(batch, dtype=np.int32) % _TASKS,
        case_id=np.arange(batch, dtype=np.int32),
    )


class OurSide:
    """One random model of a config, whose cases are compiled as they are asked for."""

    def __init__(self, cfg: ExperimentConfig):
        self.cfg = cfg
        model = nnx.eval_shape(lambda: make_model(cfg, _TASKS))
        nnx.update(model, draw_parameters(nnx.state(model), cfg.seed))
        self.graphdef: nnx.GraphDef[SAM3D]
        self.trained: nnx.State
        self.frozen: nnx.State
        self.graphdef, self.trained, self.frozen = nnx.split(  # type: ignore[misc]
            model, trained_filter(cfg.model.freeze_encoder), ...
        )

    def encoder(self, batch: Sample) -> Contender:
        """The encoder's forward pass."""

        def encode(trained: nnx.State, frozen: nnx.State, image: jax.Array) -> jax.Array:
            return nnx.merge(self.graphdef, trained, frozen).encode(image)

        arguments = self.trained, self.frozen, jnp.asarray(batch.image)
        compiled, seconds = compile_timed(jax.jit(encode), *arguments)

        def run() -> None:
            jax.block_until_ready(compiled(*arguments))

        flop = encoder_flop(get_spec(self.cfg.model.preset)) * batch.image.shape[0]
        return Contender(SIDE, run, seconds, flop, xla_flop(compiled))

    def step(self, batch: Sample) -> Contender:
        """The whole training step, with dose box and task prompt, as `rtsam_jax.train` runs it."""
        optimizer = make_optimizer(self.cfg.optim, steps=1000)
        # The step donates its state, so it gets copies.
        trained = jax.tree.map(jnp.copy, self.trained)
        state = TrainState(jnp.zeros((), jnp.int32), trained, optimizer.init(trained))
        samples = jax.tree.map(jnp.asarray, batch)
        step = make_train_step(self.graphdef, optimizer, self.cfg)
        compiled, seconds = compile_timed(step, state, self.frozen, samples)

        def run() -> None:
            nonlocal state
            state, metrics = compiled(state, self.frozen, samples)
            jax.block_until_ready((state, metrics))

        return Contender(SIDE, run, seconds, xla_flop=xla_flop(compiled))


def compile_timed(function: Any, *arguments: Any) -> tuple[Any, float]:
    """A jitted function compiled for its arguments, and the seconds that took."""
    start = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    return compiled, time.perf_counter() - start


def xla_flop(compiled: Any) -> float | None:
    """Floating point operations by XLA's cost analysis; None where the backend has none."""
    analysis = compiled.cost_analysis()
    return float(analysis["flops"]) if analysis and "flops" in analysis else None
