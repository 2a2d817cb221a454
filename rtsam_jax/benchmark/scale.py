"""Start-up and memory on a dataset larger than memory: a simulated index over few real records.

`python -m rtsam_jax.benchmark.scale FOLDER` is the measured process; `measure_scale` builds FOLDER
and starts it, so that what building takes is not counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from rtsam_jax.benchmark.simulated_cache import noise_records
from rtsam_jax.data.cache import read_index, settings_folder, write_shard
from rtsam_jax.data.cases import Case, TaskInfo, load_dataset, write_dataset
from rtsam_jax.data.content import ContentHashes
from rtsam_jax.data.nifti import Volume, write_volume
from rtsam_jax.data.pipeline import PromptIds, batches_from, training_batches
from rtsam_jax.data.prepare import prepare_cases
from rtsam_jax.data.prepared import PreparedCases
from rtsam_jax.data.preprocess import PreprocessSpec
from rtsam_jax.data.scans import CacheSettings, group_scans

SETTINGS = CacheSettings(PreprocessSpec(), "label", size=64, reach=16, dtype="float16")
MODALITY = {f"task{t}": "CT" if t % 2 else "MR" for t in range(20)}
_SHARD = 64  # scans, as in real caches of this size
_LINKS = 50_000  # to one file; file systems allow some 65,000
_BATCHES, _BATCH = 100, 4


@dataclass
class ScaleTiming:
    """Seconds and resident memory of a fresh process.

    Attributes:
        nominal_gb: size of all shards, were they not links to one.
        load_s, index_s, first_s: reading dataset.json; finding every case in the cache; the first
            batch.
        volumes_per_s: read afterwards, at random over all of them.
        imported_mb, indexed_mb, peak_mb: memory after the imports, after the first batch, and at
            most while reading.
    """

    volumes: int
    masks: int
    nominal_gb: float
    load_s: float
    index_s: float
    first_s: float
    volumes_per_s: float
    imported_mb: float
    indexed_mb: float
    peak_mb: float


def measure_scale(volumes: int, masks: int) -> ScaleTiming:
    """Builds the simulated dataset and its cache, and measures a process that reads from it."""
    with tempfile.TemporaryDirectory(prefix="rtsam_jax_bench_") as folder:
        root = Path(folder)
        nominal = _build(root, volumes, masks)
        command = [sys.executable, "-m", "rtsam_jax.benchmark.scale", folder]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(result.stdout.splitlines()[-1])
    return ScaleTiming(volumes=volumes, masks=masks, nominal_gb=nominal / 1e9, **found)


def _build(root: Path, volumes: int, masks: int) -> int:
    """Tiny files with distinct contents, and shards of noise for what they would become."""
    write_volume(root / "volume.nii", Volume(np.zeros((4, 4, 4), np.float32), np.eye(4)), "f4")
    content = (root / "volume.nii").read_bytes()
    for at in range(volumes):
        (root / f"v{at}.nii").write_bytes(content[:-8] + at.to_bytes(8, "little"))
    for at in range(masks):
        source = root / f"m{at - at % _LINKS}.nii"
        if at % _LINKS:
            os.link(source, root / f"m{at}.nii")
        else:
            source.write_bytes(content)
    tasks = list(MODALITY)
    write_dataset(
        root,
        name="simulated",
        kind="synthetic",
        description="Noise.",
        tasks=[TaskInfo(name, kind, name) for name, kind in MODALITY.items()],
        cases=[
            {
                "id": f"c{at}",
                "patient": f"p{at % volumes}",
                # All masks of a volume are of one modality, and so on one scan.
                "task": tasks[2 * (at // volumes % 10) + at % volumes % 2],
                "image": f"v{at % volumes}.nii",
                "label": f"m{at}.nii",
                "split": "train",
            }
            for at in range(masks)
        ],
    )
    time.sleep(3)  # files that have just changed are not remembered
    cases = load_dataset(root).cases
    cache = epath.Path(root / "prepared")
    folder = settings_folder(cache, SETTINGS)
    digests = ContentHashes(cache).of(_files(cases))
    scans, _ = group_scans(cases, MODALITY, SETTINGS, digests)
    records = list(noise_records(SETTINGS, _SHARD, labels=-(-masks // volumes)))
    shards = [scans[at : at + _SHARD] for at in range(0, len(scans), _SHARD)]
    template = Path()
    for shard in shards:
        entries = [{"key": k.key, "views": [{}] * len(k.views), "about": {}} for k in shard]
        if shard is shards[0] or len(shard) < _SHARD:
            write_shard(folder, list(zip(records, entries, strict=False)))
            template = template if template.name else next(Path(folder).glob("*.array_record"))
            continue
        name = shard[0].key[:16]
        os.link(template, folder / f"{name}.array_record")
        index = {"bytes": template.stat().st_size, "records": entries}
        (folder / f"{name}.json").write_text(json.dumps(index))
    assert len(read_index(folder)) == len(scans)
    return len(shards) * template.stat().st_size


def _files(cases: tuple[Case, ...]) -> Iterator[Path]:
    for case in cases:
        yield case.image
        assert case.label is not None
        yield case.label


def _probe(root: Path) -> dict[str, Any]:
    imported = _memory("VmRSS")
    began = time.perf_counter()
    cases = load_dataset(root).cases
    loaded = time.perf_counter()
    done = prepare_cases(cases, MODALITY, SETTINGS, epath.Path(root / "prepared"))
    assert done.fresh == 0 and not done.failures
    tasks = list(MODALITY)
    prepared = PreparedCases(
        [done.entries[case.id] for case in cases],
        [tasks.index(case.task) for case in cases],
        SETTINGS.source,
        root,
    )
    indexed = time.perf_counter()
    ids = np.zeros(2, np.int32)
    dataset = training_batches(
        prepared,
        [PromptIds(ids, ids)] * len(cases),
        size=SETTINGS.size,
        jitter=SETTINGS.reach,
        batch_size=_BATCH,
        seed=0,
        balanced_tasks=prepared.task_ids,
    )
    batches = batches_from(dataset, 0, _BATCHES)
    next(batches)
    first = time.perf_counter()
    after_first = _memory("VmRSS")
    for _ in batches:
        pass
    return {
        "load_s": loaded - began,
        "index_s": indexed - loaded,
        "first_s": first - indexed,
        "volumes_per_s": (_BATCHES - 1) * _BATCH / (time.perf_counter() - first),
        "imported_mb": imported,
        "indexed_mb": after_first,
        "peak_mb": _memory("VmHWM"),
    }


def _memory(field: str) -> float:
    """VmRSS or VmHWM of this process in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1e3
    raise OSError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    print(json.dumps(_probe(Path(sys.argv[1]))))
