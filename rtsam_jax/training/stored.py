"""Parameters out of a run's checkpoints; nothing here changes a run's folder.

What a step's folder holds is said in `rtsam_jax.training.checkpoint`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from orbax.checkpoint import v1 as ocp

from rtsam_jax.errors import CheckpointIncomplete, PresetMismatch
from rtsam_jax.training.model_file import run_id
from rtsam_jax.weights import (
    ReadFailed,
    by_itself,
    flatten,
    nest,
    read_quietly,
    weights_digest,
)


class Found(NamedTuple):
    """Which parameters were read."""

    step: int
    weights: str  # digest, see `rtsam_jax.weights.weights_digest`


def restore_params(run: str | Path, params: nnx.State) -> Found:
    """Puts the newest finished checkpoint's parameters into `params`, on their shardings.

    Changes nothing in the run folder, so a run may be evaluated while it trains, by anyone who may
    read it. Neither the optimiser's state nor the devices it lay on matter.

    Raises:
        CheckpointIncomplete: there is no finished checkpoint, or a step's folder is damaged.
        PresetMismatch: it holds other parameters than these, or of other shapes, or it is of
            another run than the `model.json` beside it.
    """
    folder = checkpoint_folder(run)
    if not folder.is_dir():
        raise no_checkpoint(folder)
    flat = flatten(nnx.to_pure_dict(params))
    with open_steps(folder) as reader:
        if reader.latest is None:
            raise no_checkpoint(folder)
        step = reader.latest.step
        _require_same_shapes(reader, folder, step, flat)
        advice = "bring it back from a copy"
        if len(reader.checkpoints) > 1:
            advice += ", or delete that folder to fall back to an earlier one"
        loaded = load_items(reader, folder, step, {"params": flat}, advice=advice)["params"]
        about = reader.checkpointables_metadata(step).custom_metadata
    weights = _checked(folder, step, loaded, about)
    fill(params, loaded)
    return Found(step, weights)


def read_params(run: str | Path) -> dict[str, np.ndarray]:
    """The newest finished checkpoint's parameters on the host, whatever model they are of.

    Each process of a run reads them alone. Changes nothing in the folder.

    Returns:
        Arrays by dotted name.

    Raises:
        CheckpointIncomplete: there is no finished checkpoint, or a step's folder is damaged.
    """
    folder, step = checkpoint_folder(run), newest_step(run)
    newest = folder / str(step)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def read() -> tuple[dict[str, jax.Array], Any]:
        about = ocp.checkpointables_metadata(newest)
        stored = about.metadata["params"]
        like = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
            for name, leaf in stored.items()
        }
        loaded: dict[str, jax.Array] = ocp.load_checkpointables(newest, {"params": like})["params"]
        return loaded, about.custom_metadata

    try:
        with by_itself():
            loaded, about = read_quietly(read)
    except ReadFailed as error:
        raise CheckpointIncomplete(
            f"checkpoint {newest} is damaged ({error}); delete that folder to fall back to an "
            "earlier one."
        ) from error
    _checked(folder, step, loaded, about)
    return {name: np.asarray(leaf) for name, leaf in loaded.items()}


def newest_step(run: str | Path) -> int:
    """Of the finished checkpoints; `CheckpointIncomplete` where there is none."""
    folder = checkpoint_folder(run)
    # Orbax lists steps with all processes of a run together, so they are listed here.
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    steps = [int(name) for name in names if name.isdecimal()]
    if not steps:
        raise no_checkpoint(folder)
    return max(steps)


def about_params(run: str | Path, params: Mapping[str, Any]) -> dict[str, Any]:
    """What is written beside parameters: whose they are and, where they are held whole, a digest.

    Args:
        run: the folder.
        params: by dotted name.
    """
    whole = all(leaf.is_fully_addressable for leaf in params.values())
    return {"run": run_id(run), "weights": weights_digest(params) if whole else None}


def _checked(folder: Path, step: int, params: Mapping[str, Any], about: Any) -> str:
    """The digest of parameters, if it is the one they were written with, by the same run.

    Args:
        about: of `about_params`; None or {} of earlier versions.
    """
    about = about if isinstance(about, dict) else {}
    owner, wanted = about.get("run"), about.get("weights")
    here = run_id(folder.parent)
    if owner is not None and here is not None and owner != here:
        raise PresetMismatch(
            f"checkpoint {folder / str(step)} is of another run than model.json beside "
            f"{folder.name}; copy both from one."
        )
    weights = weights_digest(params)
    if wanted is not None and wanted != weights:
        raise CheckpointIncomplete(
            f"checkpoint {folder / str(step)} is damaged: its parameters are not those that were "
            "written; bring it back from a copy."
        )
    return weights


def checkpoint_folder(run: str | Path) -> Path:
    """Where a run keeps them."""
    return Path(run).absolute() / "checkpoints"


def no_checkpoint(folder: Path) -> CheckpointIncomplete:
    """The error of a folder without one."""
    return CheckpointIncomplete(
        f"{folder} holds no finished checkpoint; start the run again from its config."
    )


def open_steps(folder: Path, **options: Any) -> Any:
    """Orbax's view of the steps in `folder`, which it reads the losses of."""

    def read() -> Any:
        orbax = ocp.training.Checkpointer(folder, **options)
        for checkpoint in orbax.checkpoints:
            _require_loss(checkpoint.metrics)
        return orbax

    try:
        return read_quietly(read)
    except ReadFailed as error:  # which does not say which step it is about
        damaged = [step for step in sorted(folder.glob("[0-9]*")) if not _has_loss(step)]
        if not damaged:  # then never advise to delete anything
            raise CheckpointIncomplete(
                f"the checkpoints in {folder} cannot be listed ({error}); mend the folder's "
                f"permissions, or bring it back from a copy."
            ) from error
        raise CheckpointIncomplete(
            f"checkpoint {damaged[-1]} is damaged ({error}); delete that folder to fall back to an "
            f"earlier one."
        ) from error


def _require_loss(metrics: Any) -> None:
    if metrics is not None:
        float(metrics["loss"])


def _has_loss(step: Path) -> bool:
    try:
        _require_loss(json.loads((step / "metrics" / "metrics").read_text()))
    except (ValueError, TypeError, KeyError):
        return False
    except OSError:  # not there: a step without metrics is never the best, but may be the latest
        return True
    return True


def _require_same_shapes(orbax: Any, folder: Path, step: int, flat: dict[str, Any]) -> None:
    """Tells a checkpoint of another model from a damaged one, which `load_items` is to find."""
    try:
        stored = read_quietly(lambda: orbax.checkpointables_metadata(step).metadata["params"])
        found = {name: tuple(leaf.shape) for name, leaf in stored.items()}
    except (ReadFailed, AttributeError, TypeError):
        return
    wanted = {name: tuple(leaf.shape) for name, leaf in flat.items()}
    if found != wanted:
        apart = min(name for name, _ in found.items() ^ wanted.items())
        raise PresetMismatch(
            f"checkpoint {folder / str(step)} is of another model than model.json beside "
            f"{folder.name} ({apart} is of shape {found.get(apart, 'none')}, not "
            f"{wanted.get(apart, 'none')}): they are of different runs; copy both from one."
        )


def load_items(
    orbax: Any, folder: Path, step: int, like: dict[str, Any], *, advice: str
) -> dict[str, Any]:
    """Items of a step, on the shardings of the arrays (or shapes) in `like`.

    Args:
        orbax: of `open_steps`.
        folder: the same.
        step: a finished one.
        like: by item.
        advice: what to do where that fails.

    Raises:
        CheckpointIncomplete: the step is damaged, or holds something else.
    """
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
    )
    try:
        return read_quietly(lambda: orbax.load_checkpointables(step, abstract))
    except ReadFailed as error:
        raise CheckpointIncomplete(
            f"checkpoint {folder / str(step)} cannot be read as what is asked for ({error}); "
            f"{advice}."
        ) from error


def fill(state: nnx.State, params: dict[str, Any]) -> None:
    """Puts the part of a whole parameter set that `state` holds into it."""
    names = flatten(nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, nest({name: params[name] for name in names}))
