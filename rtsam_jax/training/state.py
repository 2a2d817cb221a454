"""The train state: built abstractly, sharded, then materialised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.errors import EncoderWeightsMissing
from rtsam_jax.models.initialise import draw_parameters
from rtsam_jax.models.presets import get_spec
from rtsam_jax.models.prompt_encoder import PromptSizes
from rtsam_jax.models.sam3d import SAM3D
from rtsam_jax.training.initial import CORNERS, initial_parameters
from rtsam_jax.training.rules import trained_filter
from rtsam_jax.training.sharding import parameter_shardings, replicated
from rtsam_jax.weights import OWN_PARAMETERS, check_fit


@jax.tree_util.register_dataclass
@dataclass
class TrainState:
    """What a step changes, and what it draws from. `trained` holds only what the optimiser sees."""

    step: jax.Array  # int32 []
    seed: jax.Array  # uint32 [], of the config; not in the program, so that seeds share one
    trained: nnx.State
    opt_state: Any


@dataclass
class Built:
    """A model ready to train: `nnx.merge(graphdef, state.trained, frozen)` gives the module."""

    graphdef: nnx.GraphDef[SAM3D]
    frozen: nnx.State  # never donated, never differentiated
    state: TrainState


def make_model(cfg: ExperimentConfig, tasks: int, text_width: int = 0) -> SAM3D:
    """The module a config asks for, every parameter zero; see `rtsam_jax.models.initialise`.

    Args:
        tasks: how many the dataset has.
        text_width: channels of a text feature; 0 where the config uses no text.
    """
    sizes = PromptSizes(
        tasks=tasks if cfg.prompt.task == "embedding" else 0,
        tokens=1 if cfg.prompt.pooling == "tokens" and text_width else cfg.prompt.task_tokens,
        text_width=text_width,
        adapter_width=cfg.prompt.adapter_width,
    )
    return SAM3D(
        get_spec(cfg.model.preset),
        prompt=sizes,
        compute_dtype=cfg.model.compute_dtype,
        remat=cfg.model.remat == "blocks" and not cfg.model.freeze_encoder,
        rngs=nnx.Rngs(0),
    )


def abstract_model(
    cfg: ExperimentConfig, tasks: int, mesh: Mesh, *, text_width: int = 0
) -> tuple[nnx.GraphDef[SAM3D], nnx.State]:
    """A module's graph and its parameters as shapes with shardings; nothing is allocated."""
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: make_model(cfg, tasks, text_width)))
    params = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        parameter_shardings(mesh, shapes),
    )
    return graphdef, params


def require_encoder_weights(cfg: ExperimentConfig) -> None:
    """Raises `EncoderWeightsMissing` for a frozen encoder without a checkpoint to take it from."""
    if cfg.model.freeze_encoder and not cfg.model.checkpoint:
        raise EncoderWeightsMissing(
            "config.model.freeze_encoder is True but config.model.checkpoint is empty, so the "
            "image encoder would stay random for ever: give a folder written by "
            "converters.sam_med3d or that of a run, or set config.model.freeze_encoder=False to "
            "train from scratch."
        )


def build(
    cfg: ExperimentConfig,
    tasks: int,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    text_width: int = 0,
    constants: Mapping[str, Any] | None = None,
) -> Built:
    """Makes the state on the mesh, from `cfg.model.checkpoint` where one is given.

    The model is built abstractly, every array is then made in its own sharding.

    Args:
        tasks: how many tasks the dataset has.
        text_width: channels of a text feature; 0 where the config uses no text.
        constants: of the text adapter, by dotted name (`PromptSet.constants`).

    Raises:
        EncoderWeightsMissing: the encoder is frozen and there is no checkpoint to take it from.
        MissingFile, PresetMismatch, CheckpointIncomplete, CheckpointError: of the checkpoint.
    """
    require_encoder_weights(cfg)
    model = nnx.eval_shape(lambda: make_model(cfg, tasks, text_width))
    given = initial_parameters(cfg)
    if given:
        check_fit(model, given, allow_new=OWN_PARAMETERS)
    given |= constants or {}
    abstract = nnx.state(model)
    shardings = parameter_shardings(mesh, abstract)
    nnx.update(model, draw_parameters(abstract, cfg.seed, shardings, given))
    if cfg.model.corner_init == "positive_point" and CORNERS not in given:
        embeddings = model.prompt_encoder
        embeddings.corner_embed[...] = jnp.broadcast_to(
            embeddings.point_embed[...][1], embeddings.corner_embed.shape
        )
    graphdef, trained, frozen = nnx.split(  # type: ignore[misc]  # mypy misreads the overload
        model, trained_filter(cfg.model.freeze_encoder), ...
    )
    moments = parameter_shardings(mesh, jax.eval_shape(optimizer.init, trained))
    opt_state = jax.jit(optimizer.init, out_shardings=moments)(trained)
    counts = jnp.zeros((), jnp.int32), jnp.asarray(cfg.seed, jnp.uint32)
    step, seed = jax.device_put(counts, replicated(mesh))
    return Built(graphdef, frozen, TrainState(step, seed, trained, opt_state))
