"""The cost against one quantity at a time: volume side, batch, clicks, devices."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rtsam_jax.benchmark.cases import Result, Rivals, model_sides, run_case
from rtsam_jax.benchmark.devices import time_on_devices
from rtsam_jax.config import ExperimentConfig
from rtsam_jax.models.presets import PRESETS, get_spec

SIDES = (64, 96, 128, 160, 192)  # voxels
BATCHES = (1, 2, 4, 8)
CLICKS = ((1, 4), (3, 1), (3, 4), (3, 16), (7, 4), (11, 4))  # iterations, and clicks in each
DEVICES = (1, 2, 4, 8)
TITLES = {
    "side": "volume side (voxels)",
    "batch": "batch",
    "clicks": "iterations x clicks",
    "devices": "CPU devices on the same cores",
}
# `torch.compile` takes minutes for every point: it takes part where it is named.
_TRIED = frozenset({"medim", "medim-packed"})


@dataclass
class Sweep:
    """Results along one quantity.

    Attributes:
        of: a key of `TITLES`.
        points: value as it is printed, and the results there, one per case.
    """

    of: str
    points: list[tuple[str, list[Result]]]


def run_sweep(of: str, cfg: ExperimentConfig, rounds: int, rivals: Rivals) -> Sweep:
    """Encoder, of one volume unless the batch is swept, and training step, of `cfg.batch_size`.

    Clicks concern the step alone. So do devices, where no rival takes part and the batch, which is
    the same on all of them, is at least one row for each.
    """
    rivals = dataclasses.replace(rivals, tried=rivals.tried & _TRIED)
    walk = {"side": _sides, "batch": _batches, "clicks": _clicks, "devices": _devices}[of]
    points = []
    for label, results in walk(cfg, rounds, rivals):
        print(f"{TITLES[of]}: {label} done", file=sys.stderr)
        points.append((label, results))
    return Sweep(of, points)


Points = Iterator[tuple[str, list[Result]]]


def _sides(cfg: ExperimentConfig, rounds: int, rivals: Rivals) -> Points:
    for side in SIDES:
        with _resized(cfg, side) as resized:
            models = model_sides(resized, rivals)
            cases = ("encoder", 1), ("step", cfg.batch_size)
            yield str(side), [run_case(c, models, batch, rounds)[0] for c, batch in cases]


@contextmanager
def _resized(cfg: ExperimentConfig, side: int) -> Iterator[ExperimentConfig]:
    """The config with a preset of another volume side, which exists inside the block alone."""
    name = f"{cfg.model.preset}_{side}"
    PRESETS[name] = dataclasses.replace(get_spec(cfg.model.preset), image_size=side)
    try:
        yield dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, preset=name))
    finally:
        del PRESETS[name]


def _batches(cfg: ExperimentConfig, rounds: int, rivals: Rivals) -> Points:
    models = model_sides(cfg, rivals)
    for batch in BATCHES:
        yield str(batch), [run_case(c, models, batch, rounds)[0] for c in ("encoder", "step")]


def _clicks(cfg: ExperimentConfig, rounds: int, rivals: Rivals) -> Points:
    cfg = copy.deepcopy(cfg)  # both sides read the clicks from it when a case is made
    models = model_sides(cfg, rivals)
    for cfg.click.iterations, cfg.click.per_iteration in CLICKS:
        label = f"{cfg.click.iterations} x {cfg.click.per_iteration}"
        yield label, [run_case("step", models, cfg.batch_size, rounds)[0]]


def _devices(cfg: ExperimentConfig, rounds: int, rivals: Rivals) -> Points:
    batch = max(cfg.batch_size, *DEVICES)
    for count in DEVICES:
        timing = time_on_devices(cfg, batch, rounds, count)
        yield str(count), [Result("step", batch, [timing], [])]
