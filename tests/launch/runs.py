"""Training commands that are watched while they run, and what their run folders hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from rtsam_jax.weights import flatten
from tests.compiling import QUICK
from tests.tiny import command_environment

LIMIT_S = 240  # for what takes seconds on a machine of its own
TRAIN = (sys.executable, "-m", "rtsam_jax.train", "--config", "config.py")
MULTIHOST = (*TRAIN, "--multihost")


class Command:
    """A command under way; what it prints goes to a file."""

    def __init__(self, place: Path, command: Sequence[str], **environ: str):
        self.file = place / f"output-{time.monotonic_ns()}.txt"
        with self.file.open("w") as output:
            self.process = subprocess.Popen(
                command,
                cwd=place,
                env=command_environment(**{"XLA_FLAGS": QUICK, **environ}),
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self.file.read_text()

    def when(self, holds: Callable[[], bool]) -> None:
        """Returns as soon as a condition holds, which must be before the command ends."""
        deadline = time.monotonic() + LIMIT_S
        while not holds():
            assert self.process.poll() is None and time.monotonic() < deadline, self.output[-3000:]
            time.sleep(0.0005)

    def wait(self, seconds: float = LIMIT_S) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"still running: {self.output[-3000:]}") from None


def launched(
    place: Path, processes: int, *command: str, devices: int = 1, **environ: str
) -> Command:
    """A command in several processes, started by `launch.local`."""
    launcher = [sys.executable, "-m", "launch.local", "--processes", str(processes)]
    return Command(
        place, [*launcher, "--devices-per-process", str(devices), "--", *command], **environ
    )


def losses(run: Path) -> list[float]:
    """By step; a run that has not begun has none."""
    log = run / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    return [line["loss"] for line in found]


def saved(run: Path) -> int:
    """The newest finished checkpoint; 0 if there is none."""
    return max((int(name) for name in _checkpoints(run) if name.isdigit()), default=0)


def saving(run: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any(not name.isdigit() for name in _checkpoints(run))


def _checkpoints(run: Path) -> list[str]:
    folder = run / "checkpoints"
    return os.listdir(folder) if folder.is_dir() else []


def state(run: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint: parameters, optimiser, step; wherever they lay."""
    step = run / "checkpoints" / str(saved(run))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    stored = ocp.checkpointables_metadata(step).metadata
    wanted = {
        item: jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), stored[item]
        )
        for item in ("params", "train_state")
    }
    items = ocp.load_checkpointables(step, wanted)
    return {
        f"{item}.{name}": np.asarray(leaf)
        for item in wanted
        for name, leaf in flatten(items[item]).items()
    }


def assert_same(run: Path, other: Path) -> None:
    """Two runs took the same steps and ended in the same state, to the last bit."""
    assert losses(run) == losses(other)
    before, after = state(run), state(other)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)
