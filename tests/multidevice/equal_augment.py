"""Run under eight CPU devices: one batch augmented on one of them and on all; prints the result."""

from __future__ import annotations

import functools
import json

import jax
import numpy as np

from rtsam_jax.config import AugmentConfig, MeshConfig
from rtsam_jax.data.augment import augment, margin
from rtsam_jax.data.sample import Sample
from rtsam_jax.training.sharding import make_mesh, replicated, shard_batch

BATCH, SIZE = 8, 16
CFG = AugmentConfig(
    flip_axes=(0, 1, 2),
    affine=0.8,
    shear=0.1,
    noise=0.8,
    blur=0.8,
    gamma=0.8,
    intensity_scale=0.2,
    intensity_shift=0.2,
)


def make_batch() -> Sample:
    rng = np.random.default_rng(0)
    shape = (BATCH, *(SIZE + 2 * margin(CFG, SIZE),) * 3)
    ids = np.arange(BATCH, dtype=np.int32)
    return Sample(
        image=rng.standard_normal((*shape, 1), dtype=np.float32),
        label=(rng.random(shape) < 0.3).astype(np.uint8),
        roi=(rng.random(shape) < 0.6).astype(np.uint8),
        text_id=ids,
        mirrored_text_id=ids - 1,  # the first cannot be mirrored
        case_id=ids,
        weight=np.ones(BATCH, np.float32),
        view=np.full(BATCH, -1, np.int32),
    )


def run(devices: int) -> tuple[Sample, str]:
    """The result and the compiled program."""
    mesh = make_mesh(MeshConfig(data=devices), BATCH)
    batch = shard_batch(mesh, make_batch())
    keys = jax.device_put(jax.random.split(jax.random.key(5), BATCH), replicated(mesh))
    with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
        function = jax.jit(functools.partial(augment, cfg=CFG, size=SIZE))
        program = function.lower(batch, keys).compile()
        return program(batch, keys), program.as_text()


def main() -> None:
    (one, _), (many, program) = run(1), run(8)
    difference = {
        name: float(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).max())
        for name, a, b in zip(Sample._fields, one, many, strict=True)
    }
    report = {
        "devices": jax.device_count(),
        "rows_per_device": sorted(
            {shard.data.shape[0] for x in many for shard in x.addressable_shards}
        ),
        "collectives": [
            name
            for name in ("all-gather", "all-to-all", "all-reduce", "collective-permute")
            if name in program
        ],
        "spread": float(np.asarray(one.image).std()),
        "difference": difference,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
