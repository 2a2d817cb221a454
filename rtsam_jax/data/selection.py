"""Which cases a run trains on and which it is scored on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data import images, openkbp, phantom
from rtsam_jax.data.cases import Case, Dataset, load_dataset
from rtsam_jax.data.splits import inner_split, load_or_make_splits
from rtsam_jax.errors import ConfigError, IncompleteCase, SplitError


@dataclass(frozen=True)
class RunData:
    """The dataset and the two sides of the split that a run uses."""

    dataset: Dataset
    tasks: tuple[str, ...]  # in the order of task ids
    modality: dict[str, str]  # by task
    train: tuple[Case, ...]
    held_out: tuple[Case, ...]  # what evaluation scores
    held_out_name: str


def held_out_name(cfg: ExperimentConfig) -> str:
    """The split that a run is scored on, or the inner fold in its place."""
    if cfg.data.inner_folds:
        return f"inner{cfg.data.inner_fold}of{cfg.data.inner_folds}"
    return cfg.data.eval_split


def load_chosen(cfg: ExperimentConfig) -> tuple[Dataset, tuple[str, ...]]:
    """The config's dataset, built if the config says so, and the tasks chosen from it.

    Raises:
        DatasetSchemaError, RecordError, MissingFile, ConfigError: see the message.
    """
    root = Path(cfg.data.dataset)
    build = cfg.data.builder and not (root.is_dir() and any(root.iterdir()))
    if build:
        _build_dataset(cfg, root)
    dataset = load_dataset(root, free_text=cfg.prompt.free_text)
    if not build and cfg.data.builder_cases not in (0, len(dataset.cases)):
        print(
            f"{root} exists and is used as it is: {len(dataset.cases)} cases, not "
            f"data.builder_cases={cfg.data.builder_cases}",
            flush=True,
        )
    names = tuple(task.name for task in dataset.tasks)
    if unknown := set(cfg.data.tasks) - set(names):
        raise ConfigError(
            f"config.data.tasks names {sorted(unknown)}, but {root} has the tasks {list(names)}."
        )
    tasks = tuple(name for name in names if not cfg.data.tasks or name in cfg.data.tasks)
    return dataset, tasks


def load_run_data(cfg: ExperimentConfig) -> RunData:
    """Builds the dataset if the config says so, reads it and splits it by patient.

    Raises:
        DatasetSchemaError, RecordError, MissingFile, SplitError, ConfigError: see the message.
    """
    dataset, tasks = load_chosen(cfg)
    root = dataset.root
    splits = splits_of(dataset, cfg)
    wanted = [case for case in dataset.cases if case.task in tasks]
    train = [case for case in wanted if splits[case.id] == cfg.data.train_split]
    held_out = [case for case in wanted if splits[case.id] == cfg.data.eval_split]
    if cfg.data.inner_folds:
        keep, hold = inner_split(
            {case.id: case.patient for case in train},
            cfg.data.inner_folds,
            cfg.data.inner_fold,
            cfg.data.split_seed,
            {case.id: case.task for case in train},
        )
        held_out = [case for case in train if case.id in set(hold)]
        train = [case for case in train if case.id in set(keep)]
    if not train:
        raise SplitError(
            f"the split {cfg.data.train_split!r} of {root} has no case; "
            f"its splits are {sorted(set(splits.values()))}."
        )
    if cfg.evaluate and not held_out:
        raise SplitError(
            f"the split {cfg.data.eval_split!r} of {root} has no case to score; its splits are "
            f"{sorted(set(splits.values()))}: name one as config.data.eval_split, or set "
            f"config.evaluate=False."
        )
    untaught = sorted({case.task for case in held_out} - {case.task for case in train})
    if cfg.evaluate and untaught:
        raise SplitError(
            f"task {untaught[0]} of {root} has cases to score but none to train on; add some, or "
            f"name the other tasks as config.data.tasks."
        )
    unlabelled = [case.id for case in train if case.label is None]
    if unlabelled:
        raise SplitError(
            f"training case {unlabelled[0]} of {root} has no label; add one or move the case to "
            f"another split."
        )
    doseless = [case.id for case in train if case.dose is None]
    if doseless and cfg.dose.source == "dose":
        raise IncompleteCase(
            f"training case {doseless[0]} of {root} has no dose, which the box is made from; add "
            "one, move the case to another split, or train without: config.dose.source='label'."
        )
    return RunData(
        dataset=dataset,
        tasks=tasks,
        modality={task.name: task.modality for task in dataset.tasks},
        train=tuple(train),
        held_out=tuple(held_out),
        held_out_name=held_out_name(cfg),
    )


def require_split(cfg: ExperimentConfig) -> None:
    """Raises where the split that a trained run is to be scored on has no case of its tasks.

    `load_run_data` would refuse it too, but knows no `--split`, and would advise a field of a
    config that such a command does not take.

    Raises:
        SplitError: it has none.
        DatasetSchemaError, RecordError, MissingFile, ConfigError: as `load_run_data`.
    """
    dataset, tasks = load_chosen(cfg)
    splits = splits_of(dataset, cfg)
    if cfg.data.eval_split not in {splits[c.id] for c in dataset.cases if c.task in tasks}:
        raise SplitError(
            f"the split {cfg.data.eval_split!r} of {dataset.root} has no case to score; its splits "
            f"are {sorted(set(splits.values()))}: name one with --split."
        )


def splits_of(dataset: Dataset, cfg: ExperimentConfig) -> dict[str, str]:
    """Case id -> split, read from beside the dataset or drawn and stored there."""
    seed = cfg.data.split_seed
    return load_or_make_splits(dataset, dataset.root / f"splits_seed{seed}.json", seed=seed)


def _build_dataset(cfg: ExperimentConfig, root: Path) -> None:
    print(f"making the {cfg.data.builder} dataset in {root}", flush=True)
    if cfg.data.builder in ("phantom", "phantom_twins"):
        options: dict[str, Any] = {}
        if cfg.data.builder_cases:
            options["cases"] = cfg.data.builder_cases
        if cfg.data.builder == "phantom_twins":
            options["twins"] = True
        phantom.build(root, seed=cfg.data.split_seed, **options)
        return
    if not cfg.data.source:
        raise ConfigError(
            f"config.data.source is empty; set it to the folder that {root} is to be made from."
        )
    source = Path(cfg.data.source)
    if cfg.data.builder == "openkbp":
        openkbp.build(source, root)
    else:
        modality = cfg.data.builder.removeprefix("images_").upper()
        images.build(source, root, modality=modality)
