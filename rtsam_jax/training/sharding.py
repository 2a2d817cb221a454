"""The mesh, the only place that knows devices: batch over `data`, parameters by the path rules."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rtsam_jax.config import MeshConfig
from rtsam_jax.errors import ConfigError
from rtsam_jax.training.rules import path_of, rule_for

BATCH = PartitionSpec("data")


def make_mesh(cfg: MeshConfig, batch_size: int) -> Mesh:
    """A one-axis mesh over `cfg.data` devices (-1: all that divide the batch evenly).

    Raises:
        ConfigError: the batch does not divide over the devices asked for.
    """
    available = jax.device_count()
    count = cfg.data
    if count == -1:
        count = max(n for n in range(1, available + 1) if batch_size % n == 0)
    if not 1 <= count <= available:
        raise ConfigError(f"config.mesh.data is {count}, but {available} device(s) are available.")
    if batch_size % count:
        raise ConfigError(
            f"config.batch_size {batch_size} does not divide over {count} devices; "
            f"make it a multiple of config.mesh.data."
        )
    devices = np.array(jax.devices()[:count])
    return Mesh(devices, ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(mesh: Mesh, abstract: Any) -> Any:
    """Shardings for a state of parameters, or for optimiser moments that mirror one."""

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        keys = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
        for start, key in enumerate(keys):
            if key in ("image_encoder", "prompt_encoder", "mask_decoder"):
                return NamedSharding(mesh, rule_for(path_of(tuple(keys[start:]))).sharding)
        return replicated(mesh)  # counters of the optimiser

    return jax.tree_util.tree_map_with_path(place, abstract)


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """This process's rows of a batch, `[B / processes, ...]`, to its devices: global `[B, ...]`."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
