"""One rival's run: its folder, its training, and its measures on the held-out cases."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.cases import Case
from rtsam_jax.data.import_folder import some
from rtsam_jax.data.json_file import read_json, write_json
from rtsam_jax.data.prepared import PreparedCases
from rtsam_jax.data.preprocess import Preprocessed, PreprocessSpec
from rtsam_jax.data.selection import RunData
from rtsam_jax.errors import OutputExists
from rtsam_jax.evaluation.held_out import draw_overlays
from rtsam_jax.evaluation.inference import CropPredictor, predict_volume
from rtsam_jax.evaluation.kept_masks import has_masks, keeping_masks
from rtsam_jax.evaluation.report import write_results
from rtsam_jax.evaluation.scored_cases import ScoredCases
from rtsam_jax.evaluation.scoring import score_cases
from rtsam_jax.metrics.case import CaseMetrics
from rtsam_jax.models.presets import get_spec
from rtsam_jax.report.curves import CURVES, plot_curves
from rtsam_jax.report.results_html import Picture
from rtsam_jax.report.tables import read_cases
from rtsam_jax.rivals.crops import crop_batches
from rtsam_jax.rivals.losses import recipe
from rtsam_jax.rivals.networks import Rival
from rtsam_jax.rivals.train import Trainer, train
from rtsam_jax.training.run import has_steps, open_run_folder, total_steps
from rtsam_jax.training.stopping import stop_request

RECORD = "rival.json"


@dataclass(frozen=True)
class RivalOptions:
    """What a rival is besides the experiment's config."""

    width: float = 1.0  # share of the published width
    roi_channel: bool = False
    loss: str = "dice_ce"  # of `rtsam_jax.rivals.losses.RECIPES`


@dataclass(frozen=True)
class RivalRun:
    """A trained rival's measures, and what it took."""

    title: str
    seed: int
    folder: Path
    cases: Sequence[CaseMetrics]
    parameters: int
    steps: int
    seconds: float  # of training
    device: str


def run_rival(
    name: str,
    cfg: ExperimentConfig,
    options: RivalOptions,
    data: RunData,
    training: PreparedCases,
    *,
    train_cases: Sequence[str],
    held_out: ScoredCases,
) -> RivalRun:
    """Trains a rival, or goes on with it, and scores it as our model is scored.

    Args:
        name: of `rtsam_jax.rivals.networks.ARCHITECTURES`.
        cfg: with the run's own folder and seed.
        training: the prepared training cases.
        train_cases: their `fingerprints`.
        held_out: of `data`, as they are now.

    Raises:
        OutputExists: the folder holds another run.
        RunStopped, TrainingDiverged, CheckpointIncomplete: see `train` and `Trainer`.
    """
    tasks = list(data.tasks)
    with open_run_folder(cfg, train_cases, option="--out FOLDER") as folder:
        _require_same(folder, {"model": name, "tasks": tasks, **dataclasses.asdict(options)})
        if not has_steps(folder):  # what was scored here is another network's
            shutil.rmtree(folder / "evaluation", ignore_errors=True)
        rival = Rival(
            name,
            size=get_spec(cfg.model.preset).image_size,
            tasks=len(tasks),
            width=options.width,
            roi_channel=options.roi_channel,
            bfloat16=cfg.model.compute_dtype == "bfloat16",
            seed=cfg.seed,
        )
        steps = total_steps(cfg, len(data.train))
        trainer = Trainer(rival, cfg.optim, recipe(options.loss, cfg.loss), folder)
        resumed = f", resuming at step {trainer.step}" if trainer.step else ""
        print(
            f"{rival.title}: {rival.parameters:,} parameters, {steps} steps of {cfg.batch_size} "
            f"crops of {rival.size} voxels, padded to {rival.edge}, on {rival.device}{resumed}; "
            f"run folder {folder}",
            flush=True,
        )
        with stop_request() as stop:
            train(
                trainer,
                crop_batches(cfg, data, training),
                cfg,
                steps=steps,
                case_names=[case.id for case in data.train],
                stop=stop,
            )
        plot_curves(folder / "metrics.jsonl", folder / CURVES)
        found = _score(rival, cfg, data, held_out, folder)
        return RivalRun(
            title=rival.title,
            seed=cfg.seed,
            folder=folder,
            cases=found,
            parameters=rival.parameters,
            steps=steps,
            seconds=trainer.seconds,
            device=rival.device,
        )


def _require_same(folder: Path, settings: dict[str, object]) -> None:
    """Records what rival this is; a folder with steps of another one is an error."""
    record = folder / RECORD
    if has_steps(folder):
        stored = read_json(record) if record.exists() else {}
        if changed := [key for key, value in settings.items() if stored.get(key) != value]:
            raise OutputExists(
                f"{folder} holds a rival with another {' and '.join(changed)}; give another folder "
                f"with --out FOLDER, or delete it."
            )
    write_json(record, settings)


def make_predictor(rival: Rival) -> CropPredictor:
    """`(image [n,S,S,S], roi [n,S,S,S], channel [n]) -> probability [n,S,S,S]`, float32."""
    torch = rival.torch

    def predict(image: np.ndarray, roi: np.ndarray, channel: np.ndarray) -> np.ndarray:
        rival.module.eval()
        with torch.inference_mode():
            x, inside, task = map(rival.tensor, (image, roi, channel.astype(np.int64)))
            return rival.logits(x, inside, task).float().sigmoid().cpu().numpy()

    return predict


def _score(
    rival: Rival, cfg: ExperimentConfig, data: RunData, held_out: ScoredCases, folder: Path
) -> list[CaseMetrics]:
    """Measures of the held-out cases, read where they are there already; writes the results."""
    place = folder / "evaluation" / data.held_out_name
    cases = held_out.cases
    # The page is written after the tables, and earlier versions kept no masks.
    whole = all((place / name).is_file() for name in ("cases.csv", "report.html"))
    if whole and has_masks(place, [case.id for case in cases]):
        before = read_cases(place / "cases.csv")
        if not (changed := held_out.changed_since(place, before)):
            print(f"{rival.title}: scored before; delete {place} to score it again", flush=True)
            return before
        print(f"{rival.title}: scored again, since {some(changed)} changed", flush=True)
    predict, size = make_predictor(rival), rival.size

    def method(case: Case, scan: Preprocessed) -> np.ndarray:
        return predict_volume(predict, scan, data.tasks.index(case.task), size, name=case.id)

    methods = {rival.title: method}
    all_scored = score_cases(cases, data.modality, PreprocessSpec.from_config(cfg), methods)
    found = []
    for scored in keeping_masks(all_scored, rival.title, place):
        found.append(scored.metrics[rival.title])
        if len(found) % max(1, len(cases) // 4) == 0:
            print(f"{rival.title}: scored {len(found)}/{len(cases)} cases", flush=True)
    overlays = draw_overlays(cfg, data, found, rival.title, method, place / "figures")
    write_results(
        place,
        {rival.title: found},
        heading=f"{rival.title}, {data.dataset.name}, split {data.held_out_name}",
        kind=data.dataset.kind,
        figures=[*overlays, Picture(folder / CURVES, "Training curves")],
    )
    held_out.keep(place)
    return found
