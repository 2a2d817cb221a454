"""`python -m rtsam_jax.ablate --config configs/NAME.py [--config.FIELD=VALUE ...] [...]`.

Trains the whole method of a config and its ablations on the same splits and seeds, scores each
without clicks, and leaves tables and figures: components (Table 2), text by task (Fig. 6), the crop
without dose, tau (Figs. 7, 8), iterations and clicks (Fig. 9), loss. Runs that two studies share
are trained once. With --pretrain-steps all start from one model of clicks alone, whose encoder they
keep. Each run has a folder below config.out; the same command goes on where it was stopped, and
trains nothing twice. docs/ablation.md says what to read from it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rtsam_jax.ablation.places import places_here
from rtsam_jax.ablation.plan import (
    Plan,
    Replicate,
    Run,
    describe,
    folds,
    make_plan,
    repeats,
    seeds,
    with_earlier,
)
from rtsam_jax.ablation.record import (
    SECTION,
    make_record,
    text,
    write_document,
    write_files,
)
from rtsam_jax.ablation.runner import Failed, Stopped, only_one, train_runs
from rtsam_jax.ablation.variants import STUDIES
from rtsam_jax.data.cache import cache_root
from rtsam_jax.data.fingerprints import fingerprints
from rtsam_jax.data.import_folder import some
from rtsam_jax.data.selection import RunData, load_run_data
from rtsam_jax.errors import ConfigError, OutputExists, RunsFailed, run_command
from rtsam_jax.evaluation.results_folder import require_writable
from rtsam_jax.evaluation.scored_cases import ScoredCases
from rtsam_jax.flags import at_least
from rtsam_jax.report.section import require_section
from rtsam_jax.report.tables import read_cases
from rtsam_jax.text.prompt_set import require_language_model
from rtsam_jax.training.processes import require_alone
from rtsam_jax.training.run import RECORD, require_same_run, total_steps
from rtsam_jax.training.state import require_encoder_weights


def load_data(plan: Plan) -> dict[str, RunData]:
    """The data of each replicate, and a check that what earlier commands left is of it.

    Raises:
        ConfigError: repeated splits of a dataset that has its own.
        OutputExists: a run's folder holds another run: other settings, cases or files, be it those
            that it was trained on or those that it was scored on.
        RTSamError: of the dataset, or of weights that a run needs.
    """
    by_split: dict[tuple[int, ...], tuple[RunData, list[str], ScoredCases]] = {}
    found = {}
    outdated: dict[Path, list[str]] = {}
    for run in (*plan.pretraining, *plan.runs):
        require_encoder_weights(run.cfg)
        require_language_model(run.cfg)
        split = run.cfg.data.split_seed, run.cfg.data.inner_folds, run.cfg.data.inner_fold
        if split not in by_split:
            data = load_run_data(run.cfg)
            prints = fingerprints(data.train, cache_root(run.cfg))
            by_split[split] = data, prints, ScoredCases.held_out(run.cfg, data)
        data, prints, held_out = by_split[split]
        require_same_run(run.folder, run.cfg, prints)
        if run.cfg.evaluate and run.done:
            measured = read_cases(run.cases_file)
            if changed := held_out.changed_since(run.cases_file.parent, measured):
                outdated[run.folder] = changed
        found[run.replicate.name] = data
    first = next(iter(found.values())).dataset
    if outdated:
        folder, changed = next(iter(outdated.items()))
        raise OutputExists(
            f"{folder} was scored on other held-out cases than {first.root} now has, or on other "
            f"files of theirs ({some(changed)}), as one of {len(outdated)} runs; bring the cases "
            f"back, or score each run again with `python -m rtsam_jax.evaluate --run {folder}`."
        )
    varied = {name for replicate in plan.replicates for name in replicate.changes}
    if "data.split_seed" in varied and any(case.split is not None for case in first.cases):
        raise ConfigError(
            f"--repeats would repeat one and the same split, since {first.root} has its own; "
            "give --seeds or --folds instead."
        )
    return found


def train(plan: Plan, data: dict[str, RunData], parallel: int) -> list[Failed]:
    """Trains and scores what is not done yet.

    Raises:
        OutputExists: another command works in the folder.
        Stopped: by a signal.
    """
    with only_one(plan.out) as lock:
        left = [run for run in plan.runs if not run.done]
        print(f"{len(plan.runs)} runs, {len(left)} of them to do, in {plan.out}", flush=True)

        if not left:
            return []

        def train_some(runs: list[Run], at_a_time: int) -> list[Failed]:
            steps = {
                run.name: total_steps(run.cfg, len(data[run.replicate.name].train)) for run in runs
            }
            return train_runs(runs, places_here(at_a_time), steps, lock)

        # What the runs start from goes first, with the whole machine if it is a single one.
        before = [run for run in plan.pretraining if not run.done]
        if before and (failed := train_some(before, 1 if len(before) == 1 else parallel)):
            return failed
        return train_some(left, parallel)


def main() -> None:
    """Entry point of the command."""
    options, arguments = _parser().parse_known_args()
    require_alone(os.environ)
    replicates, pretrain_steps = _replicates(options), options.pretrain_steps
    plan = make_plan(arguments, options.studies, replicates, pretrain_steps=pretrain_steps)
    section = options.section or plan.out.name
    if options.markdown:  # before hours of training
        require_section(options.markdown, SECTION, section)
    if options.dry_run:
        print(describe(plan))
        for run in (*plan.pretraining, *plan.runs):
            if not run.done:
                print(shlex.join(run.command))
        return
    if (plan.out / RECORD).exists():
        raise OutputExists(
            f"{plan.out} is the folder of a single run; give another with --config.out=FOLDER."
        )
    require_writable(plan.out, option="--config.out=FOLDER")
    whole = make_plan(arguments, [*STUDIES], replicates, pretrain_steps=pretrain_steps)
    shown = with_earlier(plan, whole)
    data = load_data(shown)
    try:
        failed = train(plan, data, options.parallel)
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on", flush=True)
        sys.exit(128 + stopped.asked)
    record = make_record(sys.argv[1:], shown, data, failed)
    pictures = write_files(record)
    print("\n" + text(record), flush=True)
    print(f"tables and {len(pictures)} figures are in {plan.out}", flush=True)
    if options.markdown:
        write_document(record, options.markdown, section, pictures)
    if failed:
        raise RunsFailed(
            f"{len(failed)} of {len(plan.runs)} runs failed: "
            f"{'; '.join(f'{each.run.name} ({each.reason})' for each in failed)}; mend what they "
            "say and start the same command again, which trains only those."
        )


def _replicates(options: argparse.Namespace) -> Sequence[Replicate]:
    if options.folds:
        return folds(options.folds)
    if options.repeats:
        return repeats(options.repeats)
    return seeds(list(dict.fromkeys(options.seeds)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rtsam_jax.ablate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--studies", nargs="+", choices=[*STUDIES], default=[*STUDIES], help="default: all")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--seeds", nargs="+", type=at_least(0), default=[0, 1, 2], help="default: 0 1 2"
    )
    which.add_argument(
        "--folds",
        type=at_least(2),
        default=0,
        help="instead: so many folds of the training patients",
    )
    which.add_argument(
        "--repeats", type=at_least(2), default=0, help="instead: so many splits into train and test"
    )
    add(
        "--parallel",
        type=at_least(1),
        default=0,
        help="runs at a time, which share GPUs or cores; default: one per GPU, on a CPU one",
    )
    add(
        "--pretrain-steps",
        type=at_least(1),
        default=0,
        metavar="N",
        help="first train N steps by clicks alone, which all variants start from with its image "
        "encoder frozen; default: they start as the config says",
    )
    add("--dry-run", action="store_true", help="say what would be trained, and how")
    add("--markdown", type=Path, help="document to put the tables into, between its marks")
    add("--section", default="", help="name in those marks; default: that of the folder")
    return parser


if __name__ == "__main__":
    run_command(main)
