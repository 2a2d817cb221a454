"""Where runs go: each gets a share of the GPUs, or of the CPU's cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from rtsam_jax.errors import ConfigError, ProcessFailed

VISIBLE = "CUDA_VISIBLE_DEVICES"
_ASK = "import jax; print(jax.default_backend(), jax.local_device_count())"


@dataclass(frozen=True)
class Place:
    """What one run at a time sees of the machine.

    Attributes:
        environ: beside this process's own.
        cores: it may use.
    """

    cores: frozenset[int]
    environ: Mapping[str, str] = field(default_factory=dict)


def find_devices() -> tuple[str, int]:
    """The backend and its number of devices, asked in a process that then gives them back.

    Raises:
        ProcessFailed: JAX cannot start there.
    """
    asked = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True)
    words = asked.stdout.split()
    if asked.returncode or len(words) < 2:
        reason = (asked.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise ProcessFailed(f"JAX cannot start ({reason}); mend its installation first.")
    return words[-2], int(words[-1])


def make_places(
    parallel: int, backend: str, devices: int, cores: frozenset[int], visible: str = ""
) -> list[Place]:
    """As many places as runs are to go at a time.

    Args:
        parallel: how many; 0: one per GPU, one on anything else.
        backend: "cpu", "gpu" or "tpu".
        devices: of that backend.
        cores: of this process.
        visible: CUDA_VISIBLE_DEVICES of this process; GPUs keep its names for them.

    Raises:
        ConfigError: more than there are cores, or several on one TPU.
    """
    if backend == "gpu":
        names = visible.split(",") if visible else [str(n) for n in range(devices)]
        count = parallel or devices
        if count <= devices:
            return [Place(cores, {VISIBLE: ",".join(s)}) for s in np.array_split(names, count)]
        # Two runs on one GPU would each take most of its memory before they need it.
        more = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        return [Place(cores, {VISIBLE: names[n % devices], **more}) for n in range(count)]
    count = parallel or 1
    if backend != "cpu" and count > 1:
        raise ConfigError(
            f"--parallel is {count}, but runs on a {backend.upper()} take all of it; leave it out."
        )
    if count > len(cores):
        raise ConfigError(
            f"--parallel is {count}, but there are {len(cores)} cores; each run needs one at least."
        )
    shares = np.array_split(sorted(cores), count)
    return [Place(frozenset(share.tolist())) for share in shares]


def places_here(parallel: int) -> list[Place]:
    """`make_places` of this machine."""
    backend, devices = find_devices()
    cores = frozenset(os.sched_getaffinity(0))
    return make_places(parallel, backend, devices, cores, os.environ.get(VISIBLE, ""))
