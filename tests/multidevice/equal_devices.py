"""Run under eight CPU devices: the same steps on one of them and on all; prints what differs."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
from flax import nnx

from rtsam_jax.config import MeshConfig
from rtsam_jax.data.sample import Sample
from rtsam_jax.models.text_adapter import TextTable
from rtsam_jax.optim import make_optimizer
from rtsam_jax.training.sharding import make_mesh, replicated, shard_batch
from rtsam_jax.training.state import build
from rtsam_jax.training.step import make_train_step
from rtsam_jax.weights import flatten
from tests.tiny import tiny_config

STEPS, BATCH, SIDE = 3, 8, 32
WIDTH = 20  # of a text feature


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
        out.append(Sample(image, label, roi, text, mirrored, case))
    return out


def run(devices: int) -> dict[str, Any]:
    # An untrained model's logits crowd around 0: at p = 0.5 a rounding error moves a voxel across
    # the threshold, another click is drawn, and the comparison says nothing about sharding.
    cfg = tiny_config(
        batch_size=BATCH,
        click__iterations=3,
        click__per_iteration=4,
        click__threshold=1e-3,
        prompt__task="text",
    )
    mesh = make_mesh(MeshConfig(data=devices), BATCH)
    optimizer = make_optimizer(cfg.optim, STEPS)
    built = build(cfg, 3, optimizer, mesh, text_width=WIDTH)
    features = np.random.default_rng(0).standard_normal((3, 1, WIDTH)).astype(np.float32)
    texts = jax.device_put(TextTable(features, np.ones((3, 1), bool)), replicated(mesh))
    start = {k: np.array(v) for k, v in flatten(nnx.to_pure_dict(built.state.trained)).items()}
    step = make_train_step(built.graphdef, optimizer, cfg)
    state, losses, placed = built.state, [], []
    for batch in batches():
        sharded = shard_batch(mesh, batch)
        placed.append(len(sharded.image.sharding.device_set))
        assert sharded.image.addressable_shards[0].data.shape[0] == BATCH // devices
        with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
            state, metrics = step(state, built.frozen, sharded, texts)
        losses.append(np.asarray(metrics.case_loss))
    params = {k: np.array(v) for k, v in flatten(nnx.to_pure_dict(state.trained)).items()}
    copies = {len(x.sharding.device_set) for x in jax.tree.leaves(state)}
    compiled = step._cache_size()
    return locals()


def main() -> None:
    one, all_of_them = run(1), run(8)
    moved = {k: v - one["start"][k] for k, v in one["params"].items()}
    apart = {k: v - one["params"][k] for k, v in all_of_them["params"].items()}

    def norm(parts: dict[str, np.ndarray]) -> float:
        return float(np.sqrt(sum(np.vdot(x, x) for x in parts.values())))

    report = {
        "devices": jax.device_count(),
        "placed": all_of_them["placed"],
        "copies": sorted(all_of_them["copies"]),
        "compiled": [one["compiled"], all_of_them["compiled"]],
        "losses": np.array(one["losses"]).tolist(),
        "loss_error": float(np.abs(np.array(one["losses"]) - all_of_them["losses"]).max()),
        "same_start": all(
            np.array_equal(v, all_of_them["start"][k]) for k, v in one["start"].items()
        ),
        "moved": norm(moved),
        "update_error": norm(apart) / norm(moved),
        "largest_error": max(float(np.abs(x).max()) for x in apart.values()),
        "relative_error": norm(apart) / norm(one["params"]),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
