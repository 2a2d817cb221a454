"""From a command line to requests: one case, all that {case} stands for, or a dataset's split."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rtsam_jax.data.cases import RESERVED, Dataset, is_name, load_dataset
from rtsam_jax.data.import_folder import name_of, unique_names
from rtsam_jax.data.splits import assign_splits, load_or_make_splits
from rtsam_jax.errors import ConfigError, MissingFile, SplitError
from rtsam_jax.evaluation.mask_files import CASE, matched
from rtsam_jax.prediction.inputs import Request, parse_box, parse_click, parse_record
from rtsam_jax.prediction.outputs import TABLES
from rtsam_jax.prediction.trained import Trained
from rtsam_jax.prompts.record import Scalar

_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
_ONE_CASE = ("click", "box", "case")
_OF_EACH_CASE = ("dose", "mask", "record")  # files
_OF_ONE_TASK = ("click", "mask")
_SAID_BY_DATASET = ("image", "dose", "mask", "record", "modality", *_ONE_CASE)
_OF_DATASET = ("split", "split_seed")


def check_options(arguments: argparse.Namespace) -> None:
    """Looks at each option by itself, whatever is predicted.

    Raises:
        ConfigError: one is empty, as an unset variable of a shell leaves it, or --out is not one
            folder.
    """
    for name, value in vars(arguments).items():
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, str) and not text.strip() for text in texts):
            raise ConfigError(
                f"--{name.replace('_', '-')} is empty; give it a value, or leave it out."
            )
    if CASE in arguments.out:
        raise ConfigError(
            f"--out {arguments.out} has {CASE} in it, but it is one folder for all cases, which "
            "get folders of their own there; leave it out."
        )


def requests_of_paths(arguments: argparse.Namespace, trained: Trained) -> list[Request]:
    """One case, or one for everything that {case} stands for in --image.

    What one of many cases lacks is that case's own error, found when it is read.

    Raises:
        ConfigError: an option is malformed or does not go with the others, or there is no such
            task for such images.
        MissingFile: {case} matches nothing.
        RecordError: a field of --record.
    """
    for name in _OF_DATASET:
        if getattr(arguments, name) is not None:
            raise ConfigError(
                f"--{name.replace('_', '-')} is of a --dataset, which is not given; give it, or "
                "leave the option out."
            )
    for name in _OF_ONE_TASK if arguments.task == RESERVED else ():
        if getattr(arguments, name):
            raise ConfigError(
                f"--{name} belongs to one task, but --task is {RESERVED}; name the one it is for."
            )
    if not arguments.image or not arguments.task:
        known = ", ".join(task.name for task in trained.about.tasks)
        raise ConfigError(
            f"--image and --task are needed, unless there is a --dataset; the tasks are {known}, "
            f"or {RESERVED}."
        )
    record = _record(arguments.record)
    texts = {"image": arguments.image, "dose": arguments.dose, "mask": arguments.mask}
    if isinstance(record, str):
        texts["record"] = record
    tasks = _tasks(arguments, trained)
    clicks = tuple(parse_click(text, arguments.click_frame) for text in arguments.click)
    box = parse_box(arguments.box, arguments.box_frame) if arguments.box else None
    return [
        Request(
            case=name,
            tasks=tasks,
            image=Path(arguments.image.replace(CASE, case)),
            dose=_path(arguments.dose, case),
            mask=_path(arguments.mask, case),
            record=_path(record, case) if isinstance(record, str) else record,
            clicks=clicks,
            box=box,
        )
        for case, name in _names(arguments, texts).items()
    ]


def _names(arguments: argparse.Namespace, texts: Mapping[str, str | None]) -> dict[str, str]:
    """The names of the cases by what {case} stands for; "" where it does not stand there."""
    named = [name for name, text in texts.items() if text and CASE in text]
    if "image" not in named:
        if named:
            raise ConfigError(f"--{named[0]} has {CASE} in it, but --image has not; add it there.")
        name = arguments.case or name_of(_stem(arguments.image), "image")
        if not is_name(name):
            raise ConfigError(
                f"--case {name!r:.60} cannot name a folder; begin with a letter or digit, and use "
                "letters, digits, '.', '_' and '-', at most 100 of them."
            )
        _check_free([name])
        return {"": name}
    for option in _ONE_CASE:
        if getattr(arguments, option):
            raise ConfigError(
                f"--{option} belongs to one case, but --image has {CASE} in it; give the image of "
                "a single one."
            )
    for name in named:
        if not matched(texts[name] or ""):
            raise MissingFile(f"--{name} {texts[name]} matches no file; check it around {CASE}.")
    for name in _OF_EACH_CASE:
        if texts.get(name) and name not in named:
            raise ConfigError(
                f"--{name} {texts[name]} has no {CASE} in it, but --image has, so that all cases "
                f"would have that one; write {CASE} where their own differ, or give the image of a "
                "single one."
            )
    names = unique_names(matched(arguments.image), "case")
    _check_free(names.values())
    for case, name in names.items():
        if name != case:
            print(f"{case} is written as {name}, which can name a folder anywhere", flush=True)
    return names


def _check_free(names: Iterable[str]) -> None:
    """Raises `ConfigError` for a case that would be a folder in a table's place."""
    for name in names:
        if name.lower() in TABLES:
            raise ConfigError(
                f"a case cannot be called {name}, as a table in --out is; call it otherwise."
            )


def _path(text: str | None, case: str) -> Path | None:
    return Path(text.replace(CASE, case)) if text else None


def requests_of_dataset(
    arguments: argparse.Namespace, trained: Trained
) -> tuple[list[Request], str]:
    """The cases of a dataset or of a split, each for its own task, and where they are from.

    Raises:
        RTSamError: of the dataset as a whole; see `load_dataset`.
        SplitError: the split has no case, or none of the task.
        ConfigError: an option that does not go with a dataset, or the model was not trained for a
            task, or not on such images.
    """
    for name in _SAID_BY_DATASET:
        if getattr(arguments, name):
            raise ConfigError(f"--{name} does not go with --dataset, which says it; leave it out.")
    seed = arguments.split_seed
    if seed is not None and (seed < 0 or arguments.split is None):
        raise ConfigError(
            f"--split-seed is {seed}, but it must be 0 or above, and goes with --split alone."
        )
    free_text = trained.cfg.prompt.free_text
    dataset = load_dataset(arguments.dataset, free_text=free_text, parts_later=True)
    splits = _splits(dataset, seed or 0) if arguments.split else {}
    chosen = arguments.split
    only = None if arguments.task in (None, RESERVED) else dataset.task(arguments.task).name
    cases = [
        case
        for case in dataset.cases
        if chosen in (None, splits.get(case.id)) and only in (None, case.task)
    ]
    if not cases:
        raise SplitError(
            f"{dataset.root} has no case{f' of task {only}' if only else ''} in the split "
            f"{chosen!r}; its splits are {sorted(set(splits.values()))}."
        )
    _check_free(case.id for case in cases)
    for name in dict.fromkeys(case.task for case in cases):
        _check_modality(trained, name, dataset.task(name).modality)
    origin = f"{dataset.name} ({dataset.kind} data){f', split {chosen}' if chosen else ''}"
    requests = [
        Request(case.id, (case.task,), case.image, case.dose, record=case.record) for case in cases
    ]
    return requests, origin


def _splits(dataset: Dataset, seed: int) -> Mapping[str, str]:
    stored = dataset.root / f"splits_seed{seed}.json"
    if stored.exists():
        return load_or_make_splits(dataset, stored, seed=seed)
    return assign_splits(dataset, seed=seed)  # not stored: prediction only reads a dataset


def _tasks(arguments: argparse.Namespace, trained: Trained) -> tuple[str, ...]:
    if arguments.task == RESERVED:
        return tuple(task.name for task in trained.about.tasks)
    _check_modality(trained, arguments.task, arguments.modality)
    return (arguments.task,)


def _check_modality(trained: Trained, task: str, modality: str | None) -> None:
    """Raises `ConfigError` for a task that the model does not know, or on other images."""
    wanted = trained.task(task).modality
    if modality not in (None, wanted):
        raise ConfigError(
            f"the model was trained for task {task} on {wanted}, but the images are said to be "
            f"{modality}; name another task, or mend what says so."
        )


def _record(texts: Sequence[str]) -> str | dict[str, Scalar] | None:
    """The path of a file, or the fields themselves."""
    if len(texts) == 1 and "=" not in texts[0]:
        return texts[0]
    return parse_record(texts) or None


def _stem(path: str) -> str:
    name = Path(path).name
    ending = next((ending for ending in _ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]
