"""`python -m rtsam_jax.evaluate --run RUN [--split NAME] [--probe PROBE ...] [--against RUN]`.

Scores a trained run on a split, without clicks, beside the trivial predictors. `--probe` adds the
same model told something else: `task`, another task; `text`, another case's text; `record`, another
case's record; `no-record`, the task alone. `--against` compares with another run on the same cases:
mean difference and its 95 % interval by paired bootstrap over patients.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rtsam_jax.compilation import keep_compiled_programs
from rtsam_jax.config import ExperimentConfig, MeshConfig
from rtsam_jax.data.cases import Case
from rtsam_jax.data.selection import load_run_data
from rtsam_jax.errors import ConfigError, UnreadableFile, run_command
from rtsam_jax.evaluation.held_out import MODEL, evaluate_held_out, probe_name
from rtsam_jax.evaluation.inference import CropPredictor, make_crop_predictor
from rtsam_jax.flags import check_types
from rtsam_jax.metrics.summary import CaseMetrics, paired_bootstrap
from rtsam_jax.report.tables import Table, read_cases, render
from rtsam_jax.text.prompt_set import PROBES, PromptSet, prompt_set
from rtsam_jax.training.checkpoint import check_language_model, check_tasks, restore_params
from rtsam_jax.training.processes import require_alone
from rtsam_jax.training.run import RECORD, prepare_training, read_record
from rtsam_jax.training.sharding import make_mesh
from rtsam_jax.training.state import abstract_model


def load_run_config(run: Path) -> ExperimentConfig:
    """The configuration a run was started with.

    Raises:
        MissingFile, UnreadableFile: this is not a run's folder; its record is damaged.
        ConfigError: the record has a field that this version does not know.
    """
    cfg = ExperimentConfig.from_dict(read_record(run)["config"])
    try:
        check_types(cfg, ExperimentConfig(), "config")
        cfg.validate()
    except ConfigError as cause:
        raise UnreadableFile(
            f"{run / RECORD} is damaged: {str(cause).rstrip('.')}; bring it back from a copy."
        ) from cause
    return dataclasses.replace(cfg, out=str(run))


def load_predictor(
    cfg: ExperimentConfig, tasks: Sequence[str], prompts: PromptSet
) -> CropPredictor:
    """The predictor of a run's newest checkpoint, on one device, whatever it was trained on.

    Raises:
        CheckpointError, CheckpointIncomplete: trained for other tasks, or on another language
            model's features; no checkpoint yet.
    """
    check_tasks(cfg.out_dir, tasks)
    check_language_model(cfg.out_dir, prompts.language_model)
    mesh = make_mesh(MeshConfig(data=1), 1)
    graphdef, params = abstract_model(cfg, len(tasks), mesh, text_width=prompts.width)
    step = restore_params(cfg.out_dir, params)
    print(f"{cfg.out_dir}: checkpoint of step {step}", flush=True)
    return make_crop_predictor(graphdef, params, cfg, prompts.table)


def check_same_cases(
    cases: Sequence[Case], other: Sequence[CaseMetrics], names: tuple[str, str]
) -> None:
    """Raises `ConfigError` where two runs are not scored on the same cases, tasks and patients.

    Args:
        cases: those of the first run that have a label, or more.
        other: what was found for the second.
        names: of both.
    """
    ours = Counter((case.id, case.task, case.patient) for case in cases if case.label is not None)
    theirs = Counter((case.case, case.task, case.patient) for case in other)
    odd = sorted({case for case, _, _ in (ours - theirs) + (theirs - ours)})
    if odd:
        raise ConfigError(
            f"{names[0]} and {names[1]} are not scored on the same cases ({len(odd)} differ: "
            f"{', '.join(odd[:4])}{', ...' if odd[4:] else ''}); evaluate both on the same "
            f"dataset, tasks and split."
        )


def compare(own: list[CaseMetrics], other: list[CaseMetrics], names: tuple[str, str]) -> str:
    """A table of mean Dice differences (own - other) per task and over all, with intervals.

    Both lists are of the same cases; see `check_same_cases`.
    """
    rows = []
    tasks = list(dict.fromkeys(metrics.task for metrics in own))
    for label, wanted in [*((task, {task}) for task in tasks), ("all", set(tasks))]:
        a = [m for m in own if m.task in wanted]
        b = [m for m in other if m.task in wanted]
        if a:
            difference = paired_bootstrap(a, b, "dice")
            interval = f"{difference.low:+.3f} to {difference.high:+.3f}"
            rows.append((label, str(len(a)), f"{difference.mean:+.3f}", interval))
    header = ("Task", "n", f"Dice, {names[0]} - {names[1]}", "95 % interval")
    return render(Table(header, tuple(rows)))


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(prog="python -m rtsam_jax.evaluate", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of a trained run")
    parser.add_argument("--split", default="", help="split to score; default: the run's own")
    parser.add_argument(
        "--probe", nargs="+", default=(), choices=PROBES, help="also score with another prompt"
    )
    parser.add_argument("--against", type=Path, help="another run, evaluated on the same split")
    parser.add_argument(
        "--language-model", default="", help="where the run's language model lies now"
    )
    arguments = parser.parse_args()
    require_alone(os.environ)
    keep_compiled_programs()
    cfg = load_run_config(arguments.run)
    if arguments.language_model:
        cfg.prompt.language_model = arguments.language_model
    if arguments.split:
        cfg.data.eval_split, cfg.data.inner_folds, cfg.data.inner_fold = arguments.split, 0, -1
    cfg.evaluate = True  # so that a split without cases is an error
    cfg.data.builder, cfg.data.builder_cases = "", 0  # a dataset that is gone is not made anew
    data = load_run_data(cfg)
    prompts = prompt_set(cfg, data, train=False, probes=tuple(dict.fromkeys(arguments.probe)))
    other = None
    names = (arguments.run.name, arguments.against.name) if arguments.against else ("", "")
    if arguments.against:
        other = read_cases(arguments.against / "evaluation" / data.held_out_name / "cases.csv")
        check_same_cases(data.held_out, other, names)
    predict = load_predictor(cfg, data.tasks, prompts)
    training = prepare_training(cfg, data)
    found = evaluate_held_out(cfg, data, predict, prompts, training, arguments.run)
    for probe in prompts.probes:
        told = found[probe_name(probe)]
        print("\n" + compare(found[MODEL], told, (arguments.run.name, PROBES[probe])))
    if other is not None:
        print("\n" + compare(found[MODEL], other, names))


if __name__ == "__main__":
    run_command(main)
