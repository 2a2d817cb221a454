"""A run's folder: what it was started with, on what, and how many steps it takes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import jax

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.config_ranges import leaf_fields
from rtsam_jax.data.cache import cache_root
from rtsam_jax.data.file_lock import take_lock
from rtsam_jax.data.json_file import write_json
from rtsam_jax.data.prepare import prepare_cases
from rtsam_jax.data.prepared import PreparedCases
from rtsam_jax.data.scans import CacheSettings
from rtsam_jax.data.selection import RunData
from rtsam_jax.data.user_cache import user_cache
from rtsam_jax.errors import (
    CasesFailed,
    ConfigError,
    MissingFile,
    NotWritable,
    OutputExists,
    UnreadableFile,
)
from rtsam_jax.models.presets import get_spec
from rtsam_jax.report.tables import failure_table

RECORD = "run.json"
LOCK = ".lock"
_NAMED = 5  # cases that a warning names
_OPTION = "--config.out=FOLDER"


def total_samples(cfg: ExperimentConfig, train_cases: int) -> int:
    """Samples that a run draws; an epoch takes as many as there are cases."""
    return cfg.steps * cfg.batch_size or cfg.epochs * train_cases


def total_steps(cfg: ExperimentConfig, train_cases: int) -> int:
    """Optimiser steps of a run; the last batch may hold fewer samples than the others."""
    return math.ceil(total_samples(cfg, train_cases) / cfg.batch_size)


def prepare_training(cfg: ExperimentConfig, data: RunData) -> PreparedCases:
    """The training cases, prepared if they are not yet.

    Several processes may ask at once: one prepares, the others wait for it and find what it made.

    Raises:
        CasesFailed: some cannot be used; a table on the screen says why.
        NotWritable: the cache cannot be written.
    """
    prepared = prepare_cases(
        data.train,
        data.modality,
        CacheSettings.from_config(cfg, get_spec(cfg.model.preset).image_size),
        cache_root(cfg),
        cfg.data.prepare_workers,
    )
    if prepared.failures:
        print(failure_table(prepared.failures), flush=True)
        raise CasesFailed(
            f"{len(prepared.failures)} of {len(data.train)} training cases of {cfg.data.dataset} "
            "cannot be used, for the reasons above; mend them, or move them to another split."
        )
    if prepared.empty:
        print(
            f"warning: {len(prepared.empty)} training cases have an empty label: "
            f"{', '.join(prepared.empty[:_NAMED])}{', ...' if prepared.empty[_NAMED:] else ''}",
            flush=True,
        )
    return PreparedCases(
        [prepared.entries[case.id] for case in data.train],
        [data.tasks.index(case.task) for case in data.train],
        cfg.dose.source,
        user_cache("prepared"),
    )


@contextmanager
def open_run_folder(
    cfg: ExperimentConfig, train_cases: Sequence[str], option: str = _OPTION
) -> Iterator[Path]:
    """Makes the run folder, or resumes the run in it, and keeps other commands out of it.

    A run that has not taken a step yet is begun anew, whatever its settings were.

    Args:
        train_cases: `fingerprints` of the training cases, in their order.
        option: of the command, which names another folder.

    Raises:
        OutputExists: the folder holds a run with other settings or training cases, is in use by
            another command, or holds something else.
        UnreadableFile: its `run.json` is damaged.
        NotWritable: the folder cannot be made or written to.
    """
    run = Path(cfg.out_dir)
    record = run / RECORD
    if not record.exists() and (
        run.is_file() or (run.is_dir() and any(map(_foreign, run.iterdir())))
    ):
        raise OutputExists(f"{run} exists and is not a run's folder; give another with {option}.")
    digest = _digest(train_cases)
    content = {"config": dataclasses.asdict(cfg), "train_cases": digest, **environment()}
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = (run / LOCK).open("a")
    except OSError as cause:
        raise _not_writable(run, cause, option) from cause
    with lock:
        _take(lock, run, option)
        stored = read_record(run) if record.exists() else None
        if stored is not None and has_steps(run):
            _require_same(run, stored, cfg, digest, option)
        else:
            try:
                write_json(record, content)
            except OSError as cause:
                raise _not_writable(run, cause, option) from cause
        yield run


def require_same_run(run: Path, cfg: ExperimentConfig, train_cases: Sequence[str]) -> None:
    """Raises where a folder holds another run than this; without a step it holds none yet.

    Args:
        train_cases: `fingerprints` of the training cases, in their order.

    Raises:
        OutputExists: it has other settings or training cases.
        UnreadableFile: its `run.json` is damaged.
    """
    if (run / RECORD).exists() and has_steps(run):
        _require_same(run, read_record(run), cfg, _digest(train_cases), _OPTION)


def require_train_cases(run: Path, cfg: ExperimentConfig, train_cases: Sequence[str]) -> bool:
    """Raises where a run was trained on other cases than its dataset has now.

    Args:
        train_cases: `fingerprints` of the training cases that the dataset has now, in their order.

    Returns:
        Whether it is known; earlier versions did not record on which a run was trained.

    Raises:
        ConfigError: it was.
        MissingFile, UnreadableFile: the folder has no `run.json`; it is damaged.
    """
    record = read_record(run)
    if "train_cases" not in record:
        return False
    if record["train_cases"] != _digest(train_cases):
        raise ConfigError(
            f"{run} was trained on other cases than {cfg.data.dataset} now has for training, or on "
            "other files of theirs, so that others may be among those to judge it by; bring cases, "
            "splits and files back as they were."
        )
    return True


def _digest(train_cases: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(train_cases)).encode()).hexdigest()


def has_steps(run: Path) -> bool:
    """Whether a run has logged a step or finished a checkpoint."""
    log, checkpoints = run / "metrics.jsonl", run / "checkpoints"
    return (log.is_file() and log.stat().st_size > 0) or (
        checkpoints.is_dir() and any(path.name.isdigit() for path in checkpoints.iterdir())
    )


def _foreign(path: Path) -> bool:
    # A kill before run.json was renamed leaves its beginning and the lock: that is no one's work.
    return path.name != LOCK and not path.name.startswith(f".{RECORD}.")


def _take(lock: IO[str], run: Path, option: str) -> None:
    """Locks a run folder until the file is closed, which the end of the process does too."""
    try:
        if not take_lock(lock):
            raise OutputExists(
                f"{run} is in use by another command; wait for its end, or give another folder "
                f"with {option}."
            )
    except OSError as cause:  # some network file systems
        print(f"{run} cannot be locked ({cause.strerror}): start no second command on it")


def _require_same(
    run: Path, stored: dict[str, Any], cfg: ExperimentConfig, digest: str, option: str
) -> None:
    if changed := changed_settings(stored["config"], dataclasses.asdict(cfg)):
        raise OutputExists(
            f"{run} holds a run with other settings ({', '.join(changed[:4])}); "
            f"give another folder with {option}, or delete it."
        )
    if stored.get("train_cases", digest) != digest:  # runs of earlier versions did not record it
        raise OutputExists(
            f"{run} was trained on other cases than {cfg.data.dataset} now has for training, or on "
            f"other files of theirs; bring cases, splits and files back, or give another folder "
            f"with {option}."
        )


# Where a run and its caches lie is not part of what it is, nor on how many devices it goes on, nor
# what it keeps in their memory, nor how often it says or saves where it is, nor whether it is
# scored at its end. Nor is the language model's place: model.json has its digest.
_NO_PART = re.compile(
    r"out|mesh\..*|accumulate|(model|click)\.remat|prompt\.(language_model|feature_cache)"
    r"|data\.(cache|prepare_workers|read_threads)|views\.folder"
    r"|log_every|checkpoint_every|keep_checkpoints|evaluate|figures"
)


def changed_settings(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The fields, by dotted name, that tell two runs' configs apart; where a run lies does not."""
    before, now = _settings(before), _settings(now)
    return [name for name in sorted(before.keys() | now) if before.get(name) != now.get(name)]


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """What a run is, by dotted name; fields that it was recorded without have their defaults."""
    default = dict(leaf_fields(ExperimentConfig()))
    found = default | _flat(config)
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}
    return {name: value for name, value in listed.items() if not _NO_PART.fullmatch(name)}


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def _not_writable(run: Path, cause: OSError, option: str) -> NotWritable:
    return NotWritable(
        f"the run folder {run} cannot be written ({cause.strerror}); give another with {option}."
    )


def read_record(run: Path) -> dict[str, Any]:
    """A run's `run.json`, with at least `config`.

    Raises:
        MissingFile: this is not a run's folder.
        UnreadableFile: the file is damaged.
    """
    record = run / RECORD
    if not record.is_file():
        raise MissingFile(f"{record} does not exist; give the folder of a run of rtsam_jax.train.")
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        if not isinstance(content["config"], dict):
            raise TypeError("its config is not an object")
    except (ValueError, KeyError, TypeError) as cause:
        raise UnreadableFile(
            f"{record} is damaged ({cause}); bring it back from a copy, or delete the folder {run} "
            f"and train again."
        ) from cause
    return content


def environment() -> dict[str, object]:
    """Versions, git commit and device, for `run.json`."""
    packages = (
        *("rtsam-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
        *("numpy", "scipy", "nibabel", "grain"),
    )
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        git = subprocess.run(command, capture_output=True, text=True, check=False)
        commit = git.stdout.strip() or None
    except OSError:  # git is not installed
        commit = None
    return {
        "versions": versions,
        "python": platform.python_version(),
        "git_commit": commit,
        "platform": platform.platform(),
        "devices": [device.device_kind for device in jax.devices()],
    }
