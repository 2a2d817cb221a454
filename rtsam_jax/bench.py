"""`python -m rtsam_jax.bench [--case NAME ...] [--sweep NAME ...] [--rival NAME ...] [...]`.

Times this project on synthetic data, in turn with the authors' PyTorch model in the same process:
the image encoder, forward (`encoder`) and with its backward pass (`encoder_grad`); one pass of the
refinement from a ready embedding (`refine`); the whole training step, frozen encoder, a first pass
and 3 x 4 clicks (`step`); one crop's prediction (`predict`), and one more click on it (`click`).
`augment` is set against MONAI's transforms; `input` says whether training waits for its input;
`views` what an embedding cache saves of a step.
Not among `all`: `segmenter` sets a crop's encoding against one more click, and a cold start against
one with compiled programs kept; `scale` builds a simulated index of 22,000 volumes and 143,000
masks, and measures start-up and memory; `measures` scores 200 simulated cases of 128^3, with
MONAI's distances beside.

Rivals are `medim` (eager), `medim-compile` (encoder, decoder and loss under torch.compile),
`medim-packed` (eager, with our padding-free attention) and `monai`. On a GPU both sides use it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from rtsam_jax.benchmark.augmentation import CONFIG as AUGMENTATION
from rtsam_jax.benchmark.cases import (
    CASES,
    ENCODER_CASES,
    MODEL_CASES,
    RIVALS,
    TRAINING_CASES,
    Rivals,
    bench_config,
    model_sides,
    run_augmentation,
    run_case,
)
from rtsam_jax.benchmark.embedding_cache import time_embedding_cache, views_table
from rtsam_jax.benchmark.figure import draw
from rtsam_jax.benchmark.input import InputTiming, time_input
from rtsam_jax.benchmark.matrix_rate import matrix_rate
from rtsam_jax.benchmark.measures import MeasuresTiming, measures_table, time_measures
from rtsam_jax.benchmark.record import KIND, Record, text, write_json, write_markdown
from rtsam_jax.benchmark.scale import ScaleTiming, measure_scale
from rtsam_jax.benchmark.segmenter import segmenter_table, time_segmenter
from rtsam_jax.benchmark.sweeps import TITLES as SWEEPS
from rtsam_jax.benchmark.sweeps import run_sweep
from rtsam_jax.benchmark.tables import input_table, scale_table
from rtsam_jax.config import ExperimentConfig
from rtsam_jax.errors import run_command
from rtsam_jax.models.presets import PRESETS, get_spec
from rtsam_jax.report.section import require_section
from rtsam_jax.report.tables import Table

VOLUMES, MASKS = 22_000, 143_000  # of SAM-Med3D's training data


@dataclass(frozen=True)
class Alone:
    """A case without a rival: measured by config and number of rounds, shown by a table."""

    measure: Callable[[ExperimentConfig, int], Any]
    table: Callable[[Any], Table]


def _input(cfg: ExperimentConfig, rounds: int) -> InputTiming:
    cfg.augment = AUGMENTATION
    return time_input(cfg, rounds)


def _scale(cfg: ExperimentConfig, rounds: int) -> ScaleTiming:
    return measure_scale(VOLUMES, MASKS)


def _measures(cfg: ExperimentConfig, rounds: int) -> MeasuresTiming:
    return time_measures(rounds)


ALONE = {
    "input": Alone(_input, input_table),
    "views": Alone(time_embedding_cache, views_table),
    "segmenter": Alone(time_segmenter, segmenter_table),
    "scale": Alone(_scale, scale_table),
    "measures": Alone(_measures, measures_table),
}
ALL = (*CASES, "input", "views")


def run_bench(arguments: argparse.Namespace, record: Record) -> None:
    """Times what the command line asks for, one case after the other, into `record`."""
    preset, batch, dtype = record.preset, arguments.batch, record.dtype
    rounds, rivals = arguments.rounds, Rivals.asked(arguments.rival)
    rivals = dataclasses.replace(rivals, left_out=record.left_out)
    asked = arguments.case or ([] if arguments.sweep else ["all"])
    cases = [*dict.fromkeys(name for case in asked for name in (ALL if case == "all" else [case]))]

    def trace(case: str) -> Path | None:
        return arguments.profile / case if arguments.profile else None

    if any(case in MODEL_CASES for case in cases):
        sides = model_sides(bench_config(preset, batch, dtype), rivals)
        sizes = dict.fromkeys(MODEL_CASES, 1)
        sizes |= dict.fromkeys(ENCODER_CASES, arguments.encoder_batch)
        sizes |= dict.fromkeys(TRAINING_CASES, batch)
        for case in (case for case in cases if case in MODEL_CASES):
            result, shares = run_case(case, sides, sizes[case], rounds, trace(case))
            record.results.append(result)
            record.profiles |= {case: shares} if shares else {}
        spec = get_spec(preset)
        record.matrix_rate = matrix_rate(spec, dtype=dtype, batch=arguments.encoder_batch)
        del sides  # and their memory
    if "augment" in cases:
        result, shares = run_augmentation(preset, rounds, rivals, trace("augment"))
        record.results.append(result)
        record.profiles |= {"augment": shares} if shares else {}
    for case in (case for case in cases if case in ALONE):
        measured = ALONE[case].measure(bench_config(preset, batch, dtype), rounds)
        record.more[case] = measured, ALONE[case].table(measured)
    for of in arguments.sweep:
        cfg = bench_config(preset, batch, dtype)
        record.sweeps.append(run_sweep(of, cfg, rounds, rivals))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    # Both before the first use of a device: torch gets its share of a GPU's memory, and compile
    # times are those of a compilation.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    cached = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        backend = jax.default_backend()
        section = arguments.section or backend
        if arguments.markdown:  # before what may take an hour
            require_section(arguments.markdown, KIND, section)
        dtype = arguments.dtype or ("bfloat16" if backend == "gpu" else "float32")
        given = sys.argv[1:] if argv is None else argv
        command = shlex.join(["python", "-m", "rtsam_jax.bench", *given])
        record = Record(command, arguments.preset, dtype)
        try:
            run_bench(arguments, record)
        finally:  # what was measured before an error is not lost
            print(text(record))
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
    if arguments.json:
        write_json(record, arguments.json)
    drawn = bool(arguments.png) and draw(record, arguments.png)
    if arguments.markdown:
        write_markdown(record, arguments.markdown, section, arguments.png if drawn else None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rtsam_jax.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    cases = (*CASES, *ALONE, "all")
    add("--case", nargs="+", choices=cases, default=[], help="default: all, or none with --sweep")
    add("--sweep", nargs="+", choices=[*SWEEPS], default=[], help="cost of encoder and step by it")
    add(
        "--rival",
        nargs="+",
        choices=(*RIVALS, "auto", "none"),
        default=["auto"],
        help="auto: all that are installed; sweeps then leave out medim-compile",
    )
    add("--rounds", type=_positive, default=5, help="timed runs of each side")
    add("--batch", type=_positive, default=1, help="of refine, step, input and the sweeps' steps")
    add("--encoder-batch", type=_positive, default=1, help="of encoder and encoder_grad")
    add("--preset", choices=sorted(PRESETS), default="vit_b_ori")
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of products, bfloat16 being autocast in torch; default: bfloat16 on a GPU",
    )
    add("--profile", type=Path, metavar="DIR", help="our side's traces of model cases and augment")
    add("--json", type=Path, help="file to write every number to")
    add("--png", type=Path, help="file to draw times, ratios and sweeps into")
    add("--markdown", type=Path, help="document to put the tables into, between its marks")
    add("--section", default="", help="name in those marks; default: the backend, cpu or gpu")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    run_command(main)
