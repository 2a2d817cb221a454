"""Our side of the bench: encoder, refinement, training step and prediction as they are used."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from rtsam_jax.benchmark.flops import (
    decoder_flop,
    encoder_flop,
    encoder_grad_flop,
    refine_flop,
    upsample_flop,
)
from rtsam_jax.benchmark.timing import Contender
from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.sample import Sample
from rtsam_jax.evaluation.inference import make_crop_predictor
from rtsam_jax.losses import make_target, segmentation_loss
from rtsam_jax.models.initialise import draw_parameters
from rtsam_jax.models.layers import upsample
from rtsam_jax.models.presets import get_spec
from rtsam_jax.models.prompt_encoder import POSITIVE, UNUSED
from rtsam_jax.models.sam3d import SAM3D
from rtsam_jax.optim import make_optimizer
from rtsam_jax.prompts.clicks import foreground, sample_clicks
from rtsam_jax.prompts.dose import box_from_roi
from rtsam_jax.training.rules import trained_filter
from rtsam_jax.training.sharding import parameter_shardings, replicated, shard_batch
from rtsam_jax.training.state import TrainState, make_model
from rtsam_jax.training.step import make_train_step

SIDE = "rtsam_jax"
CLICK_SLOTS = 8  # of the click buffer in prediction, so that a further click compiles nothing
TASKS = 3
_STEPS = 1000  # of the learning rate's schedule


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
        text_id=np.arange(batch, dtype=np.int32) % TASKS,
        mirrored_text_id=np.arange(batch, dtype=np.int32) % TASKS,
        case_id=np.arange(batch, dtype=np.int32),
        weight=np.ones(batch, np.float32),
        view=np.full(batch, -1, np.int32),
    )


class OurSide:
    """One random model of a config, whose cases are compiled as they are asked for.

    Args:
        mesh: where parameters and batches lie; None: on the default device.
    """

    side = SIDE

    def __init__(self, cfg: ExperimentConfig, mesh: Mesh | None = None):
        self.cfg, self.mesh = cfg, mesh
        self.spec = get_spec(cfg.model.preset)
        model = nnx.eval_shape(lambda: make_model(cfg, TASKS))
        abstract = nnx.state(model)
        places = parameter_shardings(mesh, abstract) if mesh else None
        nnx.update(model, draw_parameters(abstract, cfg.seed, places))
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

        flop = encoder_flop(self.spec) * len(batch.image)
        return _contender(encode, flop, self.trained, self.frozen, self._place(batch).image)

    def encoder_grad(self, batch: Sample) -> Contender:
        """The encoder's forward pass, and the gradient of all its parameters."""
        model = nnx.merge(self.graphdef, self.trained, self.frozen)
        graphdef, parameters = nnx.split(model.image_encoder)

        def value_and_gradient(
            parameters: nnx.State, image: jax.Array, cotangent: jax.Array
        ) -> tuple[jax.Array, nnx.State]:
            value, pull = jax.vjp(lambda p: nnx.merge(graphdef, p)(image), parameters)
            return value, pull(cotangent)[0]

        image = self._place(batch).image
        flop = encoder_grad_flop(self.spec) * len(image)
        cotangent = _embedding(self.spec.grid, self.spec.prompt_width, len(image))
        return _contender(value_and_gradient, flop, parameters, image, cotangent)

    def refine(self, batch: Sample) -> Contender:
        """One pass from a ready embedding: decode, loss, new clicks, gradient; all slots filled."""
        cfg, spec = self.cfg, self.spec
        samples, keys = self._place(batch), jax.random.split(jax.random.key(0), len(batch.label))
        slots = cfg.click.iterations * cfg.click.per_iteration
        points = jax.random.uniform(keys[0], (len(keys), slots, 3), maxval=spec.image_size - 1)
        embedding = _embedding(spec.grid, spec.prompt_width, len(keys))
        draw = partial(sample_clicks, n=cfg.click.per_iteration, sampling=cfg.click.sampling)

        def loss(
            trained: nnx.State, frozen: nnx.State, samples: Sample, embedding: jax.Array
        ) -> tuple[jax.Array, Any]:
            model = nnx.merge(self.graphdef, trained, frozen)
            prompts = model.fixed_prompts(*box_from_roi(samples.roi), samples.text_id)
            prompts = prompts._replace(
                points=points,
                point_labels=jnp.ones(points.shape[:2], jnp.int32),
                mask=jnp.zeros((len(keys), *(spec.mask_size,) * 3, 1)),
            )
            masks = model.decode(embedding, prompts)
            target = make_target(samples.label, samples.roi)

            @jax.checkpoint  # as `prompts.clicks.refine` does by default
            def look(low_res: jax.Array, iou: jax.Array) -> tuple[jax.Array, Any]:
                logits = upsample(low_res[..., 0], spec.image_size)
                losses, _ = segmentation_loss(logits, target, iou, cfg.loss)
                predicted = foreground(jax.lax.stop_gradient(logits), cfg.click.threshold)
                return losses.mean(), jax.vmap(draw)(keys, predicted, target.truth)

            return look(masks.low_res_logits, masks.iou[:, 0])

        flop = refine_flop(spec, self._prompts) * len(keys)
        arguments = self.trained, self.frozen, samples, embedding
        return _contender(jax.grad(loss, has_aux=True), flop, *arguments)

    def step(self, batch: Sample) -> Contender:
        """The whole training step, with dose box and task prompt, as `rtsam_jax.train` runs it."""
        step, state = self.training()
        samples = self._place(batch)
        on_mesh = jax.set_mesh(self.mesh) if self.mesh else nullcontext()
        with on_mesh:
            compiled, seconds = compile_timed(step, state, self.frozen, samples)

        def run() -> None:
            nonlocal state
            state, metrics = compiled(state, self.frozen, samples)
            jax.block_until_ready((state, metrics))

        passes = 1 + self.cfg.click.iterations
        of_case = encoder_flop(self.spec) + passes * refine_flop(self.spec, self._prompts)
        return described(run, seconds, of_case * len(batch.image), compiled)

    def predict(self, batch: Sample) -> Contender:
        """One crop to probabilities on the host, box and task given; compiles in the first run."""
        params = nnx.merge_state(self.trained, self.frozen)
        predict = make_crop_predictor(self.graphdef, params, self.cfg, crops=1)
        arguments = batch.image[:1, ..., 0], batch.roi[:1], batch.text_id[:1]
        # Box, an empty click list's one token, and the task.
        flop = decoder_flop(self.spec, 3 + self.cfg.prompt.task_tokens)
        flop += encoder_flop(self.spec) + upsample_flop(self.spec)

        def run() -> None:
            predict(*arguments)

        return Contender(SIDE, run, None, flop, device_peak=_device_peak)

    def click(self, batch: Sample) -> Contender:
        """Decodes again with one more click, from a kept embedding and a mask of zeros."""
        spec, samples = self.spec, jax.tree.map(lambda x: jnp.asarray(x[:1]), batch)
        embedding = _embedding(spec.grid, spec.prompt_width, 1)
        mask = jnp.zeros((1, *(spec.mask_size,) * 3, 1))
        points = jnp.full((1, CLICK_SLOTS, 3), spec.image_size / 2)
        labels = jnp.full((1, CLICK_SLOTS), UNUSED).at[0, 0].set(POSITIVE)

        def decode(
            trained: nnx.State,
            frozen: nnx.State,
            given: tuple[jax.Array, jax.Array, jax.Array],
            points: jax.Array,
            labels: jax.Array,
        ) -> tuple[jax.Array, jax.Array]:
            model = nnx.merge(self.graphdef, trained, frozen)
            roi, text_id, mask = given
            prompts = model.fixed_prompts(*box_from_roi(roi), text_id)
            prompts = prompts._replace(points=points, point_labels=labels, mask=mask)
            low_res = model.decode(embedding, prompts).low_res_logits
            return low_res, jax.nn.sigmoid(upsample(low_res[..., 0], spec.image_size))

        given = samples.roi, samples.text_id, mask
        arguments = self.trained, self.frozen, given, points, labels
        compiled, seconds = compile_timed(jax.jit(decode), *arguments)

        def run() -> None:
            np.asarray(compiled(*arguments)[1])

        flop = decoder_flop(spec, CLICK_SLOTS + 3 + self.cfg.prompt.task_tokens)
        return described(run, seconds, flop + upsample_flop(spec), compiled)

    def training(self) -> tuple[Callable[..., Any], TrainState]:
        """The jitted step, and a state of copies, since the step donates it."""
        optimizer = make_optimizer(self.cfg.optim, steps=_STEPS)
        trained = jax.tree.map(jnp.copy, self.trained)
        # Committed to the mesh from the start: else the second step would be another program.
        counts = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.uint32)
        number, seed = jax.device_put(counts, self.mesh and replicated(self.mesh))
        state = TrainState(number, seed, trained, self._moments(optimizer))
        return make_train_step(self.graphdef, optimizer, self.cfg), state

    def _moments(self, optimizer: optax.GradientTransformation) -> Any:
        if self.mesh is None:
            return optimizer.init(self.trained)
        abstract = jax.eval_shape(optimizer.init, self.trained)
        places = parameter_shardings(self.mesh, abstract)
        return jax.jit(optimizer.init, out_shardings=places)(self.trained)

    def _place(self, batch: Sample) -> Sample:
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, batch)
        return shard_batch(self.mesh, batch)

    @property
    def _prompts(self) -> int:
        """Sparse tokens of a training pass: clicks and the one that ends them, box, task."""
        click = self.cfg.click
        return click.iterations * click.per_iteration + 3 + self.cfg.prompt.task_tokens


def _embedding(grid: int, width: int, batch: int) -> jax.Array:
    """Noise of the shape of an image embedding, `[B, g, g, g, C]`."""
    return jax.random.normal(jax.random.key(1), (batch, grid, grid, grid, width))


def _contender(function: Callable[..., Any], flop: float, *arguments: Any) -> Contender:
    """A function under `jit`, with the same arguments in every run."""
    compiled, seconds = compile_timed(jax.jit(function), *arguments)

    def run() -> None:
        jax.block_until_ready(compiled(*arguments))

    return described(run, seconds, flop, compiled)


def described(
    run: Callable[[], None], seconds: float, flop: float | None, compiled: Any
) -> Contender:
    """Our side of a case, with what XLA says about its program.

    Args:
        seconds: of the compilation.
        flop: of one run, by hand; None where nobody counted.
    """
    return Contender(
        SIDE,
        run,
        seconds,
        flop,
        xla_flop(compiled),
        temp_bytes=getattr(compiled.memory_analysis(), "temp_size_in_bytes", None),
        device_peak=_device_peak,
        compiled=compiled,
    )


def _device_peak() -> int | None:
    """The allocator's peak since the process began; the CPU's keeps none."""
    stats = jax.devices()[0].memory_stats()
    return stats.get("peak_bytes_in_use") if stats else None


def compile_timed(function: Any, *arguments: Any) -> tuple[Any, float]:
    """A jitted function compiled for its arguments, and the seconds that took."""
    start = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    return compiled, time.perf_counter() - start


def xla_flop(compiled: Any) -> float | None:
    """Floating point operations by XLA's cost analysis; None where the backend has none."""
    analysis = compiled.cost_analysis()
    return float(analysis["flops"]) if analysis and "flops" in analysis else None
