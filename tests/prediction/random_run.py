"""A run's folder as training leaves it, as far as prediction reads it: every parameter random."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.selection import load_run_data
from rtsam_jax.text.language_model import describe
from rtsam_jax.text.prompt_set import task_sentences
from rtsam_jax.training.checkpoint import RunCheckpoints
from rtsam_jax.training.model_file import write_model_file
from rtsam_jax.training.rules import trained_filter
from rtsam_jax.training.state import Built, TrainState
from tests.models.random_model import random_model


def save_random_run(folder: Path, cfg: ExperimentConfig, *, seed: int = 0) -> Path:
    """Preset `test` with as many tasks, or as wide texts, as `cfg` and its dataset ask for."""
    data = load_run_data(cfg)
    text = cfg.prompt.task == "text"
    cfg = dataclasses.replace(cfg, prompt=dataclasses.replace(cfg.prompt, adapter_width=24))
    about = describe(Path(cfg.prompt.language_model)) if text else None
    network = random_model(
        seed=seed,
        tasks=len(data.tasks) if cfg.prompt.task == "embedding" else 0,
        text_width=0 if about is None else about.spec.width,
    )
    graphdef, trained, frozen = nnx.split(network, trained_filter(False), ...)
    state = TrainState(jnp.int32(7), jnp.uint32(0), trained, ())
    with closing(RunCheckpoints(folder, keep=1)) as checkpoints:
        checkpoints.save(Built(graphdef, frozen, state), loss=1.0)
    write_model_file(
        folder,
        cfg,
        data,
        task_sentences(data.dataset, cfg.prompt),
        text_width=0 if about is None else about.spec.width,
        language_model=None if about is None else about.digest,
    )
    return folder
