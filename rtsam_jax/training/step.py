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
from rtsam_jax.data.sample import Sample
from rtsam_jax.losses import dice_score, segmentation_loss, weigh_passes
from rtsam_jax.models.layers import upsample
from rtsam_jax.models.presets import get_spec
from rtsam_jax.models.sam3d import SAM3D
from rtsam_jax.models.text_adapter import TextTable
from rtsam_jax.prompts.clicks import refine
from rtsam_jax.prompts.dose import box_from_roi, fill_box, jitter_box
from rtsam_jax.training.state import TrainState

Array = jax.Array


class StepMetrics(NamedTuple):
    """What a step reports; `case_loss` is per case, so that a NaN can be given a name."""

    loss: Array  # []
    case_loss: Array  # [B]
    parts: dict[str, Array]  # each []: loss terms, and how many truths lie outside the ROI
    dice_fixed: Array  # []: first pass, text and box alone, the test mode
    dice_clicked: Array  # []: last pass
    grad_norm: Array  # []


def batch_loss(
    model: SAM3D,
    embedding: Array,
    batch: Sample,
    key: Array,
    cfg: ExperimentConfig,
    texts: TextTable | None = None,
) -> tuple[Array, StepMetrics]:
    """Mean loss over a batch of the click-free pass and its refinements (Secs. 3.2.3, 3.3)."""
    size = get_spec(cfg.model.preset).image_size
    mask_size = get_spec(cfg.model.preset).mask_size
    click_key, box_key = jax.random.split(key)
    roi = batch.roi
    if cfg.dose.source == "label":
        # Of the label as it is now: a box that was turned along with it would be too wide.
        roi = fill_box(*box_from_roi(batch.label), size)
    box, box_valid = box_from_roi(roi) if cfg.prompt.box else (None, None)
    if box is not None and cfg.dose.box_jitter:
        box = jitter_box(box, box_key, cfg.dose.box_jitter, size)
    prompts = model.fixed_prompts(box, box_valid, batch.text_id, texts)

    def decode(points: Array, labels: Array, mask: Array) -> tuple[Array, Array]:
        asked = prompts._replace(points=points, point_labels=labels, mask=mask)
        masks = model.decode(embedding, asked)
        return masks.low_res_logits, masks.iou[:, 0]

    def score(logits: Array, iou: Array) -> dict[str, Any]:
        loss, parts = segmentation_loss(logits, batch.label, roi, iou, cfg.loss)
        dice = dice_score(logits, batch.label, cfg.click.threshold)
        return {"loss": loss, "parts": parts, "dice": dice}

    refined = refine(
        decode,
        lambda low_res: upsample(low_res[..., 0], size),
        score,
        batch.label,
        click_key,
        cfg.click,
        (mask_size,) * 3,
    )
    scores = refined.pass_scores  # leaves [P, B]
    case_loss = weigh_passes(scores["loss"], cfg.loss)
    loss = case_loss.mean()
    parts = {k: weigh_passes(v, cfg.loss).mean() for k, v in scores["parts"].items()}
    parts["truth_outside_roi"] *= batch.label.shape[0]  # a count, not a share
    metrics = StepMetrics(
        loss=loss,
        case_loss=case_loss,
        parts=parts,
        dice_fixed=scores["dice"][0].mean(),
        dice_clicked=scores["dice"][-1].mean(),
        grad_norm=jnp.zeros(()),
    )
    return loss, metrics


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
    size = get_spec(cfg.model.preset).image_size

    def step(
        state: TrainState, frozen: nnx.State, batch: Sample, texts: TextTable | None = None
    ) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.key(cfg.seed), state.step)
        key, augment_key = jax.random.split(key)
        batch = augment(batch, augment_key, cfg.augment, size)
        embedding = None
        if frozen_encoder:
            # Outside the differentiated function: a frozen encoder costs no backward pass.
            embedding = nnx.merge(graphdef, state.trained, frozen).encode(batch.image)

        def loss_fn(trained: nnx.State) -> tuple[Array, StepMetrics]:
            model = nnx.merge(graphdef, trained, frozen)
            encoded = model.encode(batch.image) if embedding is None else embedding
            return batch_loss(model, encoded, batch, key, cfg, texts)

        gradients, metrics = jax.grad(loss_fn, has_aux=True)(state.trained)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        metrics = metrics._replace(grad_norm=optax.tree.norm(gradients))
        return TrainState(state.step + 1, trained, opt_state), metrics

    return jax.jit(step, donate_argnums=0)
