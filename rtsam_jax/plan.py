"""`python -m rtsam_jax.plan --config configs/NAME.py [--mesh 1x8x1 2x2x2] [--config.field=value]`.

Compiles the training step of a config for as many simulated devices as a mesh has, from shapes
alone, and prints what a device needs: bytes by XLA's memory analysis, operations, what it sends the
others, and projected times on chips by their datasheets.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from rtsam_jax.config import ExperimentConfig, MeshConfig
from rtsam_jax.errors import ConfigError, run_command
from rtsam_jax.flags import parse_config
from rtsam_jax.planning.chips import CHIPS, project, reaches
from rtsam_jax.planning.step import StepPlan, plan_step
from rtsam_jax.planning.tables import collectives_table, memory_table, projection_table
from rtsam_jax.report.files import written_whole
from rtsam_jax.training.sharding import make_mesh

SCHEMA_VERSION = 1


def plan(cfg: ExperimentConfig, meshes: Sequence[MeshConfig], rows: int) -> list[StepPlan]:
    """Plans one mesh after the other; the process must not have used a device before.

    Args:
        rows: per part of the batch, whose size then follows the mesh; 0: `cfg.batch_size`.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # seconds are those of a compilation
    jax.config.update("jax_num_cpu_devices", max(map(_devices, meshes)))
    plans = []
    for axes in meshes:
        batch = rows * axes.data * axes.fsdp or cfg.batch_size
        sized = dataclasses.replace(cfg, batch_size=batch, mesh=axes)
        sized.validate()
        plans.append(plan_step(sized, make_mesh(axes, batch)))
        print(memory_table(plans[-1:]), file=sys.stderr, flush=True)
    return plans


def _devices(mesh: MeshConfig) -> int:
    if mesh.data == -1:
        raise ConfigError(
            "config.mesh.data is -1, but a plan has no devices to count; set it, or give --mesh "
            "DATAxFSDPxTENSOR."
        )
    return math.prod((mesh.data, mesh.fsdp, mesh.tensor))


def _mesh(text: str) -> MeshConfig:
    sizes = text.split("x")
    if len(sizes) != 3 or not all(size.isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not DATAxFSDPxTENSOR, as in 2x2x2")
    return MeshConfig(*map(int, sizes))


def to_json(cfg: ExperimentConfig, plans: Sequence[StepPlan]) -> dict[str, Any]:
    """Everything the tables round, and what was planned."""
    return {
        "schema": SCHEMA_VERSION,
        "config": json.loads(cfg.to_json()),
        "jax": jax.__version__,
        "plans": [
            {
                **dataclasses.asdict(each),
                "sent_bytes": each.sent_bytes,
                "projections": [
                    dataclasses.asdict(project(each, chip))
                    for chip in CHIPS.values()
                    if reaches(chip, each)
                ],
            }
            for each in plans
        ],
    }


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m rtsam_jax.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Fields of the config: python -m rtsam_jax.train --help.",
        allow_abbrev=False,  # --config.mesh.data is no --config
    )
    parser.add_argument(
        "--mesh", nargs="+", type=_mesh, metavar="DxFxT", help="default: config.mesh"
    )
    parser.add_argument(
        "--rows", type=int, default=0, help="per part of the batch; default: config.batch_size"
    )
    parser.add_argument("--json", type=Path, help="file to write every number to")
    arguments, rest = parser.parse_known_args()
    cfg = parse_config([sys.argv[0], *rest], usage=__doc__ or "")
    plans = plan(cfg, arguments.mesh or [cfg.mesh], arguments.rows)
    first = plans[0]
    print(
        f"{cfg.model.preset}, {cfg.model.compute_dtype}: {first.parameters:,} parameters, "
        f"{first.trained:,} trained; remat {cfg.model.remat}. Bytes and FLOP per device and step.\n"
    )
    for table in (memory_table, collectives_table, projection_table):
        print(table(plans))
    if arguments.json:
        with written_whole(arguments.json) as path:
            path.write_text(json.dumps(to_json(cfg, plans), indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
