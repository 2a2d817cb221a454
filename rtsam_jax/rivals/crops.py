"""The crops that our model trains on, draw for draw, with a task's channel in a prompt's place."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import grain
import jax
import numpy as np

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.pipeline import PromptIds, in_batches
from rtsam_jax.data.prepared import PreparedCases
from rtsam_jax.data.sample import Sample, View
from rtsam_jax.data.selection import RunData
from rtsam_jax.data.views import FixedViews
from rtsam_jax.models.presets import get_spec
from rtsam_jax.prompts.text import mirror
from rtsam_jax.text.prompt_set import crop_prompts, task_sentences
from rtsam_jax.training.batches import fresh_batches
from rtsam_jax.training.kept_views import read_crops
from rtsam_jax.training.run import total_samples
from rtsam_jax.training.step import draw_view, fixed_view_keys, row_keys

Draw = Callable[[Sample, int], tuple[jax.Array, View]]


def task_channels(cfg: ExperimentConfig, data: RunData) -> dict[str, PromptIds]:
    """By training case, its task's channel, and the channel that a left-right flip makes of it.

    There are as many entries as our model has wordings for the case, so that equal numbers are
    drawn. A flip turns the left parotid gland into the right one: where a task names a side, the
    flipped crop belongs to the task whose sentence is its own mirrored. Without such a task, or
    where our model must not flip the case, the case is not flipped.
    """
    sentences = task_sentences(data.dataset, cfg.prompt)
    channel = {name: at for at, name in enumerate(data.tasks)}
    of_sentence = {sentences[name]: name for name in data.tasks}

    def mirrored(task: str) -> int | None:
        flipped = mirror(sentences[task])
        other = task if flipped == sentences[task] else of_sentence.get(flipped or "")
        return None if other is None else channel[other]

    told: Mapping[str, PromptIds] = crop_prompts(cfg, data)
    found = {}
    for case in data.train:
        ids, flips = told[case.id]
        other = None if flips is None else mirrored(case.task)
        found[case.id] = PromptIds(
            np.full_like(ids, channel[case.task]),
            None if other is None else np.full_like(ids, other),
        )
    return found


def crop_batches(cfg: ExperimentConfig, data: RunData, cases: PreparedCases) -> grain.MapDataset:
    """What `rtsam_jax.train` would read with this config on one device, batch by batch.

    `Sample.text_id` is the output channel.
    """
    names = [case.id for case in data.train]
    channels = task_channels(cfg, data)
    prompts = [channels[name] for name in names]
    samples = total_samples(cfg, len(names))
    if cfg.views.per_case:
        size = get_spec(cfg.model.preset).image_size
        views = FixedViews.from_config(cfg, names, prompts, size)
        return in_batches(
            views.turns(cases.task_ids if cfg.data.balance == "task" else None),
            read_crops(views, cases, cfg),
            batch_size=cfg.batch_size,
            samples=samples,
        )
    return fresh_batches(cfg, cases, prompts, samples=samples)


def make_draw(cfg: ExperimentConfig) -> Draw:
    """`(batch, steps taken so far) -> (image [B, S, S, S, 1], view)`, augmented as for our model.

    `View.text_id` is the output channel after a flip; the view is not encoded.
    """

    @jax.jit
    def draw(batch: Sample, step: jax.Array) -> tuple[jax.Array, View]:
        if cfg.views.per_case:
            return draw_view(batch, fixed_view_keys(batch.view), cfg)
        return draw_view(batch, row_keys(cfg, cfg.seed, step, len(batch.weight)).view, cfg)

    return lambda batch, step: draw(batch, np.int32(step))
