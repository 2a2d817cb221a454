"""Checkpoints of a run, written and gone on from; `stored` reads them.

A step folder holds two items: `params` (every parameter, so that prediction needs nothing else) and
`train_state` (step and optimiser). Orbax writes beside and renames, so a killed save leaves only
a temporary folder, which the next start removes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental.multihost_utils import process_allgather
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint._src.futures.synchronization import OperationIdGenerator

from rtsam_jax.training.state import Built, TrainState
from rtsam_jax.training.stored import (
    about_params,
    checkpoint_folder,
    fill,
    load_items,
    no_checkpoint,
    open_steps,
)
from rtsam_jax.weights import flatten


def _params(frozen: nnx.State, state: TrainState) -> dict[str, Any]:
    return flatten(nnx.to_pure_dict(nnx.merge_state(state.trained, frozen)))


def _rest(state: TrainState) -> dict[str, Any]:
    # Leaves by number: the optimiser's own structure is the code's, not the file's.
    leaves = jax.tree.leaves(state.opt_state)
    return {"step": state.step, "opt": {f"{i:05d}": leaf for i, leaf in enumerate(leaves)}}


class RunCheckpoints:
    """The checkpoints of one run folder.

    Only one process may have a run open this way: it removes unfinished saves, which might be
    another's. To read while a run goes on, use `rtsam_jax.training.stored`.

    Raises:
        CheckpointIncomplete: a step's folder is damaged, so that the steps cannot be listed.
    """

    def __init__(self, run: str | Path, *, keep: int):
        self.folder = checkpoint_folder(run)
        self.folder.mkdir(parents=True, exist_ok=True)
        _count_as_the_others()
        policies = ocp.training.preservation_policies
        self._orbax = open_steps(
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
        self._orbax.save_checkpointables_async(
            step,
            items,
            metrics={"loss": float(loss)},
            custom_metadata=about_params(self.folder.parent, items["params"]),
        )

    def restore(self, built: Built, step: int | None = None) -> Built:
        """`built` with the arrays of a step (default: the latest), on `built`'s shardings.

        Raises:
            CheckpointIncomplete: there is no finished checkpoint, or it lacks an item.
        """
        step = self.latest_step if step is None else step
        if step is None:
            raise no_checkpoint(self.folder)
        wanted = {"params": _params(built.frozen, built.state), "train_state": _rest(built.state)}
        advice = "delete that folder to fall back to an earlier one, or use the run's own config"
        items = load_items(self._orbax, self.folder, step, wanted, advice=advice)
        frozen, trained = built.frozen, built.state.trained
        fill(frozen, items["params"])
        fill(trained, items["params"])
        leaves = [items["train_state"]["opt"][k] for k in sorted(items["train_state"]["opt"])]
        opt_state = jax.tree.unflatten(jax.tree.structure(built.state.opt_state), leaves)
        number = items["train_state"]["step"]
        state = TrainState(number, built.state.seed, trained, opt_state)
        return Built(built.graphdef, frozen, state)

    def close(self) -> None:
        """Waits for the last write."""
        self._orbax.wait()
        self._orbax.close()


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
