"""`model.json` of a run folder: what its checkpoints are, so that prediction needs nothing else.

It holds the sections of the configuration that decide what the network is and what it is shown,
the tasks with their sentences, the digest of the language model, and the calibration where there is
one. The folder, or a copy of this file and of `checkpoints/`, is enough to predict.

Schema 1, of earlier versions, has names alone: enough to go on with a run and to score it.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.cases import MODALITIES, RESERVED, is_name
from rtsam_jax.data.json_file import strict_json, write_json
from rtsam_jax.data.selection import RunData
from rtsam_jax.errors import (
    CheckpointError,
    ConfigError,
    MissingFile,
    PresetMismatch,
    UnreadableFile,
)
from rtsam_jax.flags import check_types
from rtsam_jax.models.presets import PRESETS
from rtsam_jax.training.run import environment, has_steps

SCHEMA_VERSION = 2
MODEL_FILE = "model.json"

_SECTIONS = ("model", "prompt", "dose", "click", "loss", "augment")
_PREPROCESSING = ("spacing_mm", "interpolation", "crop")  # of config.data
# Where things lay when the run was trained is no part of what the model is.
_PLACES = {"model": "checkpoint", "prompt": "feature_cache"}


@dataclass(frozen=True)
class TaskEntry:
    """A task that a model was trained for."""

    name: str
    modality: str  # of its images: "CT" | "MR"
    title: str
    sentence: str  # of the text prompt


@dataclass(frozen=True)
class ModelFile:
    """What `model.json` says.

    Attributes:
        config: sections model, prompt, dose, click, loss, augment and, of data, the model grid and
            where crops lie, all as trained; the rest has its defaults.
        tasks: in the order of the run, which is that of learned task tokens.
        text_width: channels of a text feature; 0 without texts.
        language_model: digest of the weights that made the text features, or None.
        calibration: see docs/confidence.md; None where there is none.
    """

    config: ExperimentConfig
    tasks: tuple[TaskEntry, ...]
    text_width: int
    language_model: str | None
    calibration: dict[str, Any] | None


def write_model_file(
    run: str | Path,
    cfg: ExperimentConfig,
    data: RunData,
    sentences: Mapping[str, str],
    *,
    text_width: int = 0,
    language_model: str | None = None,
) -> None:
    """Writes `model.json` of a run, whole or not at all.

    A calibration that a run with steps has is kept: it names the weights it was fitted on, and a
    reader ignores one of others. So is the run's own number, which its checkpoints have as well.

    Args:
        run: its folder.
        cfg: of the run.
        data: of the run; its tasks are the model's.
        sentences: by task, of the text prompt (`rtsam_jax.text.prompt_set.task_sentences`).
        text_width: see `ModelFile`.
        language_model: see `ModelFile`.
    """
    path = Path(run) / MODEL_FILE
    calibration: dict[str, Any] | None = None
    own: str | None = uuid.uuid4().hex
    if path.is_file() and has_steps(Path(run)):
        before = _read(path)
        stored, own = before.get("calibration"), before.get("run")  # its checkpoints name it
        calibration = stored if isinstance(stored, dict) else None
    tasks = [
        TaskEntry(task.name, task.modality, task.title, sentences[task.name])
        for task in map(data.dataset.task, data.tasks)
    ]
    document: dict[str, Any] = {"schema": SCHEMA_VERSION, "kind": "run", "run": own}
    for section in _SECTIONS:
        document[section] = dataclasses.asdict(getattr(cfg, section))
        document[section].pop(_PLACES.get(section), None)
    document["preprocessing"] = {name: getattr(cfg.data, name) for name in _PREPROCESSING}
    document["tasks"] = [dataclasses.asdict(task) for task in tasks]
    document |= {"text_width": text_width, "language_model": language_model}
    write_json(path, document | {"calibration": calibration, **environment()})


def write_calibration(folder: str | Path, calibration: Mapping[str, Any]) -> None:
    """Puts a calibration into `model.json`, whole or not at all.

    Args:
        folder: of the run.
        calibration: JSON, with at least the checkpoint's `step` and the digest of its `weights`.

    Raises:
        MissingFile, UnreadableFile, PresetMismatch: as `read_model_file`.
    """
    read_model_file(folder)
    path = Path(folder) / MODEL_FILE
    write_json(path, _read(path) | {"calibration": dict(calibration)})


def read_model_file(folder: str | Path) -> ModelFile:
    """What `write_model_file` wrote.

    Raises:
        MissingFile: the folder has no `model.json`.
        UnreadableFile: it is damaged.
        CheckpointError: it is about something else than a run.
        PresetMismatch: it is of another schema, or of a preset that this version does not have.
    """
    path = Path(folder) / MODEL_FILE
    document = _read(path)
    if document["schema"] != SCHEMA_VERSION:
        raise PresetMismatch(
            f"{path} is of schema 1, which does not say how images are prepared; start the run's "
            "command `python -m rtsam_jax.train` once more to renew it, which trains a finished "
            "run no further."
        )
    try:
        preset = document["model"]["preset"]
        if isinstance(preset, str) and preset not in PRESETS:
            raise PresetMismatch(
                f"{path} is about a model of preset {preset!r}, which this version does not have; "
                "use the version of rtsam_jax that wrote it."
            )
        about = ModelFile(
            config=_config(document),
            tasks=tuple(TaskEntry(**entry) for entry in document["tasks"]),
            text_width=document["text_width"],
            language_model=document["language_model"],
            calibration=document["calibration"],
        )
        _check_values(about)
        return about
    except (ConfigError, KeyError, TypeError, AttributeError) as cause:
        reason = f"it lacks {cause}" if isinstance(cause, KeyError) else str(cause).rstrip(".")
        raise _damaged(path, reason) from cause


def is_run(folder: str | Path) -> bool:
    """Whether `model.json` says so; what is wrong with a folder otherwise, its reader tells."""
    return _peek(folder).get("kind") == "run"


def run_id(run: str | Path) -> str | None:
    """The run's own number, by which its checkpoints are told from another's; None if unknown."""
    found = _peek(run).get("run")
    return found if isinstance(found, str) else None


def _peek(folder: str | Path) -> dict[str, Any]:
    """The document as it is; {} where it cannot be read, which whoever needs the rest tells."""
    try:
        content = json.loads((Path(folder) / MODEL_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def check_language_model(run: str | Path, digest: str | None) -> None:
    """Sees that a run's text features came from a language model.

    Args:
        run: its folder.
        digest: of the weights that make today's features; None where the run uses no text.

    Raises:
        CheckpointError: they came from another one.
        MissingFile, UnreadableFile, PresetMismatch: as `read_model_file`.
    """
    path = Path(run) / MODEL_FILE
    stored = _read(path).get("language_model")  # the first versions had none
    if not isinstance(stored, str | None):
        raise _damaged(path, "language_model is no digest")
    if stored != digest:
        raise CheckpointError(
            f"the run {run} was trained on text features of the language model "
            f"{(stored or 'none')[:12]}, but config.prompt.language_model now holds "
            f"{(digest or 'none')[:12]}; bring the folder back, or train anew."
        )


def check_tasks(run: str | Path, tasks: Sequence[str]) -> None:
    """Sees that a run's task tokens are of these tasks, in this order.

    Raises:
        CheckpointError: they are not.
        MissingFile, UnreadableFile, PresetMismatch: as `read_model_file`.
    """
    path = Path(run) / MODEL_FILE
    entries = _read(path).get("tasks") or []
    try:
        stored = [entry["name"] if isinstance(entry, dict) else entry for entry in entries]
    except (KeyError, TypeError) as cause:
        raise _damaged(path, "tasks is no list of named tasks") from cause
    if stored != list(tasks):
        raise CheckpointError(
            f"the run {run} was trained for the tasks {stored}, but its dataset now has "
            f"{list(tasks)}; restore the dataset's tasks and their order, or train anew."
        )


def _config(document: Mapping[str, Any]) -> ExperimentConfig:
    sections = {name: document[name] for name in _SECTIONS}
    cfg = ExperimentConfig.from_dict(sections | {"data": document["preprocessing"]})
    check_types(cfg, ExperimentConfig(), "config")
    # Nothing is trained or scored by it: what those need beyond the model is not there.
    cfg.evaluate, cfg.data.dataset = False, "none"
    cfg.validate()
    return cfg


def _check_values(about: ModelFile) -> None:
    """Raises `ConfigError` for a field of another kind than `write_model_file` writes."""
    if not about.tasks:
        raise ConfigError("tasks is empty")
    names = [task.name for task in about.tasks]
    if RESERVED in names or len({*names}) < len(names):
        raise ConfigError(f"the tasks {names} are not all different, or one is called {RESERVED}")
    for task in about.tasks:
        texts = dataclasses.astuple(task)
        if not all(isinstance(text, str) for text in texts) or not is_name(task.name):
            raise ConfigError(f"the task {task.name!r} has a field that is no text, or no name")
        if task.modality not in MODALITIES:
            raise ConfigError(f"the task {task.name!r} is on {task.modality!r}, not on CT or MR")
    if type(about.text_width) is not int or about.text_width < 0:
        raise ConfigError(f"text_width is {about.text_width!r}, not a count of channels")
    digest, told = about.language_model, about.config.prompt.task == "text"
    if not isinstance(digest, str | None):
        raise ConfigError("language_model is no digest")
    if told != (about.text_width > 0) or told != (digest is not None):
        raise ConfigError(
            f"prompt.task is {about.config.prompt.task!r}, but text_width is {about.text_width} "
            f"and language_model {(digest or 'null')[:12]}"
        )
    if not isinstance(about.calibration, dict | None):
        raise ConfigError("calibration is no object")


def _read(path: Path) -> dict[str, Any]:
    """The document, of any schema that this version reads."""
    if not path.is_file():
        raise MissingFile(
            f"{path} does not exist; give the folder of a run made by rtsam_jax.train."
        )
    try:
        content = strict_json(path)
    except ValueError as cause:
        raise _damaged(path, str(cause)) from cause
    if not isinstance(content, dict) or content.get("schema") not in (1, SCHEMA_VERSION):
        raise PresetMismatch(
            f"{path} is not of schema {SCHEMA_VERSION}; use the version of rtsam_jax that wrote it."
        )
    if content.get("kind", "run") != "run":
        raise CheckpointError(
            f"{path} is about {content['kind']}, not about a run; give the folder of a run made by "
            "rtsam_jax.train."
        )
    return content


def _damaged(path: Path, reason: str) -> UnreadableFile:
    return UnreadableFile(
        f"{path} is damaged ({reason}); bring it back from a copy, or start the run again from its "
        "config to renew it."
    )
