"""A run's folder: what it was started with, on what, and how many steps it takes."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.json_file import write_json
from rtsam_jax.data.pipeline import Neighbourhood, load_neighbourhoods
from rtsam_jax.data.preprocess import PreprocessSpec
from rtsam_jax.data.selection import RunData
from rtsam_jax.errors import MissingFile, NotWritable, OutputExists, UnreadableFile
from rtsam_jax.models.presets import get_spec

RECORD = "run.json"


def total_steps(cfg: ExperimentConfig, train_cases: int) -> int:
    """Optimiser steps of a run; an epoch visits every training case once."""
    return cfg.steps or math.ceil(cfg.epochs * train_cases / cfg.batch_size)


def prepare_training(cfg: ExperimentConfig, data: RunData) -> list[Neighbourhood]:
    """The training cases on the model grid."""
    return load_neighbourhoods(
        data.train,
        data.modality,
        data.tasks,
        PreprocessSpec.from_config(cfg),
        size=get_spec(cfg.model.preset).image_size,
        jitter=cfg.data.jitter,
        progress=True,
    )


def open_run_folder(cfg: ExperimentConfig) -> Path:
    """Makes the run folder, or checks that an existing one was started with the same config.

    Raises:
        OutputExists: the folder holds a run with other settings, or something else.
        UnreadableFile: its `run.json` is damaged.
        NotWritable: the folder cannot be made or written to.
    """
    run = Path(cfg.out_dir)
    record = run / RECORD
    if record.exists():
        # Where a run lies is not part of what it is.
        stored = read_record(run)["config"] | {"out": cfg.out}
        wanted = json.loads(cfg.to_json())
        changed = sorted(_differences(stored, wanted))
        if changed:
            raise OutputExists(
                f"{run} holds a run with other settings ({', '.join(changed[:4])}); "
                f"give another folder with --config.out=FOLDER, or delete it."
            )
        return run
    # A kill before run.json was renamed leaves its beginning behind: that is no one's work.
    if run.is_file() or (
        run.is_dir() and any(not p.name.startswith(f".{RECORD}.") for p in run.iterdir())
    ):
        raise OutputExists(
            f"{run} exists and is not a run's folder; give another with --config.out=FOLDER."
        )
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_json(record, {"config": dataclasses.asdict(cfg), **environment()})
    except OSError as cause:
        raise NotWritable(
            f"the run folder {run} cannot be written ({cause.strerror}); "
            f"give another with --config.out=FOLDER."
        ) from cause
    return run


def read_record(run: Path) -> dict[str, Any]:
    """A run's `run.json`, with at least `config`.

    Raises:
        MissingFile: this is not a run's folder.
        UnreadableFile: the file is damaged.
    """
    record = run / RECORD
    if not record.is_file():
        raise MissingFile(f"{record} does not exist; give the folder of a run of rtsam_jax.train.")
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        if not isinstance(content["config"], dict):
            raise TypeError("its config is not an object")
    except (ValueError, KeyError, TypeError) as cause:
        raise UnreadableFile(
            f"{record} is damaged ({cause}); bring it back from a copy, or delete the folder {run} "
            f"and train again."
        ) from cause
    return content


def _differences(a: dict, b: dict, prefix: str = "") -> list[str]:
    out = []
    for key in sorted(a.keys() | b.keys()):
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            out += _differences(x, y, f"{prefix}{key}.")
        elif x != y:
            out.append(prefix + key)
    return out


def environment() -> dict[str, object]:
    """Versions, git commit and device, for `run.json`."""
    packages = ("rtsam-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain")
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    here = Path(__file__).resolve().parent
    git = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "versions": versions,
        "python": platform.python_version(),
        "git_commit": git.stdout.strip() or None,
        "platform": platform.platform(),
        "devices": [str(device) for device in jax.devices()],
    }
