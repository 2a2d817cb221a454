"""The training step on several simulated CPU devices: strong scaling, one process per point.

JAX fixes its devices at first use, so `time_on_devices` starts `python -m
rtsam_jax.benchmark.devices` with what is to be measured as its argument. All devices share one pool
of threads, as many as there are cores, so that what is seen is the cost of dividing the work.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import jax

from rtsam_jax.benchmark.ours import OurSide, synthetic_batch
from rtsam_jax.benchmark.timing import Timing, time_in_turn
from rtsam_jax.config import ExperimentConfig, MeshConfig
from rtsam_jax.models.presets import get_spec
from rtsam_jax.training.sharding import make_mesh


def time_on_devices(cfg: ExperimentConfig, batch: int, rounds: int, devices: int) -> Timing:
    """Times our step in a fresh process whose CPU counts as `devices`."""
    asked = {"cfg": dataclasses.asdict(cfg), "batch": batch, "rounds": rounds, "devices": devices}
    command = [sys.executable, "-m", "rtsam_jax.benchmark.devices", json.dumps(asked)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return Timing(**json.loads(done.stdout.splitlines()[-1]))


def time_step(cfg: ExperimentConfig, batch: int, rounds: int, devices: int) -> Timing:
    """The step with the batch over the first `devices` of this process."""
    mesh = make_mesh(MeshConfig(data=devices), batch)
    samples = synthetic_batch(get_spec(cfg.model.preset).image_size, batch)
    (timing,) = time_in_turn([OurSide(cfg, mesh).step(samples)], rounds)
    return timing


def _measure(cfg: dict[str, Any], batch: int, rounds: int, devices: int) -> dict[str, Any]:
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_enable_compilation_cache", False)
    return dataclasses.asdict(time_step(ExperimentConfig.from_dict(cfg), batch, rounds, devices))


if __name__ == "__main__":
    print(json.dumps(_measure(**json.loads(sys.argv[1]))))
