"""`python -m rtsam_jax.bench [--case NAME|all] [--rounds N] [--batch N] [--json PATH]`.

Times the image encoder (one volume, float32) and the whole training step (frozen encoder, a first
pass and 3 x 4 clicks) on synthetic data, in turn with the authors' PyTorch model in this process;
the augmentation of one volume, in turn with MONAI's transforms on the CPU; and whether training
waits for its input. `--case scale` is not among `all`: it builds a simulated index of 22,000
volumes and 143,000 masks, and measures start-up and memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax

from rtsam_jax.benchmark.augmentation import CONFIG as AUGMENTATION
from rtsam_jax.benchmark.augmentation import monai_augment, our_augment, source_volume
from rtsam_jax.benchmark.input import InputTiming, time_input
from rtsam_jax.benchmark.matrix_rate import matrix_rate
from rtsam_jax.benchmark.ours import OurSide, synthetic_batch
from rtsam_jax.benchmark.rival import RivalSide
from rtsam_jax.benchmark.scale import ScaleTiming, measure_scale
from rtsam_jax.benchmark.timing import Contender, Ratio, Timing, ratio, time_in_turn
from rtsam_jax.config import ExperimentConfig, ModelConfig
from rtsam_jax.errors import ConfigError, ExtraMissing, run_command
from rtsam_jax.models.presets import PRESETS, get_spec
from rtsam_jax.report.files import written_whole
from rtsam_jax.report.tables import Table, render

SCHEMA_VERSION = 1
MODEL_CASES = ("encoder", "step")
CASES = (*MODEL_CASES, "augment")  # two sides each
VOLUMES, MASKS = 22_000, 143_000  # of SAM-Med3D's training data
RIVALS = ("auto", "medim", "monai", "none")

Side = TypeVar("Side")


@dataclasses.dataclass
class Result:
    """One case: what each side took, ours first, and the ratio where there is a rival."""

    case: str
    batch: int
    timings: list[Timing]
    ratio: Ratio | None


def run_bench(
    cases: Sequence[str], preset: str, batch: int, rounds: int, rival: str
) -> list[Result]:
    """Times the cases one after the other; all but the step have a batch of 1.

    Args:
        rival: "medim" for encoder and step, "monai" for augment, "auto" for those installed, or
            "none"; a case of which it is not the rival is timed alone.

    Raises:
        ConfigError: a preset `medim` does not have, or `medim` where JAX does not use the CPU.
        ExtraMissing: the rival named is not installed; "auto" then leaves it out, and says so.
    """
    cfg = _config(preset, batch)
    size = get_spec(preset).image_size
    model_sides = _model_sides(cfg, rival) if set(cases) & set(MODEL_CASES) else []
    results = []
    for case in cases:
        volumes = batch if case == "step" else 1
        contenders: list[Contender]
        if case == "augment":
            source = source_volume(size)
            theirs = _rival("monai", rival, partial(monai_augment, source, size))
            contenders = [our_augment(source, size), *theirs]
        else:
            samples = synthetic_batch(size, volumes)
            contenders = [getattr(side, case)(samples) for side in model_sides]
        timings = time_in_turn(contenders, rounds)
        compared = ratio(*timings) if len(timings) == 2 else None
        results.append(Result(case, volumes, timings, compared))
    return results


def _config(preset: str, batch: int) -> ExperimentConfig:
    cfg = ExperimentConfig(batch_size=batch, model=ModelConfig(preset=preset))
    cfg.prompt.task = "embedding"  # no language model is timed
    return cfg


def _model_sides(cfg: ExperimentConfig, rival: str) -> list[OurSide | RivalSide]:
    sides = _rival("medim", rival, lambda: RivalSide(cfg))  # first: it may be missing
    if sides and jax.default_backend() != "cpu":
        raise ConfigError(
            f"the PyTorch original is timed on the CPU, but JAX uses {jax.default_backend()}: set "
            f"JAX_PLATFORMS=cpu, or time this project alone with --rival none."
        )
    return [OurSide(cfg), *sides]


def _rival(name: str, asked: str, make: Callable[[], Side]) -> list[Side]:
    """The rival, or nothing where it is not asked for, or not installed and not insisted on."""
    if asked not in ("auto", name):
        return []
    try:
        return [make()]
    except ExtraMissing as missing:
        if asked == name:
            raise
        print(f"Timing this project alone: {missing}\n")
        return []


def machine() -> dict[str, Any]:
    """Where the numbers are from."""
    packages = ("jax", "jaxlib", "flax", "torch", "medim", "monai")
    versions = {d.name: d.version for d in importlib.metadata.distributions() if d.name in packages}
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = named[0].partition(":")[2].strip() if named else cpu
    return {
        "cpu": cpu,
        "threads": len(os.sched_getaffinity(0)),
        "device": str(jax.devices()[0]),
        "python": platform.python_version(),
        "versions": versions,
    }


def time_table(results: Sequence[Result]) -> Table:
    """One row per case and side."""
    header = (
        "Case", "Batch", "Side", "Compile (s)", "First (s)", "Median (ms)", "Min (ms)", "Max (ms)",
        "CPU (ms)", "Peak RSS (GB)", "GFLOP by hand", "GFLOP by XLA", "GFLOP/s",
    )  # fmt: skip
    rows = []
    for result in results:
        for t in result.timings:
            of_interest = t.median_s, min(t.seconds), max(t.seconds), t.median_cpu_s
            milliseconds = (f"{1e3 * s:.1f}" for s in of_interest)
            rows.append(
                (
                    result.case,
                    result.batch,
                    t.side,
                    f"{t.compile_s:.1f}",
                    f"{t.first_s:.2f}",
                    *milliseconds,
                    _scaled(t.peak_rss, 2),
                    _scaled(t.hand_flop, 1),
                    _scaled(t.xla_flop, 1),
                    _scaled(t.hand_flop and t.hand_flop / t.median_s, 1),
                )
            )
    return Table(header, tuple(rows))


def ratio_table(results: Sequence[Result]) -> Table:
    """One row per case: how many times as long the rival takes."""
    return Table(
        ("Case", "Batch", "Rival / ours", "Smallest pair", "Largest pair", "CPU time", "Rounds"),
        tuple(
            (
                result.case,
                result.batch,
                *(f"{x:.1f}" for x in dataclasses.astuple(result.ratio)),
                len(result.timings[0].seconds),
            )
            for result in results
            if result.ratio
        ),
    )


def input_table(timing: InputTiming) -> Table:
    """One row: the input pipeline alone, and in front of a training step."""
    header = (
        "Batch", "Threads", "Record (MB)", "Reading (ms/volume)", "Step alone (ms)",
        "Step fed (ms)", "Waiting for input",
    )  # fmt: skip
    return Table(
        header,
        (
            (
                timing.batch,
                timing.threads,
                f"{timing.record_mb:.1f}",
                f"{timing.read_ms:.0f}",
                f"{timing.step_ms:.0f}",
                f"{timing.loop_ms:.0f}",
                f"{timing.waited:.2%}",
            ),
        ),
    )


def scale_table(timing: ScaleTiming) -> Table:
    """One row: start-up and memory of a process on the simulated index."""
    header = (
        "Volumes", "Masks", "Nominal (GB)", "dataset.json (s)", "Index (s)", "First batch (s)",
        "Volumes/s", "RSS, imports (MB)", "RSS, first batch (MB)", "Peak RSS (MB)",
    )  # fmt: skip
    values = dataclasses.astuple(timing)
    digits = (0, 0, 1, 1, 1, 2, 0, 0, 0, 0)
    cells = (f"{value:.{places}f}" for value, places in zip(values, digits, strict=True))
    return Table(header, (tuple(cells),))


def describe_rate(results: Sequence[Result], rate: float) -> str:
    """How near the encoder comes to what a plain matrix product reaches.

    Args:
        rate: of `matrix_rate`, FLOP/s.
    """
    text = f"A plain float32 product of the size of its MLP runs at {_scaled(rate, 0)} GFLOP/s here"
    ours = next((r.timings[0] for r in results if r.case == "encoder"), None)
    if ours is None or ours.hand_flop is None:
        return text + "."
    reached = ours.hand_flop / ours.median_s / rate
    return f"{text}; the encoder of {ours.side} reaches {reached:.0%} of that."


def _scaled(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value / 1e9:.{digits}f}"


def write_json(
    results: Sequence[Result],
    preset: str,
    rate: float | None,
    path: Path,
    more: Mapping[str, InputTiming | ScaleTiming],
) -> None:
    """Everything measured, with every single run; whole or not at all."""
    content = {
        "schema": SCHEMA_VERSION,
        "machine": machine(),
        "preset": preset,
        "dtype": "float32",
        "matrix_flop_per_s": rate,
        "cases": [dataclasses.asdict(result) for result in results],
        **{name: dataclasses.asdict(timing) for name, timing in more.items()},
    }
    with written_whole(path) as beside:
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(prog="python -m rtsam_jax.bench", description=__doc__)
    parser.add_argument("--case", choices=(*CASES, "input", "scale", "all"), default="all")
    parser.add_argument("--rounds", type=_positive, default=5, help="timed runs of each side")
    parser.add_argument("--batch", type=_positive, default=1, help="of the training step")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="vit_b_ori")
    parser.add_argument(
        "--rival", choices=RIVALS, default="auto", help="auto: medim and monai where installed"
    )
    parser.add_argument("--json", type=Path, help="file to write every number to")
    arguments = parser.parse_args(argv)
    asked = (*CASES, "input") if arguments.case == "all" else (arguments.case,)
    cases = [case for case in asked if case in CASES]
    results = run_bench(cases, arguments.preset, arguments.batch, arguments.rounds, arguments.rival)
    where = machine()
    print(f"{arguments.preset}, float32, {where['cpu']}, {where['threads']} threads\n")
    rate = None
    if results:
        print(render(time_table(results)))
        if any(result.ratio for result in results):
            print(render(ratio_table(results)))
    if set(cases) & set(MODEL_CASES):
        rate = matrix_rate(get_spec(arguments.preset))
        print(describe_rate(results, rate) + "\n")
    more: dict[str, InputTiming | ScaleTiming] = {}
    if "input" in asked:
        cfg = _config(arguments.preset, arguments.batch)
        cfg.augment = AUGMENTATION
        more["input"] = fed = time_input(cfg, arguments.rounds)
        print(render(input_table(fed)))
    if "scale" in asked:
        more["scale"] = scale = measure_scale(VOLUMES, MASKS)
        print(render(scale_table(scale)))
    if arguments.json:
        write_json(results, arguments.preset, rate, arguments.json, more)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    run_command(main)
