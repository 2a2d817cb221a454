"""Checkpoints of a run: the only place that talks to Orbax about training state.

A step folder holds two items: `params` (every parameter, so that prediction needs nothing else) and
`train_state` (step and optimiser). Orbax writes beside and renames, so a killed save leaves only
a temporary folder, which the next start removes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental.multihost_utils import process_allgather
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint._src.futures.synchronization import OperationIdGenerator

from rtsam_jax.errors import CheckpointIncomplete, PresetMismatch
from rtsam_jax.training.state import Built, TrainState
from rtsam_jax.weights import ReadFailed, flatten, nest, read_quietly


def _params(frozen: nnx.State, state: TrainState) -> dict[str, Any]:
    return flatten(nnx.to_pure_dict(nnx.merge_state(state.trained, frozen)))


def _rest(state: TrainState) -> dict[str, Any]:
    # Leaves by number: the optimiser's own structure is the code's, not the file's.
    leaves = jax.tree.leaves(state.opt_state)
    return {"step": state.step, "opt": {f"{i:05d}": leaf for i, leaf in enumerate(leaves)}}


class RunCheckpoints:
    """The checkpoints of one run folder.

    Only one process may have a run open this way: it removes unfinished saves, which might be
    another's. To read while a run goes on, use `restore_params`.

    Raises:
        CheckpointIncomplete: a step's folder is damaged, so that the steps cannot be listed.
    """

    def __init__(self, run: str | Path, *, keep: int):
        self.folder = _folder(run)
        self.folder.mkdir(parents=True, exist_ok=True)
        _count_as_the_others()
        policies = ocp.training.preservation_policies
        self._orbax = _open(
            self.folder,
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep),
                    policies.BestN(
                        get_metric_fn=lambda metrics: -metrics["loss"],
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            cleanup_tmp_directories=True,
        )

    @property
    def latest_step(self) -> int | None:
        latest = self._orbax.latest
        return None if latest is None else latest.step

    def save(self, built: Built, *, loss: float) -> None:
        """Starts writing in the background; the previous write is waited for."""
        self._orbax.wait()
        step = int(built.state.step)
        items = {"params": _params(built.frozen, built.state), "train_state": _rest(built.state)}
        self._orbax.save_checkpointables_async(step, items, metrics={"loss": float(loss)})

    def restore(self, built: Built, step: int | None = None) -> Built:
        """`built` with the arrays of a step (default: the latest), on `built`'s shardings.

        Raises:
            CheckpointIncomplete: there is no finished checkpoint, or it lacks an item.
        """
        step = self.latest_step if step is None else step
        if step is None:
            raise _no_checkpoint(self.folder)
        wanted = {"params": _params(built.frozen, built.state), "train_state": _rest(built.state)}
        items = _load(self._orbax, self.folder, step, wanted)
        frozen, trained = built.frozen, built.state.trained
        _fill(frozen, items["params"])
        _fill(trained, items["params"])
        leaves = [items["train_state"]["opt"][k] for k in sorted(items["train_state"]["opt"])]
        opt_state = jax.tree.unflatten(jax.tree.structure(built.state.opt_state), leaves)
        state = TrainState(items["train_state"]["step"], trained, opt_state)
        return Built(built.graphdef, frozen, state)

    def close(self) -> None:
        """Waits for the last write."""
        self._orbax.wait()
        self._orbax.close()


def restore_params(run: str | Path, params: nnx.State) -> int:
    """Puts the newest finished checkpoint's parameters into `params`, on their shardings.

    Changes nothing in the run folder, so a run may be evaluated while it trains, by anyone who may
    read it. Neither the optimiser's state nor the devices it lay on matter.

    Returns:
        The checkpoint's step.

    Raises:
        CheckpointIncomplete: there is no finished checkpoint, or a step's folder is damaged.
        PresetMismatch: it holds other parameters than these, or of other shapes.
    """
    folder = _folder(run)
    if not folder.is_dir():
        raise _no_checkpoint(folder)
    flat = flatten(nnx.to_pure_dict(params))
    with _open(folder) as reader:
        if reader.latest is None:
            raise _no_checkpoint(folder)
        step = reader.latest.step
        _require_same_shapes(reader, folder, step, flat)
        _fill(params, _load(reader, folder, step, {"params": flat})["params"])
    return step


def _count_as_the_others() -> None:
    """Brings the number of Orbax's operations so far to that of the process that is furthest.

    Each process counts its own and names barriers by the number: after one has read weights alone
    (`rtsam_jax.weights.load_weights`), they would wait for each other for ever.
    """
    if jax.process_count() == 1:
        return
    furthest = np.max(process_allgather(np.int32(OperationIdGenerator.get_current_operation_id())))
    while int(OperationIdGenerator.get_current_operation_id()) < furthest:
        OperationIdGenerator.next_operation_id()


def _folder(run: str | Path) -> Path:
    return Path(run).absolute() / "checkpoints"


def _no_checkpoint(folder: Path) -> CheckpointIncomplete:
    return CheckpointIncomplete(
        f"{folder} holds no finished checkpoint; start the run again from its config."
    )


def _open(folder: Path, **options: Any) -> Any:
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
    """Tells a whole checkpoint of another model from a damaged one, which `_load` is to find."""
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


def _load(orbax: Any, folder: Path, step: int, like: dict[str, Any]) -> dict[str, Any]:
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
    )
    try:
        return read_quietly(lambda: orbax.load_checkpointables(step, abstract))
    except ReadFailed as error:
        raise CheckpointIncomplete(
            f"checkpoint {folder / str(step)} cannot be restored into this configuration "
            f"({error}); delete that folder to fall back to an earlier one, or use the run's own "
            f"config."
        ) from error


def _fill(state: nnx.State, params: dict[str, Any]) -> None:
    """Puts the part of a whole parameter set that `state` holds into it."""
    names = flatten(nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, nest({name: params[name] for name in names}))
