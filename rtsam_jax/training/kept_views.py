"""The embedding cache: fixed views through the frozen encoder once, and on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

import grain
import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.pipeline import Share, batches_from, in_batches, read_rows
from rtsam_jax.data.prepare import Progress
from rtsam_jax.data.prepared import PreparedCases
from rtsam_jax.data.sample import Sample, View
from rtsam_jax.data.shards import DIGITS, Place, make_folder, only_one, write_shard
from rtsam_jax.data.user_cache import user_cache
from rtsam_jax.data.views import (
    ENCODED,
    FixedViews,
    StoredViews,
    Turn,
    ViewSettings,
    encode,
    find_views,
    view_keys,
    views_root,
)
from rtsam_jax.errors import CacheDamaged, ConfigError
from rtsam_jax.models.presets import get_spec
from rtsam_jax.training.processes import barrier, is_first
from rtsam_jax.training.sharding import BATCH, shard_batch
from rtsam_jax.training.state import Built
from rtsam_jax.training.step import draw_view, fixed_view_keys
from rtsam_jax.training.stopping import RunStopped

_LARGEST_SHARD = 64  # views; what a kill can cost each process, against the number of files
_SHARD_BYTES = 2**28  # written as soon as they are reached: until then they are in memory

Item = TypeVar("Item")


class ViewEncoder:
    """Batches of crops to views, in one jitted program, whether they are kept or used at once.

    That, and batches of one shape, is why a float32 cache changes no bit of a run.
    """

    def __init__(self, built: Built, cfg: ExperimentConfig, mesh: Mesh):
        model = nnx.merge(built.graphdef, built.state.trained, built.frozen)
        graphdef, self._weights = nnx.split(model.image_encoder)
        self._arithmetic = [dataclasses.asdict(get_spec(cfg.model.preset)), cfg.model.compute_dtype]

        def encode_batch(weights: nnx.State, batch: Sample) -> View:
            image, view = draw_view(batch, fixed_view_keys(batch.view), cfg)
            return view._replace(embedding=nnx.merge(graphdef, weights)(image))

        self._encode = jax.jit(encode_batch, out_shardings=NamedSharding(mesh, BATCH))

    def __call__(self, batch: Sample) -> View:
        return self._encode(self._weights, batch)

    @property
    def digest(self) -> str:
        """SHA-256 of sizes, type of arithmetic, and every weight as it was loaded."""
        digest = hashlib.sha256(json.dumps(self._arithmetic, sort_keys=True).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self._weights):
            if not leaf.is_fully_addressable:
                leaf = multihost_utils.process_allgather(leaf, tiled=True)
            digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()


def read_crops(
    views: FixedViews, cases: PreparedCases, cfg: ExperimentConfig
) -> Callable[[Sequence[Turn]], Sample]:
    """Reads turns as crops that the encoder takes: unaugmented, with their margin."""
    side = get_spec(cfg.model.preset).image_size + 2 * views.margin
    return lambda turns: read_rows(cases, [views.plan(turn) for turn in turns], side)


def keep_views(
    encoder: ViewEncoder,
    views: FixedViews,
    cases: PreparedCases,
    cfg: ExperimentConfig,
    *,
    mesh: Mesh,
    share: Share = Share(),  # noqa: B008  # immutable
    rows: int = 0,
    check: Callable[[], None] | None = None,
) -> StoredViews:
    """Encodes the views that are not on disk yet, and returns all.

    Every process encodes and writes its rows of each batch, then all wait for each other. One
    command at a time writes; another waits for it and finds what it made.

    Args:
        check: called by all processes together, after each batch and while they wait for another
            command; may raise `RunStopped`, in all of them.

    Raises:
        CacheDamaged: another command removed some meanwhile.
        ConfigError: the processes do not see one folder.
        NotWritable: no space, no permission.
        RunStopped: of `check`; what was encoded is kept.
    """
    settings = ViewSettings.from_config(cfg, encoder.digest)
    folder = views_root(cfg) / settings.digest[:DIGITS]
    make_folder(folder, settings.to_json(), ENCODED)
    keys = view_keys(settings, views, cases.keys)
    found = find_views(folder)
    if _any_process(bool(_missing(keys, found))):
        with ExitStack() as stack:
            if is_first():
                stack.enter_context(only_one(folder, ENCODED, partial(_waiting, True, check)))
            while _waiting(False, check):  # for process 0's turn, all with an ear for signals
                continue
            if is_first():
                find_views(folder, mend=True)
            barrier("views are mended")
            missing = _missing(keys, find_views(folder))
            if not _alike(missing):  # all have listed them before one is written
                raise _not_shared(folder)
            batches = _encoded(encoder, views, cases, cfg, missing, mesh, share, rows)
            with Progress(len(missing), "encoded", "views") as progress:
                written = _write(batches, views, keys, folder, cfg, progress, check)
            barrier("views are written")
        found = find_views(folder)
        lost = _missing(keys, found)
        if lost and set(lost) == set(missing) - written:  # what other processes wrote, and no more
            raise _not_shared(folder)
        if lost:
            raise CacheDamaged(
                f"Encoded views in {folder} were removed by another command while this one ran; "
                "start it again."
            )
    places: list[list[Place]] = [[found[key] for key in of_case] for of_case in keys]
    return StoredViews(places, views.prompts, user_cache("views"))


def _missing(keys: Sequence[Sequence[str]], found: dict[str, Place]) -> list[Turn]:
    """By case, so that a case is read once for its views."""
    return [
        Turn(case_id, number)
        for case_id, of_case in enumerate(keys)
        for number, key in enumerate(of_case)
        if key not in found
    ]


def _not_shared(folder: epath.Path) -> ConfigError:
    return ConfigError(
        f"the processes of this run see different files in {folder}; set config.views.folder (or "
        "config.data.cache, in which it is by default) to a folder that all of them share."
    )


def _encoded(
    encoder: ViewEncoder,
    views: FixedViews,
    cases: PreparedCases,
    cfg: ExperimentConfig,
    missing: Sequence[Turn],
    mesh: Mesh,
    share: Share,
    rows: int,
) -> Iterator[tuple[list[Turn], View]]:
    """Batches of views on the devices, each with the turns of this process's rows."""
    crops = read_crops(views.by_position(), cases, cfg)
    dataset = in_batches(
        grain.MapDataset.source(missing),
        lambda turns: (turns, crops(turns)),
        batch_size=cfg.batch_size,
        share=share,
        rows=rows,
        samples=len(missing),
    )
    count = math.ceil(len(missing) / cfg.batch_size)
    for turns, batch in batches_from(dataset, 0, count, cfg.data.read_threads):
        with jax.set_mesh(mesh):
            view = encoder(shard_batch(mesh, batch))
        yield turns, view


def _write(
    batches: Iterator[tuple[list[Turn], View]],
    views: FixedViews,
    keys: Sequence[Sequence[str]],
    folder: epath.Path,
    cfg: ExperimentConfig,
    progress: Progress,
    check: Callable[[], None] | None,
) -> set[Turn]:
    """Writes this process's rows, a shard at a time; returns them."""
    written: set[Turn] = set()
    records: list[tuple[bytes, dict[str, Any]]] = []

    def write() -> None:
        if records:
            write_shard(folder, records, ENCODED)
            records.clear()

    for turns, batch in _one_ahead(batches):
        view = jax.tree.map(_own_rows, batch)
        for row, turn in enumerate(turns):
            if not turn.weight:
                continue
            seed = views.seed_of(turn.case_id, turn.number)
            content = encode(view, row, dtype=cfg.views.cache, seed=seed)
            records.append((content, {"key": keys[turn.case_id][turn.number]}))
            written.add(Turn(turn.case_id, turn.number))
        progress.add(min(cfg.batch_size, progress.left))
        size = sum(len(content) for content, _ in records)
        if len(records) >= _LARGEST_SHARD or size >= _SHARD_BYTES:
            write()
        if check is not None:
            try:
                check()
            except RunStopped:
                write()
                barrier("views are written")  # by all, before process 0 gives up the folder's lock
                raise
    write()
    return written


def _one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each when the next is under way: devices work while the host writes."""
    ahead: list[Item] = []
    for item in items:
        yield from ahead
        ahead = [item]
    yield from ahead


def _own_rows(batch: jax.Array) -> np.ndarray:
    """On the host, the rows of a batch that this process's devices hold."""
    parts = {shard.index[0].start or 0: shard.data for shard in batch.addressable_shards}
    return np.concatenate([parts[start] for start in sorted(parts)])


def _waiting(here: bool, check: Callable[[], None] | None) -> bool:
    """Whether any process waits for another command; all must ask, and `check` meanwhile."""
    waits = _any_process(here)
    if waits and check is not None:
        check()
    return waits


def _alike(turns: Sequence[Turn]) -> bool:
    """Whether all processes have the same; returns when all have asked."""
    if jax.process_count() == 1:
        return True
    digest = hashlib.sha256(repr(list(turns)).encode()).digest()
    every = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    return bool(np.all(every == every[0]))


def _any_process(holds: bool) -> bool:
    if jax.process_count() == 1:
        return holds
    return bool(np.any(multihost_utils.process_allgather(np.array(holds))))
