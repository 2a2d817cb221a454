"""One training step: augment, encode, refine by simulated clicks in one scan, score, update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.augment import augment
from rtsam_jax.data.sample import Sample, View
from rtsam_jax.losses import dice_score, make_target, segmentation_loss, weigh_passes
from rtsam_jax.models.layers import upsample
from rtsam_jax.models.presets import get_spec
from rtsam_jax.models.sam3d import SAM3D
from rtsam_jax.models.text_adapter import TextTable
from rtsam_jax.prompts.clicks import click_keys, refine
from rtsam_jax.prompts.dose import box_from_roi, fill_box, jitter_box
from rtsam_jax.training.sharding import gathered, laid_out
from rtsam_jax.training.state import TrainState

Array = jax.Array


class StepMetrics(NamedTuple):
    """What a step reports: means over the rows that count, wherever they lie.

    `case_loss` is per row, so that a NaN can be given a name.
    """

    loss: Array  # []
    case_loss: Array  # [B]
    parts: dict[str, Array]  # each []: loss terms, and how many truths lie outside the ROI
    dice_fixed: Array  # []: first pass, text and box alone, the test mode
    dice_clicked: Array  # []: last pass
    grad_norm: Array  # []


class ViewKeys(NamedTuple):
    """Keys of what changes a crop, by row."""

    augment: Array  # [B]
    box: Array  # [B]


class RowKeys(NamedTuple):
    """Keys of a batch, by row: what a row draws depends on no other row."""

    view: ViewKeys
    clicks: Array  # [B, 1 + iterations]


def row_keys(cfg: ExperimentConfig, seed: int | Array, step: Array, rows: int) -> RowKeys:
    """All that step number `step` of a run with that seed draws."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    key, augment_key = jax.random.split(key)
    click_key, box_key = jax.random.split(key)
    return RowKeys(
        ViewKeys(jax.random.split(augment_key, rows), jax.random.split(box_key, rows)),
        click_keys(click_key, rows, cfg.click),
    )


def fixed_view_keys(seeds: Array) -> ViewKeys:
    """All that fixed views draw, by their seeds `[B]` (`Sample.view`), whatever the step."""
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(seeds)
    return ViewKeys(keys[:, 0], keys[:, 1])


def draw_view(batch: Sample, keys: ViewKeys, cfg: ExperimentConfig) -> tuple[Array, View]:
    """Augmented images `[B, S, S, S, 1]`, and what else their views hold; not encoded yet."""
    size = get_spec(cfg.model.preset).image_size
    batch = augment(batch, keys.augment, cfg.augment, size)
    roi = batch.roi
    if cfg.dose.source == "label":
        # Of the label as it is now: a box that was turned along with it would be too wide.
        roi = fill_box(*box_from_roi(batch.label), size)
    box, box_valid = box_from_roi(roi) if cfg.prompt.box else (None, None)
    if box is not None and cfg.dose.box_jitter:
        box = jitter_box(box, keys.box, cfg.dose.box_jitter, size)
    view = View(None, batch.label, roi, box, box_valid, batch.text_id, batch.case_id, batch.weight)
    return batch.image, view


def batch_loss(
    model: SAM3D,
    view: View,
    keys: Array,
    total: Array,
    cfg: ExperimentConfig,
    texts: TextTable | None = None,
) -> tuple[Array, StepMetrics]:
    """Loss of the click-free pass and its refinements (Secs. 3.2.3, 3.3): its part of a mean.

    Args:
        keys: `RowKeys.clicks`.
        total: [], weight of the global batch: where it is in several parts, sums over the parts
            are its means.
    """
    spec = get_spec(cfg.model.preset)
    target = make_target(view.label, view.roi)
    prompts = model.fixed_prompts(view.box, view.box_valid, view.text_id, texts)

    def decode(points: Array, labels: Array, mask: Array) -> tuple[Array, Array]:
        asked = prompts._replace(points=points, point_labels=labels, mask=mask)
        masks = model.decode(view.embedding, asked)
        return masks.low_res_logits, masks.iou[:, 0]

    def score(logits: Array, iou: Array) -> dict[str, Any]:
        loss, parts = segmentation_loss(logits, target, iou, cfg.loss)
        return {"loss": loss, "parts": parts}

    refined = refine(
        decode,
        lambda low_res: upsample(low_res[..., 0], spec.image_size),
        score,
        view.label,
        keys,
        cfg.click,
        (spec.mask_size,) * 3,
    )

    def mean(of_rows: Array) -> Array:
        return jnp.vdot(of_rows, view.weight) / total

    scores = refined.pass_scores  # leaves [P, B]
    missed, excess = jnp.moveaxis(refined.wrong, -1, 0)
    dice = dice_score(target.size, missed, excess)  # [P, B]
    case_loss = weigh_passes(scores["loss"], cfg.loss)
    loss = mean(case_loss)
    parts = {k: mean(weigh_passes(v, cfg.loss)) for k, v in scores["parts"].items()}
    parts["truth_outside_roi"] *= total  # a count, not a share
    metrics = StepMetrics(
        loss=loss,
        case_loss=case_loss,
        parts=parts,
        dice_fixed=mean(dice[0]),
        dice_clicked=mean(dice[-1]),
        grad_norm=jnp.zeros(()),
    )
    return loss, metrics


Gradients = Callable[..., tuple[nnx.State, StepMetrics]]


def accumulate(gradients: Gradients, rows: Any, parts: int) -> tuple[nnx.State, StepMetrics]:
    """Sums of a batch's gradients and means, as many rows at a time as one of its parts has.

    Args:
        gradients: of some rows, `StepMetrics` with them.
        rows: pytree with leaves `[B, ...]`; a part takes every `parts`-th row, which needs no
            exchange between devices that hold neighbouring rows.
    """
    if parts == 1:
        return gradients(rows)

    def split(x: Array) -> Array:
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def body(total: nnx.State, part: Any) -> tuple[nnx.State, StepMetrics]:
        found, metrics = gradients(part)
        return laid_out(jax.tree.map(jnp.add, total, found)), metrics

    split_rows = jax.tree.map(split, rows)
    like, _ = jax.eval_shape(gradients, jax.tree.map(lambda x: x[0], split_rows))
    zeros = laid_out(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like))
    total, stacked = jax.lax.scan(body, zeros, split_rows)
    sums = jax.tree.map(lambda x: x.sum(0), stacked)
    return total, sums._replace(case_loss=stacked.case_loss.swapaxes(0, 1).reshape(-1))


def update(
    optimizer: optax.GradientTransformation, state: TrainState, gradients: nnx.State
) -> TrainState:
    """The state after a step with these gradients."""
    updates, opt_state = optimizer.update(laid_out(gradients), state.opt_state, state.trained)
    trained = laid_out(optax.apply_updates(state.trained, updates))
    return TrainState(state.step + 1, state.seed, trained, laid_out(opt_state))


def make_train_step(
    graphdef: nnx.GraphDef[SAM3D],
    optimizer: optax.GradientTransformation,
    cfg: ExperimentConfig,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """The jitted step `(state, frozen, batch, texts=None) -> (state, metrics)`.

    The state is donated; the frozen parameters and the table of texts are not. The language model
    that made the table is no part of either.
    """
    frozen_encoder = cfg.model.freeze_encoder

    def step(
        state: TrainState, frozen: nnx.State, batch: Sample, texts: TextTable | None = None
    ) -> tuple[TrainState, StepMetrics]:
        total = jnp.maximum(batch.weight.sum(), 1)
        frozen, whole = gathered(frozen), gathered(state.trained)

        def gradients(rows: tuple[Sample, RowKeys]) -> tuple[nnx.State, StepMetrics]:
            batch, keys = rows
            image, view = draw_view(batch, keys.view, cfg)
            if frozen_encoder:
                # Outside the differentiated function: a frozen encoder costs no backward pass.
                encoded = nnx.merge(graphdef, whole, frozen).encode(image)
                view = view._replace(embedding=encoded)

            def loss_fn(trained: nnx.State) -> tuple[Array, StepMetrics]:
                model = nnx.merge(graphdef, trained, frozen)
                seen = view if frozen_encoder else view._replace(embedding=model.encode(image))
                return batch_loss(model, seen, keys.clicks, total, cfg, texts)

            return jax.grad(loss_fn, has_aux=True)(whole)

        keys = row_keys(cfg, state.seed, state.step, len(batch.weight))
        found, metrics = accumulate(gradients, (batch, keys), cfg.accumulate)
        metrics = metrics._replace(grad_norm=optax.tree.norm(found))
        return update(optimizer, state, found), metrics

    return jax.jit(step, donate_argnums=0)
