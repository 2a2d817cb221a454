"""What a user waits for: a crop's encoding, one more click on it, and the start of a process.

All of it by `prediction.segmenter`, as `rtsam_jax.predict` does it, with a random model and an
image of noise. `python -m rtsam_jax.benchmark.segmenter RUN IMAGE DOSE` is the process whose start
is measured.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rtsam_jax.benchmark.ours import TASKS, OurSide, synthetic_batch
from rtsam_jax.benchmark.timing import Contender, Ratio, Timing, ratio, time_in_turn
from rtsam_jax.compilation import keep_compiled_programs
from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.cases import Dataset, TaskInfo
from rtsam_jax.data.nifti import Volume, write_volume
from rtsam_jax.data.selection import RunData
from rtsam_jax.models.presets import get_spec
from rtsam_jax.prediction.segmenter import Click, Prompts, Segmenter
from rtsam_jax.report.tables import Table
from rtsam_jax.training.checkpoint import RunCheckpoints
from rtsam_jax.training.model_file import write_model_file
from rtsam_jax.training.state import Built

_NAMES = tuple(f"task{number}" for number in range(TASKS))


@dataclass
class SegmenterTiming:
    """What was measured of an open case, and of processes that open it.

    Attributes:
        encode: of its one crop, from the host to an embedding on the host.
        click: from a click to the probability on the host, the case being open.
        times: how many times as long encoding takes.
        cold_s: from a process's start to its first mask, nothing compiled.
        kept_s: the same, with the compiled programs that the start before left on disk.
    """

    encode: Timing
    click: Timing
    times: Ratio
    cold_s: list[float]
    kept_s: list[float]


def time_segmenter(cfg: ExperimentConfig, rounds: int) -> SegmenterTiming:
    """Encoding and clicks in turn in this process; cold starts and others in turn in their own."""
    with tempfile.TemporaryDirectory(prefix="rtsam_jax_bench_") as folder:
        place = Path(folder)
        run, image, dose = place / "run", place / "image.nii.gz", place / "dose.nii.gz"
        _save_random_run(cfg, run)
        _write_case(cfg, image, dose)
        segmenter = Segmenter.from_checkpoint(run)
        segmenter.set_case(image, dose, task=_NAMES[0])
        opened, model = segmenter.opened, segmenter.model
        images, rois = opened.images, opened.rois
        x, y, z = opened.scan.grid.to_world(np.array(opened.scan.grid.shape) / 2).tolist()
        prompts = Prompts(clicks=(Click((x, y, z), positive=True),))

        def encode() -> None:
            model.encode(images, rois, text_id=0)

        def click() -> None:
            segmenter.predict(prompts)

        contenders = Contender("encode", encode, None), Contender("warm click", click, None)
        encoding, clicking = time_in_turn(contenders, rounds)
        cold, kept = [], []
        for number in range(rounds):
            cache = place / f"cache{number}"
            cold.append(_seconds_to_first_mask(cache, run, image, dose))
            kept.append(_seconds_to_first_mask(cache, run, image, dose))
    return SegmenterTiming(encoding, clicking, ratio(clicking, encoding), cold, kept)


def segmenter_table(timing: SegmenterTiming) -> Table:
    """One row: what encoding takes beside a click, and a cold start beside another."""
    header = (
        "Encode (ms)", "Warm click (ms)", "Encode / click", "Cold start (s)",
        "Programs kept (s)", "Cold / kept", "Rounds",
    )  # fmt: skip
    times, pairs = timing.times, list(zip(timing.cold_s, timing.kept_s, strict=True))
    cold, kept = statistics.median(timing.cold_s), statistics.median(timing.kept_s)
    shares = [a / b for a, b in pairs]
    row = (
        f"{1e3 * timing.encode.median_s:.1f}",
        f"{1e3 * timing.click.median_s:.1f}",
        f"{times.of_medians:.1f} ({times.low:.1f} to {times.high:.1f})",
        f"{cold:.1f}",
        f"{kept:.1f}",
        f"{cold / kept:.2f} ({min(shares):.2f} to {max(shares):.2f})",
        len(pairs),
    )
    return Table(header, (row,))


def _save_random_run(cfg: ExperimentConfig, run: Path) -> None:
    """A run's folder as training leaves it, as far as prediction reads it."""
    side = OurSide(cfg)
    _, state = side.training()
    with closing(RunCheckpoints(run, keep=1)) as checkpoints:
        checkpoints.save(Built(side.graphdef, side.frozen, state), loss=0.0)
    tasks = tuple(TaskInfo(name, "CT", name) for name in _NAMES)
    data = RunData(
        dataset=Dataset(run, "noise", "synthetic", "Noise.", tasks, cases=()),
        tasks=_NAMES,
        modality=dict.fromkeys(_NAMES, "CT"),
        train=(),
        held_out=(),
        held_out_name="",
    )
    write_model_file(run, cfg, data, {name: f"Segment {name}." for name in _NAMES})


def _write_case(cfg: ExperimentConfig, image: Path, dose: Path) -> None:
    """An image of one crop's size, and a dose whose box has half its edge."""
    batch = synthetic_batch(get_spec(cfg.model.preset).image_size, 1)
    affine = np.diag([*(cfg.data.spacing_mm,) * 3, 1.0])
    for path, array in ((image, 100 * batch.image[0, ..., 0]), (dose, 70.0 * batch.roi[0])):
        write_volume(path, Volume(array.astype(np.float32), affine), np.float32)


def _seconds_to_first_mask(cache: Path, *files: Path) -> float:
    """Of a new process that keeps its compiled programs in `cache`."""
    command = [sys.executable, "-m", "rtsam_jax.benchmark.segmenter", *map(str, files)]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    began = time.time()  # this clock, since the other process reads it too
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return float(done.stdout.splitlines()[-1]) - began


def _first_mask(run: str, image: str, dose: str) -> float:
    """When the first mask was there, by the system's clock."""
    keep_compiled_programs()
    segmenter = Segmenter.from_checkpoint(run)
    segmenter.set_case(image, dose, task=_NAMES[0])
    segmenter.predict().mask()
    return time.time()


if __name__ == "__main__":
    print(_first_mask(*sys.argv[1:]))
