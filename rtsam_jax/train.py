"""`python -m rtsam_jax.train --config configs/NAME.py [--config.field=value]`.

Trains, checkpoints, and scores the held-out cases. The same command resumes a run that was stopped.
"""

from __future__ import annotations

import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import grain
import jax
from flax import nnx

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.augment import margin
from rtsam_jax.data.cache import cache_root
from rtsam_jax.data.pipeline import Share, batches_from, training_batches
from rtsam_jax.data.preprocess import PreprocessSpec
from rtsam_jax.data.selection import load_run_data
from rtsam_jax.errors import run_command
from rtsam_jax.evaluation.check import check_held_out
from rtsam_jax.evaluation.held_out import evaluate_held_out
from rtsam_jax.evaluation.inference import make_crop_predictor
from rtsam_jax.flags import parse_config
from rtsam_jax.models.presets import get_spec
from rtsam_jax.optim import learning_rate, make_optimizer
from rtsam_jax.report.figures import plot_curves
from rtsam_jax.text.prompt_set import prompt_set, require_language_model
from rtsam_jax.training.checkpoint import (
    RunCheckpoints,
    check_language_model,
    check_tasks,
    write_model_json,
)
from rtsam_jax.training.loop import train
from rtsam_jax.training.run import (
    environment,
    fingerprints,
    has_steps,
    open_run_folder,
    prepare_training,
    total_steps,
)
from rtsam_jax.training.sharding import make_mesh, replicated
from rtsam_jax.training.state import Built, build, require_encoder_weights
from rtsam_jax.training.step import make_train_step


def run(cfg: ExperimentConfig) -> Built:
    """Everything `python -m rtsam_jax.train` does, for a validated config."""
    spec = get_spec(cfg.model.preset)
    mesh = make_mesh(cfg.mesh, cfg.batch_size)
    require_encoder_weights(cfg)  # before a dataset is built
    require_language_model(cfg)
    data = load_run_data(cfg)
    prompts = prompt_set(cfg, data)
    steps = total_steps(cfg, len(data.train))
    optimizer = make_optimizer(cfg.optim, steps)
    built = build(
        cfg,
        len(data.tasks),
        optimizer,
        mesh,
        text_width=prompts.width,
        constants=prompts.constants(),
    )
    texts = jax.device_put(prompts.table, replicated(mesh))
    with open_run_folder(cfg, fingerprints(data.train, cache_root(cfg))) as folder:
        if has_steps(folder) and (folder / "model.json").exists():
            check_tasks(folder, data.tasks)
            check_language_model(folder, prompts.language_model)
        about = {"preset": cfg.model.preset, "language_model": prompts.language_model}
        write_model_json(folder, {"tasks": data.tasks, **about, **environment()})
        parameters = sum(x.size for x in jax.tree.leaves(built.state.trained))
        print(
            f"{data.dataset.name} ({data.dataset.kind}): {len(data.train)} training cases, "
            f"{len(data.held_out)} held out ({data.held_out_name}), tasks {', '.join(data.tasks)}\n"
            f"{cfg.model.preset}: {parameters:,} trained parameters; {steps} steps of "
            f"{cfg.batch_size} on {mesh.size} x {jax.devices()[0].platform}; run folder {folder}",
            flush=True,
        )
        if cfg.evaluate:
            check_held_out(data.held_out, data.modality, PreprocessSpec.from_config(cfg))
        cases = prepare_training(cfg, data)
        with closing(RunCheckpoints(folder, keep=cfg.keep_checkpoints)) as checkpoints:
            if checkpoints.latest_step is not None:
                built = checkpoints.restore(built)
                print(f"resuming at step {int(built.state.step)}", flush=True)
            dataset = training_batches(
                cases,
                [prompts.training[case.id] for case in data.train],
                size=spec.image_size,
                jitter=cfg.data.jitter,
                batch_size=cfg.batch_size,
                seed=cfg.seed,
                margin=margin(cfg.augment, spec.image_size),
                record_dropout=cfg.prompt.dropout,
                balanced_tasks=cases.task_ids if cfg.data.balance == "task" else None,
                share=Share(jax.process_index(), jax.process_count()),
            )
            built = train(
                built,
                partial(make_train_step(built.graphdef, optimizer, cfg), texts=texts),
                partial(batches_from, dataset, threads=cfg.data.read_threads),
                cfg,
                steps=steps,
                mesh=mesh,
                case_names=[case.id for case in data.train],
                schedule=learning_rate(cfg.optim, steps),
                checkpoints=checkpoints,
            )
        if jax.process_index() == 0:
            plot_curves(folder / "metrics.jsonl", folder / "figures" / "curves.png")
            if cfg.evaluate and data.held_out:
                params = nnx.merge_state(built.state.trained, built.frozen)
                predict = make_crop_predictor(built.graphdef, params, cfg, texts)
                evaluate_held_out(cfg, data, predict, prompts, cases, Path(folder))
        return built


def main() -> None:
    """Entry point of the command."""
    cfg = parse_config(sys.argv, usage=__doc__ or "")
    if cfg.mesh.cpu_devices:  # before the first use of a device
        jax.config.update("jax_num_cpu_devices", cfg.mesh.cpu_devices)
    # grain reads flags of absl's global set; a program without absl.app must mark them parsed.
    grain.config.update("py_debug_mode", False)
    run(cfg)


if __name__ == "__main__":
    run_command(main)
