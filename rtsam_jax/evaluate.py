"""`python -m rtsam_jax.evaluate --run RUN [--split NAME] [--shuffle-task] [--against RUN]`.

Scores a trained run on a split, without clicks, beside the trivial predictors. `--shuffle-task`
adds the same model with every case given another task's prompt. `--against` compares with another
run on the same cases: mean difference and its 95 % interval by paired bootstrap over patients.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from flax import nnx

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.selection import load_run_data
from rtsam_jax.errors import ConfigError, MissingFile, run_command
from rtsam_jax.evaluation.held_out import MODEL, evaluate_held_out
from rtsam_jax.evaluation.inference import CropPredictor, make_crop_predictor
from rtsam_jax.metrics.summary import CaseMetrics, paired_bootstrap
from rtsam_jax.optim import make_optimizer
from rtsam_jax.report.tables import Table, read_cases, render
from rtsam_jax.train import prepare_training
from rtsam_jax.training.checkpoint import RunCheckpoints
from rtsam_jax.training.run import total_steps
from rtsam_jax.training.sharding import make_mesh
from rtsam_jax.training.state import build


def load_run_config(run: Path) -> ExperimentConfig:
    """The configuration a run was started with; `MissingFile` if this is not a run's folder."""
    record = run / "run.json"
    if not record.is_file():
        raise MissingFile(f"{record} does not exist; give the folder of a run of rtsam_jax.train.")
    cfg = ExperimentConfig.from_dict(json.loads(record.read_text())["config"])
    return dataclasses.replace(cfg, out=str(run))


def load_predictor(cfg: ExperimentConfig, tasks: int, cases: int) -> CropPredictor:
    """The predictor of a run's newest checkpoint."""
    mesh = make_mesh(cfg.mesh, cfg.batch_size)
    built = build(cfg, tasks, make_optimizer(cfg.optim, total_steps(cfg, cases)), mesh)
    checkpoints = RunCheckpoints(cfg.out_dir, keep=cfg.keep_checkpoints)
    try:
        built = checkpoints.restore(built)
    finally:
        checkpoints.close()
    params = nnx.merge_state(built.state.trained, built.frozen)
    return make_crop_predictor(built.graphdef, params, cfg)


def compare(own: list[CaseMetrics], other: list[CaseMetrics], names: tuple[str, str]) -> str:
    """A table of mean Dice differences (own - other) per task and over all, with intervals."""
    ids = {metrics.case for metrics in own} & {metrics.case for metrics in other}
    if not ids:
        raise ConfigError(f"{names[0]} and {names[1]} were not scored on any common case.")
    rows = []
    tasks = list(dict.fromkeys(metrics.task for metrics in own))
    for label, wanted in [*((task, {task}) for task in tasks), ("all", set(tasks))]:
        a = [m for m in own if m.case in ids and m.task in wanted]
        b = [m for m in other if m.case in ids and m.task in wanted]
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
    parser.add_argument("--shuffle-task", action="store_true", help="also score wrong task prompts")
    parser.add_argument("--against", type=Path, help="another run, evaluated on the same split")
    arguments = parser.parse_args()
    cfg = load_run_config(arguments.run)
    if arguments.split:
        cfg.data.eval_split, cfg.data.inner_folds, cfg.data.inner_fold = arguments.split, 0, -1
    data = load_run_data(cfg)
    predict = load_predictor(cfg, len(data.tasks), len(data.train))
    training = prepare_training(cfg, data)
    found = evaluate_held_out(
        cfg, data, predict, training, arguments.run, shuffle_task=arguments.shuffle_task
    )
    if arguments.against:
        table = arguments.against / "evaluation" / data.held_out_name / "cases.csv"
        names = (arguments.run.name, arguments.against.name)
        print("\n" + compare(found[MODEL], read_cases(table), names))


if __name__ == "__main__":
    run_command(main)
