"""One of the processes that share a stream: prepares, reads its rows, augments, prints checksums.

python -m tests.multidevice.two_processes DATASET PORT COUNT INDEX START STOP
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import Mesh

from rtsam_jax.config import AugmentConfig, ExperimentConfig, MeshConfig
from rtsam_jax.data.augment import augment, margin
from rtsam_jax.data.cache import cache_root
from rtsam_jax.data.cases import load_dataset
from rtsam_jax.data.neighbourhood import Neighbourhood
from rtsam_jax.data.pipeline import PromptIds, Share, batches_from, training_batches
from rtsam_jax.data.prepare import prepare_cases
from rtsam_jax.data.prepared import PreparedCases
from rtsam_jax.data.sample import Sample
from rtsam_jax.data.scans import CacheSettings
from rtsam_jax.models.presets import get_spec
from rtsam_jax.training.loop import prefetch
from rtsam_jax.training.sharding import make_mesh, replicated
from tests.tiny import TASKS, tiny_config

BATCH, WORDINGS = 4, 3
MIRRORED = 1000  # what a flip adds to a text id
WAIT_S = 30  # for the other processes, to come and to go: one that failed says why in time
AUGMENT = AugmentConfig(flip_axes=(0, 1, 2), affine=0.8, noise=0.8)


class CountedCases(PreparedCases):
    """Prepared cases that remember which were read."""

    def __init__(self, places: Sequence, tasks: Sequence[int], source: str):
        super().__init__(places, tasks, source, Path("unused"))
        self.read: list[int] = []

    def __getitem__(self, case: int) -> Neighbourhood:  # type: ignore[override]
        self.read.append(case)
        return super().__getitem__(case)


def prepared_cases(cfg: ExperimentConfig, size: int) -> tuple[CountedCases, int]:
    """Every case of the dataset, and how many scans this process prepared for it."""
    dataset = load_dataset(Path(cfg.data.dataset))
    modality = {task.name: task.modality for task in dataset.tasks}
    settings = CacheSettings.from_config(cfg, size)
    sync_global_devices("all find the cache empty")
    done = prepare_cases(dataset.cases, modality, settings, cache_root(cfg), workers=1)
    assert not done.failures, done.failures
    places = [done.entries[case.id] for case in dataset.cases]
    tasks = [TASKS.index(case.task) for case in dataset.cases]
    return CountedCases(places, tasks, cfg.dose.source), done.fresh


def prompt_ids(case: int) -> PromptIds:
    """Ids that name the case and the wording; the first case cannot be mirrored."""
    ids = 10 * case + np.arange(1 + WORDINGS)
    return PromptIds(ids, ids + MIRRORED if case else None)


def make_checksums(cfg: ExperimentConfig, size: int, mesh: Mesh) -> Callable:
    """`(step, batch) -> (step + 1, sums by name, each [B])`, jitted, a copy on every process."""

    def checksums(step: jax.Array, batch: Sample) -> tuple[jax.Array, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(cfg.seed), step)
        moved = augment(batch, jax.random.split(key, BATCH), cfg.augment, size)
        place = 1 + jnp.arange(size**3) % 251  # a voxel that moves changes the sum

        def total(volume: jax.Array) -> jax.Array:
            return (volume.reshape(BATCH, -1) * place).sum(1)

        sums = {
            "image": total(jnp.abs(moved.image)),
            "label": total(moved.label),
            "roi": total(moved.roi),
            "text_id": moved.text_id,
            "mirrored_text_id": moved.mirrored_text_id,
            "case_id": moved.case_id,
        }
        return step + 1, sums

    return jax.jit(checksums, out_shardings=replicated(mesh))


def rows_here(batch: Sample) -> list[int]:
    """Which rows of the global batch this process's devices hold."""
    shards = batch.image.addressable_shards
    return sorted(row for shard in shards for row in range(*shard.index[0].indices(BATCH)))


def main() -> None:
    dataset, (port, count, index, start, stop) = sys.argv[1], map(int, sys.argv[2:])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"localhost:{port}",
        count,
        index,
        initialization_timeout=WAIT_S,
        shutdown_timeout_seconds=WAIT_S,
    )
    grain.config.update("py_debug_mode", False)
    cfg = tiny_config(dataset, batch_size=BATCH, augment=AUGMENT)
    size = get_spec(cfg.model.preset).image_size
    cases, fresh = prepared_cases(cfg, size)
    stream = training_batches(
        cases,
        [prompt_ids(case) for case in range(len(cases))],
        size=size,
        jitter=cfg.data.jitter,
        batch_size=BATCH,
        seed=cfg.seed,
        margin=margin(cfg.augment, size),
        record_dropout=0.3,
        balanced_tasks=cases.task_ids,
        share=Share(jax.process_index(), jax.process_count()),
    )
    mesh = make_mesh(MeshConfig(), BATCH)
    checksums = make_checksums(cfg, size, mesh)
    step = jax.device_put(np.int32(start), replicated(mesh))
    told, held, sums = [], [], []

    def noted() -> Iterator[Sample]:
        for batch in batches_from(stream, start, stop):
            told.append(batch.case_id.tolist())
            yield batch

    for batch in prefetch(noted(), mesh):
        with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
            step, found = checksums(step, batch)
            found = jax.device_get(found)
        held.append(rows_here(batch))
        sums.append({name: values.tolist() for name, values in found.items()})
    report = {
        "processes": jax.process_count(),
        "devices": mesh.size,
        "fresh": fresh,
        "read": sorted(cases.read),
        "told": told,
        "held": held,
        "sums": sums,
    }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
