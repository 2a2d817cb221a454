"""Whether training waits for its input: reading alone, and the share of a step spent waiting."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from rtsam_jax.benchmark.ours import OurSide
from rtsam_jax.benchmark.simulated_cache import noise_records
from rtsam_jax.config import ExperimentConfig, MeshConfig
from rtsam_jax.data.cache import read_index, settings_folder, write_shard
from rtsam_jax.data.pipeline import PromptIds, batches_from
from rtsam_jax.data.prepared import PreparedCases
from rtsam_jax.data.scans import CacheSettings
from rtsam_jax.models.presets import get_spec
from rtsam_jax.training.batches import fresh_batches
from rtsam_jax.training.loop import prefetch, timed
from rtsam_jax.training.sharding import make_mesh, shard_batch

_SCANS = 6  # more than are read ahead, so that every read is a read


@dataclass
class InputTiming:
    """What was measured of the input pipeline.

    Attributes:
        record_mb: of one prepared scan on disk.
        read_ms: per volume, the pipeline alone, as fast as it can.
        step_ms: median of a training step whose batch lies on the device already.
        loop_ms: median of the same step fed by the pipeline.
        waited: share of the loop's time that it waited for a batch.
    """

    batch: int
    threads: int
    record_mb: float
    read_ms: float
    step_ms: float
    loop_ms: float
    waited: float


def time_input(cfg: ExperimentConfig, rounds: int) -> InputTiming:
    """Reads simulated prepared cases alone, then feeds as many training steps from them."""
    settings = CacheSettings.from_config(cfg, get_spec(cfg.model.preset).image_size)
    with tempfile.TemporaryDirectory(prefix="rtsam_jax_bench_") as folder:
        cases = simulated_cases(epath.Path(folder), settings)
        ids = np.zeros(2, np.int32)
        dataset = fresh_batches(cfg, cases, [PromptIds(ids, ids)] * len(cases))
        threads = cfg.data.read_threads
        began = time.perf_counter()
        for _ in batches_from(dataset, 0, rounds, threads):
            pass
        read = (time.perf_counter() - began) / rounds / cfg.batch_size
        mesh = make_mesh(MeshConfig(data=1), cfg.batch_size)
        step = _Step(cfg, mesh)
        ready = shard_batch(mesh, dataset[0])
        step(ready)  # compiles
        alone = [step(ready) for _ in range(rounds)]
        fed: list[float] = []
        waits: list[float] = []
        began = time.perf_counter()
        host = batches_from(dataset, 1, rounds + 3, threads)
        for batch in timed(prefetch(host, mesh), waits):
            step(batch)
            fed.append(time.perf_counter() - began)
            began = time.perf_counter()
        size_mb = next(Path(folder).rglob("*.array_record")).stat().st_size / _SCANS / 1e6
    return InputTiming(
        batch=cfg.batch_size,
        threads=threads,
        record_mb=size_mb,
        read_ms=1e3 * read,
        step_ms=1e3 * statistics.median(alone),
        # The first batches are read before the first step: there is nothing to hide behind.
        loop_ms=1e3 * statistics.median(fed[1:]),
        waited=sum(waits[1:]) / sum(fed[1:]),
    )


def simulated_cases(cache: epath.Path, settings: CacheSettings) -> PreparedCases:
    """A few prepared cases of noise, written to `cache`."""
    folder = settings_folder(cache, settings)
    write_shard(
        folder,
        [
            (content, {"key": f"{at:064d}", "views": [{}], "about": {}})
            for at, content in enumerate(noise_records(settings, _SCANS))
        ],
    )
    places = [(entry, 0) for entry in read_index(folder).values()]
    return PreparedCases(places, [0] * _SCANS, settings.source, Path(cache))


class _Step:
    """The training step of a random model; a call returns its seconds."""

    def __init__(self, cfg: ExperimentConfig, mesh: Mesh):
        side = OurSide(cfg, mesh)
        self._frozen = side.frozen
        self._step, self._state = side.training()

    def __call__(self, batch: object) -> float:
        began = time.perf_counter()
        self._state, metrics = self._step(self._state, self._frozen, batch)
        jax.block_until_ready((self._state, metrics))
        return time.perf_counter() - began
