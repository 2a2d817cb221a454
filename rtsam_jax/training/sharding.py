"""The mesh, the only place that knows devices, and what lies where on it.

Three axes: `data` repeats the parameters, `fsdp` divides them and what the optimiser keeps of them,
`tensor` divides heads and hidden channels. The batch is divided over the first two.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from rtsam_jax.config import MeshConfig
from rtsam_jax.errors import ConfigError
from rtsam_jax.training.rules import path_of, placement

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(cfg: MeshConfig, batch_size: int) -> Mesh:
    """The mesh `(data, fsdp, tensor)` of a run; neighbours along `tensor` lie next to each other.

    Several processes use all their devices; a single one may use fewer than there are. There,
    `cfg.data` of -1 takes as many as divide the batch evenly, so that no device computes rows of
    weight 0; all that remain where none does.

    Raises:
        ConfigError: the axes ask for other devices than there are.
    """
    available, alone = jax.device_count(), jax.process_count() == 1
    inner = cfg.fsdp * cfg.tensor
    data = cfg.data
    if data == -1:
        data = most = max(available // inner, 1)
        even = [n for n in range(1, most + 1) if batch_size % (n * cfg.fsdp) == 0]
        if alone and even:
            data = even[-1]
    count = data * inner
    if count > available or (count < available and not alone):
        raise ConfigError(
            f"config.mesh asks for {data} x {cfg.fsdp} x {cfg.tensor} (data x fsdp x tensor) = "
            f"{count} devices, but there are {available}; give axes whose product is "
            f"{'at most ' if alone else ''}that, or config.mesh.data=-1 for all that remain."
        )
    return Mesh(_arranged((data, cfg.fsdp, cfg.tensor)), AXES, axis_types=(AxisType.Auto,) * 3)


def _arranged(shape: tuple[int, ...]) -> np.ndarray:
    """Devices by mesh position: a whole TPU slice along its links, else by process and number.

    The links may scatter the rows of a process, which reads one run of them: then by process too.
    """
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    whole = math.prod(shape) == len(devices)
    slices = {getattr(d, "slice_index", 0) for d in devices}
    if whole and devices[0].platform == "tpu" and len(slices) == 1:
        linked = jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3).devices
        processes = _processes(linked)
        if all(_part(processes, p) is not None for p in np.unique(processes)):
            return linked
    return np.array(devices[: math.prod(shape)]).reshape(shape)


def _processes(devices: np.ndarray) -> np.ndarray:
    """`[data * fsdp, tensor]`: whose the devices are that hold an equal part of the rows."""
    owner = np.vectorize(lambda device: device.process_index, otypes=[int])(devices)
    return owner.reshape(-1, devices.shape[-1])


def _part(processes: np.ndarray, process: int) -> tuple[int, int] | None:
    """(index, count) of the rows that `process` holds; None where they are no such equal part."""
    held = np.flatnonzero((processes == process).any(1))
    if not len(held):
        return None
    count, rest = divmod(len(processes), len(held))
    index, offset = divmod(int(held[0]), len(held))
    together = held[-1] - held[0] == len(held) - 1
    return (index, count) if together and not rest and not offset else None


def row_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process reads the `index`-th of `count` equal parts of a batch's rows.

    Processes whose devices differ along `tensor` alone hold the same rows and read the same part.

    Raises:
        ConfigError: its rows are not one such part.
    """
    part = _part(_processes(mesh.devices), jax.process_index())
    if part is None:
        raise ConfigError(
            f"process {jax.process_index()} would hold rows of a batch that are no equal part of "
            f"it; let config.mesh.tensor {mesh.shape['tensor']} divide the devices of a process, "
            "or be a multiple of them."
        )
    return part


def batch_rows(mesh: Mesh | AbstractMesh, batch_size: int, accumulate: int = 1) -> int:
    """Rows that a batch takes: the next multiple of what the mesh and its parts divide it into.

    The surplus has weight 0.

    Args:
        accumulate: parts that a step takes one after the other, each divided over the mesh.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * accumulate
    return -(-batch_size // parts) * parts


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(mesh: Mesh | AbstractMesh, abstract: Any) -> Any:
    """Shardings for a state of parameters, or for optimiser moments that mirror one."""

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        keys = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
        for start, key in enumerate(keys):
            if key in ("image_encoder", "prompt_encoder", "mask_decoder"):
                name = path_of(tuple(k for k in keys[start:] if k != "value"))
                return NamedSharding(mesh, placement(name, leaf.shape, mesh.shape))
        return replicated(mesh)  # counters of the optimiser

    return jax.tree_util.tree_map_with_path(place, abstract)


def laid_out(state: Any) -> Any:
    """The same parameters, gradients or moments where the rules want them, asked for inside `jit`.

    Left to itself, XLA may give a new state another layout than the old one's, whose memory it then
    cannot take, and add up whole gradients where a part is needed. Without a mesh, as they are.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return state
    return jax.lax.with_sharding_constraint(state, parameter_shardings(mesh, state))


def gathered(params: Any) -> Any:
    """Parameters with all outside the encoder's blocks whole, asked for inside `jit`.

    They are few, and those of the decoder are used in every pass of the clicks' loop: XLA would
    rather exchange activations there, in each. Blocks are gathered one at a time, by XLA.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return params
    whole = replicated(mesh)

    def place(path: tuple[Any, ...], leaf: Any) -> Any:
        inside = "blocks" in jax.tree_util.keystr(path)
        return leaf if inside else jax.lax.with_sharding_constraint(leaf, whole)

    return jax.tree_util.tree_map_with_path(place, params)


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """This process's rows of a batch, `[B / processes, ...]`, to its devices: global `[B, ...]`."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
