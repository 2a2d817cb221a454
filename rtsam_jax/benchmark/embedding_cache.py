"""What a step costs afresh, on fixed views, and on views from disk: in turn, fed as in a run."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from rtsam_jax.benchmark.augmentation import CONFIG as AUGMENTATION
from rtsam_jax.benchmark.input import simulated_cases
from rtsam_jax.benchmark.ours import OurSide
from rtsam_jax.benchmark.timing import Contender, Ratio, Timing, ratio, time_in_turn
from rtsam_jax.config import ExperimentConfig, MeshConfig, ViewsConfig
from rtsam_jax.data.pipeline import PromptIds, batches_from
from rtsam_jax.data.prepared import PreparedCases
from rtsam_jax.data.scans import CacheSettings
from rtsam_jax.models.presets import get_spec
from rtsam_jax.optim import make_optimizer
from rtsam_jax.report.tables import Table
from rtsam_jax.training.batches import fresh_batches
from rtsam_jax.training.loop import prefetch
from rtsam_jax.training.sharding import make_mesh
from rtsam_jax.training.state import Built
from rtsam_jax.training.views import view_training

KINDS = {"augmented afresh": "", "fixed views, encoded": "none", "views from disk": "bfloat16"}
_VIEWS = 2  # of each case


@dataclass
class CacheTiming:
    """Steps of each of `KINDS`, and how many times as long as from disk the others take.

    Attributes:
        record_mb: of one view on disk, of the shard's size.
    """

    batch: int
    record_mb: float
    timings: list[Timing]
    ratios: list[Ratio]


def time_embedding_cache(cfg: ExperimentConfig, rounds: int) -> CacheTiming:
    """Random weights, noise for images; every kind reads ahead while the others take their turn."""
    cfg = dataclasses.replace(cfg, augment=AUGMENTATION)
    side = OurSide(cfg)
    mesh = make_mesh(MeshConfig(data=1), cfg.batch_size)
    with tempfile.TemporaryDirectory(prefix="rtsam_jax_bench_") as folder:
        settings = CacheSettings.from_config(cfg, get_spec(cfg.model.preset).image_size)
        cases = simulated_cases(epath.Path(folder), settings)
        contenders = []
        for kind, cache in KINDS.items():
            of_kind = copy.copy(cfg)
            if cache:
                of_kind.views = ViewsConfig(_VIEWS, cache, folder=f"{folder}/views")
            step, batches, state = _training(side, of_kind, cases, mesh)
            contenders.append(Contender(kind, _runs(step, batches, state, side, mesh), None))
        timings = time_in_turn(contenders, rounds)
        shards = Path(folder, "views").rglob("*.array_record")
        size = sum(shard.stat().st_size for shard in shards)
    *others, cached = timings
    return CacheTiming(
        batch=cfg.batch_size,
        record_mb=size / (_VIEWS * len(cases)) / 1e6,
        timings=timings,
        ratios=[ratio(cached, other) for other in others],
    )


def _training(
    side: OurSide, cfg: ExperimentConfig, cases: PreparedCases, mesh: Mesh
) -> tuple[Callable[..., Any], grain.MapDataset, Any]:
    step, state = side.training()
    told = [PromptIds(np.zeros(2, np.int32), np.zeros(2, np.int32))] * len(cases)
    if cfg.views.per_case:
        built = Built(side.graphdef, side.frozen, state)
        names = [str(case) for case in range(len(cases))]
        optimizer = make_optimizer(cfg.optim, steps=1000)
        step, batches = view_training(
            built, optimizer, cfg, cases, names=names, prompts=told, mesh=mesh
        )
        return step, batches, state
    return step, fresh_batches(cfg, cases, told), state


def _runs(
    step: Callable[..., Any], batches: grain.MapDataset, state: Any, side: OurSide, mesh: Mesh
) -> Callable[[], None]:
    """A step with the next batch, waited for."""
    far = 10**6  # batches; as many as anyone asks for
    stream = prefetch(batches_from(batches, 0, far, side.cfg.data.read_threads), mesh)

    def run() -> None:
        nonlocal state
        batch = next(stream)
        with jax.set_mesh(mesh):
            state, metrics = step(state, side.frozen, batch)
        jax.block_until_ready((state, metrics))

    return run


def views_table(timing: CacheTiming) -> Table:
    """A row for each kind of step."""
    header = ("Step", "Batch", "Median (ms)", "Times as long as from disk", "View (MB)")
    shares = [f"{r.of_medians:.2f} ({r.low:.2f} to {r.high:.2f})" for r in timing.ratios]
    rows = zip(timing.timings, [*shares, "1"], ["", "", f"{timing.record_mb:.2f}"], strict=True)
    return Table(
        header,
        tuple(
            (each.side, timing.batch, f"{1e3 * each.median_s:.0f}", share, size)
            for each, share, size in rows
        ),
    )
