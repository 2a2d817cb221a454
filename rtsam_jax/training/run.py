"""A run's folder: what it was started with, on what, and how many steps it takes."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import jax

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.json_file import write_json
from rtsam_jax.errors import OutputExists


def total_steps(cfg: ExperimentConfig, train_cases: int) -> int:
    """Optimiser steps of a run; an epoch visits every training case once."""
    return cfg.steps or math.ceil(cfg.epochs * train_cases / cfg.batch_size)


def open_run_folder(cfg: ExperimentConfig) -> Path:
    """Makes the run folder, or checks that an existing one was started with the same config.

    Raises:
        OutputExists: the folder holds a run with other settings, or something else.
    """
    run = Path(cfg.out_dir)
    record = run / "run.json"
    if record.exists():
        # Where a run lies is not part of what it is.
        stored = json.loads(record.read_text())["config"] | {"out": cfg.out}
        wanted = json.loads(cfg.to_json())
        changed = sorted(_differences(stored, wanted))
        if changed:
            raise OutputExists(
                f"{run} holds a run with other settings ({', '.join(changed[:4])}); "
                f"give another folder with --config.out=FOLDER, or delete it."
            )
        return run
    if run.exists() and any(run.iterdir()):
        raise OutputExists(
            f"{run} exists and is not a run's folder; give another with --config.out=FOLDER."
        )
    run.mkdir(parents=True, exist_ok=True)
    write_json(record, {"config": dataclasses.asdict(cfg), **environment()})
    return run


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
