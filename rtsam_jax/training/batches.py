"""The batches that a config trains on, unless its views are fixed (`rtsam_jax.training.views`)."""

from __future__ import annotations

from collections.abc import Sequence

import grain

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.augment import margin
from rtsam_jax.data.pipeline import ENDLESS, PromptIds, Share, training_batches
from rtsam_jax.data.prepared import PreparedCases
from rtsam_jax.models.presets import get_spec


def fresh_batches(
    cfg: ExperimentConfig,
    cases: PreparedCases,
    prompts: Sequence[PromptIds],
    *,
    share: Share = Share(),  # noqa: B008  # immutable
    rows: int = 0,
    samples: int = ENDLESS,
) -> grain.MapDataset:
    """`training_batches` by a config: crops drawn afresh in every epoch, to be augmented.

    Args:
        prompts: by case, what it may be told.
        share: which rows of a batch this process reads.
        rows: per batch; 0: `cfg.batch_size`.
        samples: of the whole run.

    Raises:
        ConfigError: see `in_batches`.
    """
    size = get_spec(cfg.model.preset).image_size
    return training_batches(
        cases,
        prompts,
        size=size,
        jitter=cfg.data.jitter,
        batch_size=cfg.batch_size,
        seed=cfg.seed,
        margin=margin(cfg.augment, size),
        record_dropout=cfg.prompt.dropout,
        balanced_tasks=cases.task_ids if cfg.data.balance == "task" else None,
        share=share,
        rows=rows,
        samples=samples,
    )
