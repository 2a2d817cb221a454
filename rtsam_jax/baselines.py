"""`python -m rtsam_jax.baselines --config configs/NAME.py [--config.field=value] [--model ...]`.

Trains MONAI's networks on the splits, crops, augmentation and steps of a config, scores them as
our model is scored, and sets our runs (`--ours`, one for each seed) beside them: Table 1. What each
of them sees: docs/baselines.md. The same command goes on where it was stopped; a rival that fails
is named, the others go on, and the exit status is not 0. `python -m rtsam_jax.train --help` lists
the fields of a config.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import grain

from rtsam_jax.benchmark.record import machine
from rtsam_jax.compilation import keep_compiled_programs
from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.cache import cache_root
from rtsam_jax.data.fingerprints import fingerprints
from rtsam_jax.data.preprocess import PreprocessSpec
from rtsam_jax.data.selection import RunData, load_run_data
from rtsam_jax.errors import ConfigError, RTSamError, RunsFailed, run_command
from rtsam_jax.evaluation.check import check_held_out
from rtsam_jax.evaluation.results_folder import require_writable
from rtsam_jax.evaluation.scored_cases import ScoredCases
from rtsam_jax.flags import at_least, parse_config
from rtsam_jax.report.section import require_section, write_section
from rtsam_jax.rivals.losses import RECIPES
from rtsam_jax.rivals.networks import ARCHITECTURES, require_torch
from rtsam_jax.rivals.ours import read_ours
from rtsam_jax.rivals.run import RivalOptions, RivalRun, run_rival
from rtsam_jax.rivals.table import FIGURE, Comparison, section, write_comparison
from rtsam_jax.training.processes import require_alone
from rtsam_jax.training.run import prepare_training
from rtsam_jax.training.stopping import RunStopped


def train_rivals(
    cfg: ExperimentConfig,
    options: RivalOptions,
    data: RunData,
    held_out: ScoredCases,
    names: Sequence[str],
    seeds: Sequence[int],
    out: Path,
) -> tuple[dict[str, list[RivalRun]], list[str]]:
    """Trains and scores every rival with every seed, each in a folder of its own.

    Returns:
        The runs of those that have one for each seed, by title; a sentence on each failure.
    """
    check_held_out(data.held_out, data.modality, PreprocessSpec.from_config(cfg))
    training = prepare_training(cfg, data)
    train_cases = fingerprints(data.train, cache_root(cfg))
    finished: dict[str, list[RivalRun]] = {}
    failed = []
    for name in names:
        title, runs = ARCHITECTURES[name].title, []
        for seed in seeds:
            place = str(out / name / f"seed{seed}")
            own = dataclasses.replace(cfg, seed=seed, out=place)
            try:
                done = run_rival(
                    name,
                    own,
                    options,
                    data,
                    training,
                    train_cases=train_cases,
                    held_out=held_out,
                )
                runs.append(done)
            except RunStopped:
                raise
            except Exception as cause:  # named, and counted against the exit status
                if not isinstance(cause, RTSamError):
                    traceback.print_exc()
                code = cause.code if isinstance(cause, RTSamError) else type(cause).__name__
                reason = " ".join(str(cause).split())
                failed.append(f"{title}, seed {seed}, failed ({code}): {reason}")
                print(f"error: {failed[-1]}", file=sys.stderr, flush=True)
        if len(runs) == len(seeds):
            finished[title] = runs
    return finished, failed


def run(cfg: ExperimentConfig, arguments: argparse.Namespace, command: str) -> None:
    """Everything the command does, for a validated config.

    Raises:
        ExtraMissing: torch or MONAI is not installed.
        NotWritable: the folder cannot be made or written to.
        RunsFailed: of a rival; the others are trained, scored and in the table.
        RunStopped: a signal came; what is done so far is saved.
    """
    require_torch()
    if not cfg.evaluate:
        raise ConfigError(
            "config.evaluate is False, but rivals are trained to be scored; set it to True."
        )
    options = RivalOptions(arguments.width, arguments.roi_channel, arguments.loss)
    names = [*ARCHITECTURES] if "all" in arguments.model else [*dict.fromkeys(arguments.model)]
    for name in names:
        ARCHITECTURES[name].width(options.width)
    seeds = [*dict.fromkeys(arguments.seeds or [cfg.seed])]
    out = arguments.out or Path(cfg.out or f"runs/{cfg.name}_baselines")
    require_writable(out)
    if arguments.markdown:
        require_section(arguments.markdown, "baselines", arguments.section)
    data = load_run_data(cfg)
    held_out = ScoredCases.held_out(cfg, data)
    ours = read_ours(arguments.ours, data, seeds, held_out)  # before hours of training
    rivals, failed = train_rivals(cfg, options, data, held_out, names, seeds, out)
    if rivals:
        comparison = Comparison(cfg, options, data, seeds, ours, rivals, failed)
        print(f"\n{write_comparison(comparison, out / 'results')}", flush=True)
        if arguments.markdown:
            text = section(comparison, command, _where())
            figure, shown = out / "results" / FIGURE, {}
            if figure.exists() and data.dataset.kind == "synthetic":  # patients are not published
                shown["Masks side by side (synthetic)"] = figure
            write_section(arguments.markdown, "baselines", arguments.section, text, shown)
        print(f"tables are in {out / 'results'}", flush=True)
    if failed:
        raise RunsFailed(
            f"{len(failed)} of {len(names) * len(seeds)} runs failed, for the reasons above; mend "
            f"them and give the same command again: it goes on with what is missing."
        )


def _where() -> str:
    found = machine()
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{found['cpu']}, {found['threads']} threads; Python {found['python']}, {versions}."


def main() -> None:
    """Entry point of the command."""
    given = sys.argv[1:]
    arguments, rest = parser().parse_known_args(given)
    cfg = parse_config([sys.argv[0], *rest], usage=__doc__ or "")
    require_alone(os.environ)
    # Before the first use of a device: torch gets its share of a GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    keep_compiled_programs()
    # grain reads flags of absl's global set; a program without absl.app must mark them parsed.
    grain.config.update("py_debug_mode", False)
    try:
        run(cfg, arguments, shlex.join(["python", "-m", "rtsam_jax.baselines", *given]))
    except RunStopped as stopped:
        print(f"{stopped}; the same command resumes", flush=True)
        sys.exit(128 + stopped.asked)


def parser() -> argparse.ArgumentParser:
    """What the command takes besides `--config` and its fields."""
    options = argparse.ArgumentParser(
        prog="python -m rtsam_jax.baselines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    options.add_argument(
        "--model",
        nargs="+",
        default=["all"],
        choices=[*ARCHITECTURES, "all"],
        metavar="NAME",
        help=f"{', '.join(ARCHITECTURES)}, or all of them (default)",
    )
    options.add_argument(
        "--width", type=float, default=1.0, help="share of the published widths; 0.25 suits a CPU"
    )
    options.add_argument(
        "--roi-channel", action="store_true", help="the high-dose ROI as a second input channel"
    )
    options.add_argument(
        "--loss",
        choices=RECIPES,
        default=RECIPES[0],
        help="Dice-CE over the whole crop (default), or our model's, by the config's weights",
    )
    options.add_argument("--seeds", nargs="+", type=at_least(0), help="default: config.seed")
    options.add_argument(
        "--ours", nargs="+", type=Path, default=[], help="scored runs of our model, one per seed"
    )
    options.add_argument("--out", type=Path, help="default: config.out, or runs/NAME_baselines")
    options.add_argument("--markdown", type=Path, help="also put the table into this document")
    options.add_argument("--section", default="rivals", help="between which of its marks")
    return options


if __name__ == "__main__":
    run_command(main)
