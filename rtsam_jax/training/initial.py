"""The parameters that a training starts from: published weights, or those of another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.errors import CheckpointError, PresetMismatch
from rtsam_jax.training.model_file import is_run, read_model_file
from rtsam_jax.training.stored import read_params
from rtsam_jax.weights import OWN_PARAMETERS, flatten, load_weights

CORNERS = "prompt_encoder.corner_embed"


def initial_parameters(cfg: ExperimentConfig) -> dict[str, Any]:
    """Arrays by dotted name that take the place of drawn ones; {} without `cfg.model.checkpoint`.

    Of a run, its newest checkpoint, without what belongs to its own tasks and texts (text adapter,
    task tokens), and without the box corners if it was trained without a box.

    Raises:
        MissingFile, PresetMismatch, CheckpointIncomplete, CheckpointError, UnreadableFile: of the
            folder.
    """
    if not cfg.model.checkpoint:
        return {}
    folder = Path(cfg.model.checkpoint)
    if not is_run(folder):
        return flatten(load_weights(folder, cfg.model.preset)[0])
    trained = read_model_file(folder).config
    if trained.model.preset != cfg.model.preset:
        raise PresetMismatch(
            f"{folder} is a run of preset {trained.model.preset!r}, but {cfg.model.preset!r} is "
            f"asked for; set config.model.preset to {trained.model.preset!r} or give another run."
        )
    if folder.resolve() == Path(cfg.out_dir).resolve():
        raise CheckpointError(
            f"config.model.checkpoint is {folder}, the folder of the run itself; give the folder "
            "of another run, or another config.out."
        )
    kept = {CORNERS} if trained.prompt.box else set()
    params = read_params(folder)
    return {name: leaf for name, leaf in params.items() if name not in OWN_PARAMETERS - kept}
