"""The training loop: dispatch a step, report the one before, checkpoint, stop on NaN or a signal.

Resume order: the newest finished checkpoint gives step N; batches, click keys and the schedule all
derive from (seed, step), so step N + 1 is the one an uninterrupted run would have taken.

Every process of a run takes the same way through it, since all decide on the same `Report`; only
the first writes and prints.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.sample import Sample
from rtsam_jax.errors import TrainingDiverged
from rtsam_jax.training.checkpoint import RunCheckpoints
from rtsam_jax.training.processes import is_first
from rtsam_jax.training.sharding import replicated, shard_batch
from rtsam_jax.training.state import Built, TrainState
from rtsam_jax.training.step import StepMetrics
from rtsam_jax.training.stopping import RunStopped, StopRequest
from rtsam_jax.training.time_taken import add_seconds

Item = TypeVar("Item")


class MetricsLog:
    """`metrics.jsonl`, one line per step, and TensorBoard events where TensorBoard is installed."""

    def __init__(self, run: Path, *, resume_from: int):
        self._path = run / "metrics.jsonl"
        self._drop_after(resume_from)
        self._file = self._path.open("a", buffering=1)
        self._board: Any = None
        try:
            from tensorboardX import SummaryWriter  # type: ignore[import-not-found]
        except ImportError:
            return  # optional by design: the JSON lines hold the same numbers
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=resume_from + 1)

    def _drop_after(self, step: int) -> None:
        """Removes the lines of steps that a killed run took after its last checkpoint."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, TypeError, KeyError):
                continue  # the line that the kill cut short, or a damaged one
        beside = self._path.with_suffix(".part")
        beside.write_text("".join(line + "\n" for line in kept))
        beside.replace(self._path)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _values(metrics: StepMetrics, learning_rate: float) -> dict[str, float]:
    return {
        "loss": float(metrics.loss),
        "dice": float(metrics.dice_fixed),
        "dice_clicked": float(metrics.dice_clicked),
        "lr": learning_rate,
        "grad_norm": float(metrics.grad_norm),
        # Prefixed, because the Dice *loss* is called `dice` too.
        **{
            name if name == "truth_outside_roi" else f"loss_{name}": float(x)
            for name, x in metrics.parts.items()
        },
    }


def require_finite(
    case_loss: np.ndarray,
    grad_norm: float,
    case_id: np.ndarray,
    *,
    step: int,
    names: Sequence[str],
    option: str = "--config.out=FOLDER",
) -> None:
    """Raises `TrainingDiverged` naming the cases whose loss is not finite, else all of the batch.

    Args:
        case_loss: [B].
        case_id: [B].
        names: by case id.
        option: of the command, that gives another folder.
    """
    odd = ~np.isfinite(case_loss)
    if not odd.any() and math.isfinite(grad_norm):
        return
    what, ids = ("loss", case_id[odd]) if odd.any() else ("gradient", case_id)
    raise TrainingDiverged(
        f"the {what} of step {step} is not finite for case(s) "
        f"{', '.join(sorted({names[i] for i in ids}))}; mend their volumes, or lower "
        f"config.optim.lr and train from the start in another folder, {option}."
    )


class Report(NamedTuple):
    """What is known of a step, whole in every process."""

    metrics: StepMetrics
    case_id: Any  # [B]
    asked: Any  # []: the largest signal that any process had got when the step was dispatched


def make_report(mesh: Mesh) -> Callable[[StepMetrics, jax.Array, int], Report]:
    """`(metrics, case_id, this process's signal) -> Report`, to be called by all processes."""
    if jax.process_count() == 1:
        return Report

    place = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    @partial(jax.jit, out_shardings=replicated(mesh))
    def gather(metrics: StepMetrics, case_id: jax.Array, asked: jax.Array) -> Report:
        return Report(metrics, case_id, asked.max())

    def report(metrics: StepMetrics, case_id: jax.Array, asked: int) -> Report:
        mine = np.array([asked], np.int32)
        everyone = jax.make_array_from_callback((mesh.size,), place, lambda _: mine)
        return gather(metrics, case_id, everyone)

    return report


def prefetch(batches: Iterator[Sample], mesh: Mesh, depth: int = 2) -> Iterator[Sample]:
    """Batches on the devices, `depth` of them ahead of the one in use."""
    ahead: deque[Sample] = deque()
    for batch in batches:
        ahead.append(shard_batch(mesh, batch))
        if len(ahead) > depth:
            yield ahead.popleft()
    yield from ahead


def timed(items: Iterator[Item], waits: list[float]) -> Iterator[Item]:
    """The same items; appends the seconds that each kept its taker waiting."""
    while True:
        began = time.monotonic()
        try:
            item = next(items)
        except StopIteration:
            return
        waits.append(time.monotonic() - began)
        yield item


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def train(
    built: Built,
    step_function: Callable[[TrainState, Any, Sample], tuple[TrainState, StepMetrics]],
    batches: Callable[[int, int], Iterator[Sample]],
    cfg: ExperimentConfig,
    *,
    steps: int,
    mesh: Mesh,
    case_names: Sequence[str],
    schedule: Callable[[int], Any],
    checkpoints: RunCheckpoints,
    stop: StopRequest | None = None,
) -> Built:
    """Trains from `built.state.step` to `steps` and returns the final state.

    Args:
        step_function: of `rtsam_jax.training.step.make_train_step`.
        batches: `(start, stop) -> iterator` of host batches.
        case_names: by `Sample.case_id`, for error messages.
        schedule: learning rate by step.
        stop: what a signal sets, in any process; None: nothing does.

    Raises:
        RunStopped: a process was asked to; the step it names is saved once `checkpoints` is closed.
        TrainingDiverged: at the first loss or gradient that is not finite; no checkpoint of a
            step at or after it is written.
    """
    run = Path(cfg.out_dir)
    start = int(built.state.step)
    log = MetricsLog(run, resume_from=start) if is_first() else None
    make = make_report(mesh)
    pending: tuple[int, Report] | None = None
    clock, clock_step, recent = time.monotonic(), start, []
    # Only printed: a resumed run repeats the log to the last digit.
    waits: list[float] = []

    def report(step: int, found: Report) -> tuple[float, int]:
        """Logs a step; returns its loss, and the signal to stop at."""
        nonlocal clock, clock_step
        found = jax.device_get(found)
        require_finite(
            np.asarray(found.metrics.case_loss),
            float(found.metrics.grad_norm),
            found.case_id,
            step=step,
            names=case_names,
        )
        values = _values(found.metrics, float(schedule(step - 1)))
        if log is not None:
            log.write(step, values)
        recent.append(values)
        if step % cfg.log_every == 0 or step == steps:
            now = time.monotonic()
            passed = max(now - clock, 1e-9)
            rate = (step - clock_step) / passed
            mean = {k: sum(v[k] for v in recent) / len(recent) for k in values}
            print(
                f"step {step}/{steps}  loss {mean['loss']:.4f}  Dice {mean['dice']:.3f} "
                f"(with clicks {mean['dice_clicked']:.3f})  {rate * cfg.batch_size:.2f} volumes/s "
                f"({sum(waits) / passed:.1%} waiting for input)  "
                f"{_clock((steps - step) / max(rate, 1e-9))} left",
                flush=True,
            )
            if log is not None:
                add_seconds(run, passed, step=step)
            clock, clock_step = now, step
            recent.clear()
            waits.clear()
        return values["loss"], int(found.asked)

    try:
        inputs = timed(prefetch(batches(start, steps), mesh), waits)
        for step, batch in enumerate(inputs, start=start + 1):
            with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
                state, metrics = step_function(built.state, built.frozen, batch)
            built = Built(built.graphdef, built.frozen, state)
            # The step before is reported while this one runs.
            asked = report(*pending)[1] if pending is not None else 0
            pending = (step, make(metrics, batch.case_id, stop.asked if stop else 0))
            if asked or step % cfg.checkpoint_every == 0 or step == steps:
                # A state is only saved once its step is known to be finite.
                loss, also_asked = report(*pending)
                pending, asked = None, asked or also_asked
                checkpoints.save(built, loss=loss)
            if asked:
                raise RunStopped(asked, step)
    finally:
        if log is not None:
            log.close()
        sys.stdout.flush()
    return built
