"""`python -m rtsam_jax.train --config configs/NAME.py [--config.field=value] [--multihost]`.

Trains, checkpoints, and scores the held-out cases. The same command resumes a run that was stopped.

  --multihost            this is one of several processes that make one run (docs/launch.md)
  --preempted-status=N   exit status after SIGTERM, once all is saved; default 0

SIGTERM and SIGINT end a run after the step it is in, saved; after SIGINT the exit status is 130.
Outside the steps they end it at once, with nothing lost.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import grain
import jax
import optax
from flax import nnx
from jax.sharding import Mesh

from rtsam_jax.compilation import keep_compiled_programs
from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.cache import cache_root
from rtsam_jax.data.fingerprints import fingerprints
from rtsam_jax.data.pipeline import Share, batches_from
from rtsam_jax.data.prepared import PreparedCases
from rtsam_jax.data.preprocess import PreprocessSpec
from rtsam_jax.data.selection import RunData, load_run_data
from rtsam_jax.errors import run_command
from rtsam_jax.evaluation.check import check_held_out
from rtsam_jax.evaluation.held_out import evaluate_held_out
from rtsam_jax.evaluation.inference import make_crop_predictor
from rtsam_jax.flags import parse_config, take_options
from rtsam_jax.optim import learning_rate, make_optimizer
from rtsam_jax.report.curves import CURVES, plot_curves
from rtsam_jax.text.prompt_set import (
    PromptSet,
    prompt_set,
    require_language_model,
    task_sentences,
)
from rtsam_jax.training.batches import fresh_batches
from rtsam_jax.training.checkpoint import RunCheckpoints
from rtsam_jax.training.loop import train
from rtsam_jax.training.model_file import (
    MODEL_FILE,
    check_language_model,
    check_tasks,
    write_model_file,
)
from rtsam_jax.training.processes import (
    barrier,
    first_then_others,
    is_first,
    processes,
    whole,
)
from rtsam_jax.training.run import (
    has_steps,
    open_run_folder,
    prepare_training,
    total_samples,
    total_steps,
)
from rtsam_jax.training.seen import read_seen, require_unseen, write_seen
from rtsam_jax.training.sharding import batch_rows, make_mesh, replicated, row_share
from rtsam_jax.training.state import Built, build, require_encoder_weights
from rtsam_jax.training.step import make_train_step
from rtsam_jax.training.stopping import (
    RunStopped,
    StopRequest,
    leave_on_sigterm,
    stop_request,
)
from rtsam_jax.training.views import Step, view_training


def run(cfg: ExperimentConfig) -> Built:
    """Everything `python -m rtsam_jax.train` does, for a validated config.

    Raises:
        RunStopped: a signal ended it, saved.
    """
    mesh = make_mesh(cfg.mesh, cfg.batch_size)
    require_encoder_weights(cfg)  # before a dataset is built
    require_language_model(cfg)
    data = first_then_others(partial(load_run_data, cfg))
    if cfg.evaluate and is_first():
        require_unseen(cfg, data.held_out)
    prompts = first_then_others(partial(prompt_set, cfg, data))
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
    with _run_folder(cfg, data, prompts) as folder:
        parameters = sum(x.size for x in jax.tree.leaves(built.state.trained))
        print(
            f"{data.dataset.name} ({data.dataset.kind}): {len(data.train)} training cases, "
            f"{len(data.held_out)} held out ({data.held_out_name}), tasks {', '.join(data.tasks)}\n"
            f"{cfg.model.preset}: {parameters:,} trained parameters; {steps} steps of "
            f"{cfg.batch_size} on {mesh.size} x {jax.devices()[0].platform}{_in_processes()}; "
            f"run folder {folder}",
            flush=True,
        )
        if cfg.evaluate and is_first():
            check_held_out(data.held_out, data.modality, PreprocessSpec.from_config(cfg))
        cases = first_then_others(partial(prepare_training, cfg, data))
        built = _fit(cfg, built, optimizer, data, prompts, cases, mesh, folder)
        if is_first():
            plot_curves(folder / "metrics.jsonl", folder / CURVES)
        if cfg.evaluate and data.held_out:
            params = whole(nnx.merge_state(built.state.trained, built.frozen))
            if is_first():  # the others wait for its end
                predict = make_crop_predictor(built.graphdef, params, cfg, prompts.table)
                doubt = read_seen(folder).doubt
                evaluate_held_out(cfg, data, predict, prompts, cases, folder, doubt=doubt)
    return built


@contextmanager
def _run_folder(cfg: ExperimentConfig, data: RunData, prompts: PromptSet) -> Iterator[Path]:
    """The run folder, made or found right and kept by process 0 before any other goes on."""
    if not is_first():
        barrier("run folder")
        yield Path(cfg.out_dir)
        return
    with open_run_folder(cfg, fingerprints(data.train, cache_root(cfg))) as folder:
        if has_steps(folder) and (folder / MODEL_FILE).exists():
            check_tasks(folder, data.tasks)
            check_language_model(folder, prompts.language_model)
        write_model_file(
            folder,
            cfg,
            data,
            task_sentences(data.dataset, cfg.prompt),
            text_width=prompts.width,
            language_model=prompts.language_model,
        )
        write_seen(folder, cfg, data.train)
        barrier("run folder")
        yield folder


def _in_processes() -> str:
    count = jax.process_count()
    return f" in {count} processes" if count > 1 else ""


def _fit(
    cfg: ExperimentConfig,
    built: Built,
    optimizer: optax.GradientTransformation,
    data: RunData,
    prompts: PromptSet,
    cases: PreparedCases,
    mesh: Mesh,
    folder: Path,
) -> Built:
    """Trains from the newest checkpoint, or the start, to the last step."""
    steps = total_steps(cfg, len(data.train))
    texts = jax.device_put(prompts.table, replicated(mesh))
    with stop_request() as stop:
        with closing(RunCheckpoints(folder, keep=cfg.keep_checkpoints)) as checkpoints:
            if checkpoints.latest_step is not None:
                built = checkpoints.restore(built)
                print(f"resuming at step {int(built.state.step)}", flush=True)
            step, batches = _steps_and_batches(
                cfg, built, optimizer, data, prompts, cases, mesh, stop
            )
            built = train(
                built,
                partial(step, texts=texts),
                partial(batches_from, batches, threads=cfg.data.read_threads),
                cfg,
                steps=steps,
                mesh=mesh,
                case_names=[case.id for case in data.train],
                schedule=learning_rate(cfg.optim, steps),
                checkpoints=checkpoints,
                stop=stop,
            )
        stop.agree(steps)  # asked during the last step or its save
    return built


def _steps_and_batches(
    cfg: ExperimentConfig,
    built: Built,
    optimizer: optax.GradientTransformation,
    data: RunData,
    prompts: PromptSet,
    cases: PreparedCases,
    mesh: Mesh,
    stop: StopRequest,
) -> tuple[Step, grain.MapDataset]:
    """The jitted step, and this process's rows of the batches it takes."""
    told = [prompts.training[case.id] for case in data.train]
    share = Share(*row_share(mesh))
    rows = batch_rows(mesh, cfg.batch_size, cfg.accumulate)
    samples = total_samples(cfg, len(data.train))
    if cfg.views.per_case:
        return view_training(
            built,
            optimizer,
            cfg,
            cases,
            names=[case.id for case in data.train],
            prompts=told,
            mesh=mesh,
            share=share,
            rows=rows,
            samples=samples,
            stop=stop,
        )
    batches = fresh_batches(cfg, cases, told, share=share, rows=rows, samples=samples)
    return make_train_step(built.graphdef, optimizer, cfg), batches


def main() -> None:
    """Entry point of the command."""
    options, arguments = take_options(sys.argv)
    cfg = parse_config(arguments, usage=__doc__ or "")
    keep_compiled_programs()
    if cfg.mesh.cpu_devices:  # before the first use of a device
        jax.config.update("jax_num_cpu_devices", cfg.mesh.cpu_devices)
    # grain reads flags of absl's global set; a program without absl.app must mark them parsed.
    grain.config.update("py_debug_mode", False)
    status = 0
    with processes(multihost=options.multihost):
        leave_on_sigterm(options.preempted_status)
        try:
            run(cfg)
        except RunStopped as stopped:
            print(f"{stopped}; the same command resumes", flush=True)
            status = options.preempted_status if stopped.asked == signal.SIGTERM else 130
    sys.exit(status)


if __name__ == "__main__":
    run_command(main)
