"""Run under eight CPU devices: the same steps on several meshes; prints what differs."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from rtsam_jax.config import AugmentConfig, ExperimentConfig, MeshConfig
from rtsam_jax.data.sample import Sample
from rtsam_jax.models.presets import PRESETS
from rtsam_jax.models.text_adapter import TextTable
from rtsam_jax.optim import make_optimizer
from rtsam_jax.training.checkpoint import RunCheckpoints
from rtsam_jax.training.sharding import make_mesh, replicated, shard_batch
from rtsam_jax.training.state import Built, build
from rtsam_jax.training.step import make_train_step
from rtsam_jax.weights import flatten, save_weights
from tests.models.random_model import random_model
from tests.tiny import tiny_config

STEPS, BATCH, SIDE = 3, 8, 32
WIDTH = 20  # of a text feature
MESHES = [(8, 1, 1), (2, 2, 2), (1, 4, 2)]  # each is compared with one device
SAVED, RESUMED = (2, 2, 2), [(1, 2, 2), (1, 1, 1)]
# Four heads can be divided over `tensor`, three cannot; blocks that repeat are scanned.
PRESETS["test"] = dataclasses.replace(PRESETS["test"], heads=4, depth=4, global_blocks=(1, 3))


def batches() -> list[Sample]:
    """Blobs whose text and place differ by case."""
    index = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij"), -1)
    out = []
    for step in range(STEPS):
        rng = np.random.default_rng(step)
        centres = rng.integers(10, 22, (BATCH, 3))
        distance = np.linalg.norm(index - centres[:, None, None, None], axis=-1)
        noise = rng.standard_normal((BATCH, SIDE, SIDE, SIDE, 1)).astype(np.float32)
        text, case = rng.integers(0, 3, BATCH).astype(np.int32), np.arange(BATCH, dtype=np.int32)
        label, roi = (distance < 4).astype(np.uint8), (distance < 9).astype(np.uint8)
        image, mirrored = noise + 3 * label[..., None], np.full_like(text, -1)
        weight = np.ones(BATCH, np.float32)
        out.append(Sample(image, label, roi, text, mirrored, case, weight, mirrored))
    return out


def config(**fields: object) -> ExperimentConfig:
    # An untrained model's logits crowd around 0: at p = 0.5 a rounding error moves a voxel across
    # the threshold, another click is drawn, and the comparison says nothing about sharding.
    return tiny_config(
        batch_size=BATCH,
        click__iterations=3,
        click__per_iteration=4,
        click__threshold=1e-3,
        prompt__task="text",
        model__remat="blocks",
        **fields,
    )


class Run:
    """A state on a mesh, its compiled step, and what they gave."""

    def __init__(self, cfg: ExperimentConfig, axes: tuple[int, int, int]):
        self.mesh: Mesh = make_mesh(MeshConfig(*axes), BATCH)
        optimizer = make_optimizer(cfg.optim, STEPS)
        self.built: Built = build(cfg, 3, optimizer, self.mesh, text_width=WIDTH)
        features = np.random.default_rng(0).standard_normal((3, 1, WIDTH)).astype(np.float32)
        table = TextTable(features, np.ones((3, 1), bool))
        self.texts = jax.device_put(table, replicated(self.mesh))
        self.start = self.parameters()
        self.placed = shard_shapes(self.built)
        self.step = make_train_step(self.built.graphdef, optimizer, cfg)
        self.losses: list[np.ndarray] = []

    def train(self, batch: Sample) -> None:
        sharded = shard_batch(self.mesh, batch)
        with jax.set_mesh(self.mesh), jax.transfer_guard("disallow"):
            state, metrics = self.step(self.built.state, self.built.frozen, sharded, self.texts)
        self.built = Built(self.built.graphdef, self.built.frozen, state)
        self.losses.append(np.asarray(metrics.case_loss))

    def parameters(self) -> dict[str, np.ndarray]:
        flat = flatten(nnx.to_pure_dict(self.built.state.trained))
        return {name: np.array(value) for name, value in flat.items()}

    def resumed(self, folder: Path) -> dict[str, np.ndarray]:
        """All arrays of the checkpoint in `folder`, once they lie on this mesh."""
        with closing(RunCheckpoints(folder, keep=1)) as checkpoints:
            self.built = checkpoints.restore(self.built)
        return arrays(self.built)


def arrays(built: Built) -> dict[str, np.ndarray]:
    named, _ = jax.tree_util.tree_flatten_with_path((built.state, built.frozen))
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in named}


def shard_shapes(built: Built) -> dict[str, list[tuple[int, ...]]]:
    """By name of an array of the state: its shape, and that of a device's part of it."""
    named, _ = jax.tree_util.tree_flatten_with_path((built.state, built.frozen))
    return {
        jax.tree_util.keystr(path): [leaf.shape, leaf.addressable_shards[0].data.shape]
        for path, leaf in named
    }


def largest(differences: dict[str, np.ndarray]) -> float:
    return max(float(np.abs(x).max()) for x in differences.values())


def norm(parts: dict[str, np.ndarray]) -> float:
    return math.sqrt(sum(np.vdot(x, x) for x in parts.values()))


def compare(one: Run, other: Run) -> dict[str, Any]:
    params = other.parameters()
    moved = {k: v - one.start[k] for k, v in one.parameters().items()}
    apart = {k: params[k] - v for k, v in one.parameters().items()}
    return {
        "placed": other.placed,
        "kept_place": shard_shapes(other.built) == other.placed,
        "compiled": other.step._cache_size(),
        "same_start": all(np.array_equal(v, other.start[k]) for k, v in one.start.items()),
        "losses": np.array(one.losses).tolist(),
        "loss_error": float(np.abs(np.array(one.losses) - other.losses).max()),
        "moved": norm(moved),
        "update_error": norm(apart) / norm(moved),
        "relative_error": norm(apart) / norm(one.parameters()),
    }


def run_all(cfg: ExperimentConfig, meshes: list[tuple[int, int, int]]) -> dict[str, Any]:
    one = Run(cfg, (1, 1, 1))
    for batch in batches():
        one.train(batch)
    report = {}
    for axes in meshes:
        other = Run(cfg, axes)
        for batch in batches():
            other.train(batch)
        report["x".join(map(str, axes))] = compare(one, other)
    return report


def uneven(cfg: ExperimentConfig) -> dict[str, Any]:
    """Six cases on one device; on eight, two rows that do not count beside them, in two parts."""
    one, other = Run(cfg, (1, 1, 1)), Run(dataclasses.replace(cfg, accumulate=2), (2, 2, 2))
    for batch in batches():
        six, eight = (Sample(*(x[rows] for x in batch)) for rows in (range(6), [*range(6), 0, 1]))
        one.train(six)
        other.train(eight._replace(weight=np.array([1] * 6 + [0] * 2, np.float32)))
    other.losses = [losses[:6] for losses in other.losses]
    return compare(one, other)


def elastic(cfg: ExperimentConfig, folder: Path) -> dict[str, Any]:
    """A checkpoint before the last step, continued on fewer devices."""
    *before, last = batches()
    saved = Run(cfg, SAVED)
    for batch in before:
        saved.train(batch)
    with closing(RunCheckpoints(folder, keep=1)) as checkpoints:
        checkpoints.save(saved.built, loss=0.0)
    stored = arrays(saved.built)
    saved.train(last)
    report = {}
    for axes in RESUMED:
        run = Run(cfg, axes)
        fresh = arrays(run.built)
        found = run.resumed(folder)
        run.train(last)
        report["x".join(map(str, axes))] = {
            "devices": run.mesh.size,
            "changed": sum(not np.array_equal(fresh[k], v) for k, v in found.items()),
            "arrays": len(stored),
            "equal": sum(np.array_equal(stored[k], v) for k, v in found.items()),
            "kept_place": shard_shapes(run.built) == run.placed,
            "loss_error": float(np.abs(run.losses[0] - saved.losses[-1]).max()),
        }
    return report


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        weights = {
            ".".join(map(str, path)): np.asarray(leaf.get_value())
            for path, leaf in nnx.to_flat_state(nnx.state(random_model(seed=3)))
        }
        save_weights(folder / "weights", weights, {"preset": "test"})
        frozen = config(model__freeze_encoder=True, model__checkpoint=str(folder / "weights"))
        turned = dataclasses.replace(frozen, augment=AugmentConfig(flip_axes=(1, 2)))
        report = {
            "devices": jax.device_count(),
            "trained": run_all(config(), MESHES),
            "uneven": {"2x2x2": uneven(turned)},
            "elastic": elastic(config(), folder / "run"),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
