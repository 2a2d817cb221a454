"""Training on fixed views: encoded in every step, or once and kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import grain
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.pipeline import ENDLESS, PromptIds, Share, in_batches
from rtsam_jax.data.prepared import PreparedCases
from rtsam_jax.data.sample import Sample, View
from rtsam_jax.data.views import FixedViews, Turn
from rtsam_jax.models.presets import get_spec
from rtsam_jax.models.sam3d import SAM3D
from rtsam_jax.models.text_adapter import TextTable
from rtsam_jax.training.kept_views import ViewEncoder, keep_views, read_crops
from rtsam_jax.training.sharding import gathered
from rtsam_jax.training.state import Built, TrainState
from rtsam_jax.training.step import StepMetrics, accumulate, batch_loss, row_keys, update
from rtsam_jax.training.stopping import StopRequest

Step = Callable[..., tuple[TrainState, StepMetrics]]


def make_view_step(
    graphdef: nnx.GraphDef[SAM3D],
    optimizer: optax.GradientTransformation,
    cfg: ExperimentConfig,
) -> Step:
    """The jitted step `(state, frozen, view, texts=None) -> (state, metrics)`: the decoder alone.

    Clicks are drawn by (seed, step), as in `make_train_step`. The state is donated.
    """

    def step(
        state: TrainState, frozen: nnx.State, view: View, texts: TextTable | None = None
    ) -> tuple[TrainState, StepMetrics]:
        view = view._replace(embedding=view.embedding.astype(jnp.float32))
        total = jnp.maximum(view.weight.sum(), 1)

        def gradients(rows: tuple[View, jax.Array]) -> tuple[nnx.State, StepMetrics]:
            def loss_fn(trained: nnx.State) -> tuple[jax.Array, StepMetrics]:
                model = nnx.merge(graphdef, trained, frozen)
                return batch_loss(model, *rows, total, cfg, texts)

            return jax.grad(loss_fn, has_aux=True)(gathered(state.trained))

        clicks = row_keys(cfg, state.seed, state.step, len(view.weight)).clicks
        found, metrics = accumulate(gradients, (view, clicks), cfg.accumulate)
        metrics = metrics._replace(grad_norm=optax.tree.norm(found))
        return update(optimizer, state, found), metrics

    return jax.jit(step, donate_argnums=0)


def view_training(
    built: Built,
    optimizer: optax.GradientTransformation,
    cfg: ExperimentConfig,
    cases: PreparedCases,
    *,
    names: Sequence[str],
    prompts: Sequence[PromptIds],
    mesh: Mesh,
    share: Share = Share(),  # noqa: B008  # immutable
    rows: int = 0,
    samples: int = ENDLESS,
    stop: StopRequest | None = None,
) -> tuple[Step, grain.MapDataset]:
    """A run on fixed views: its step and its batches, encoded views or, uncached, crops.

    Args:
        names: by case, its id.
        prompts: by case, what it may be told.
        share: which rows of a batch this process reads.
        rows: per batch; 0: `cfg.batch_size`.
        samples: of the whole run.
        stop: what a signal sets, in any process; None: nothing does.

    Raises:
        NotWritable: the views cannot be kept.
        RunStopped: a process was asked to while views were encoded; those are kept.
    """
    encoder = ViewEncoder(built, cfg, mesh)
    views = FixedViews.from_config(cfg, names, prompts, get_spec(cfg.model.preset).image_size)
    step = make_view_step(built.graphdef, optimizer, cfg)
    read: Callable[[list[Turn]], Any]
    if cfg.views.cache == "none":
        decode, read = step, read_crops(views, cases, cfg)

        def step(state: TrainState, frozen: nnx.State, batch: Sample, **more: Any) -> Any:
            return decode(state, frozen, encoder(batch), **more)
    else:
        check = None if stop is None else partial(stop.agree, int(built.state.step))
        kept = keep_views(
            encoder, views, cases, cfg, mesh=mesh, share=share, rows=rows, check=check
        )
        read = kept.read
    turns = views.turns(cases.task_ids if cfg.data.balance == "task" else None)
    batches = in_batches(
        turns, read, batch_size=cfg.batch_size, share=share, rows=rows, samples=samples
    )
    return step, batches
