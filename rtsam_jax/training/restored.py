"""A run back from its folder: its config, and its model on one device, wherever it was trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from flax import nnx

from rtsam_jax.config import ExperimentConfig, MeshConfig
from rtsam_jax.data.selection import require_split
from rtsam_jax.errors import ConfigError, UnreadableFile
from rtsam_jax.flags import check_types
from rtsam_jax.models.sam3d import SAM3D
from rtsam_jax.training.model_file import check_language_model, check_tasks
from rtsam_jax.training.run import RECORD, read_record
from rtsam_jax.training.sharding import make_mesh
from rtsam_jax.training.state import abstract_model
from rtsam_jax.training.stored import restore_params


def load_run_config(run: Path) -> ExperimentConfig:
    """The configuration a run was started with.

    Raises:
        MissingFile, UnreadableFile: this is not a run's folder; its record is damaged.
        ConfigError: the record has a field that this version does not know.
    """
    cfg = ExperimentConfig.from_dict(read_record(run)["config"])
    try:
        check_types(cfg, ExperimentConfig(), "config")
        cfg.validate()
    except ConfigError as cause:
        raise UnreadableFile(
            f"{run / RECORD} is damaged: {str(cause).rstrip('.')}; bring it back from a copy."
        ) from cause
    return dataclasses.replace(cfg, out=str(run))


def load_scoring_config(
    run: Path, *, split: str = "", language_model: str = ""
) -> ExperimentConfig:
    """`load_run_config`, to score held-out cases.

    Args:
        split: which, as `--split` named it; "" is the run's own.
        language_model: where the run's lies now; "" is where it lay.

    Raises:
        SplitError: that split has no case.
        RTSamError: of the run or its dataset.
    """
    cfg = load_run_config(run)
    if language_model:
        cfg.prompt.language_model = language_model
    if split:
        cfg.data.eval_split, cfg.data.inner_folds, cfg.data.inner_fold = split, 0, -1
    cfg.evaluate = True  # so that a split without cases is an error
    cfg.data.builder, cfg.data.builder_cases = "", 0  # a dataset that is gone is not made anew
    if not cfg.data.inner_folds:  # a fold is never empty
        require_split(cfg)
    return cfg


class Restored(NamedTuple):
    """`nnx.merge(graphdef, params)` is the model."""

    graphdef: nnx.GraphDef[SAM3D]
    params: nnx.State
    step: int  # of the checkpoint


def restore_model(
    cfg: ExperimentConfig, tasks: Sequence[str], *, text_width: int, language_model: str | None
) -> Restored:
    """The newest checkpoint of the run that `cfg.out_dir` is the folder of; prints its step.

    Args:
        tasks: of the run's data, in their order.
        text_width: channels of a text feature; 0 where the config uses no text.
        language_model: digest of the weights that make the features, or None.

    Raises:
        CheckpointError, CheckpointIncomplete: trained for other tasks, or on another language
            model's features; no checkpoint yet.
    """
    check_tasks(cfg.out_dir, tasks)
    check_language_model(cfg.out_dir, language_model)
    mesh = make_mesh(MeshConfig(data=1), 1)
    graphdef, params = abstract_model(cfg, len(tasks), mesh, text_width=text_width)
    step, _ = restore_params(cfg.out_dir, params)
    print(f"{cfg.out_dir}: checkpoint of step {step}", flush=True)
    return Restored(graphdef, params, step)
