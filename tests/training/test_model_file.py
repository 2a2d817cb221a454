"""`model.json` alone says what a checkpoint is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from rtsam_jax import errors
from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.selection import RunData, load_run_data
from rtsam_jax.training.model_file import (
    TaskEntry,
    check_language_model,
    check_tasks,
    read_model_file,
    write_calibration,
    write_model_file,
)
from rtsam_jax.weights import load_weights
from tests.tiny import TASKS, tiny_config

SENTENCES = {name: f"Segment {name}." for name in TASKS}
TASK = {"name": "orn", "modality": "CT", "title": "ORN", "sentence": "Segment orn."}
FITTED = {"step": 4, "weights": "abc", "temperature": 1.5}


@pytest.fixture(scope="module")
def data(tiny_dataset: Path) -> RunData:
    return load_run_data(tiny_config(tiny_dataset))


def written(run: Path, data: RunData, cfg: ExperimentConfig | None = None, **more: Any) -> Path:
    cfg = cfg or tiny_config(data.dataset.root)
    write_model_file(run, cfg, data, SENTENCES, **more)
    return run / "model.json"


def test_what_decides_a_prediction_comes_back_and_no_place_of_training(
    tmp_path: Path, data: RunData
) -> None:
    cfg = tiny_config(
        data.dataset.root,
        prompt__task="text",
        prompt__feature_cache="secret/cache",
        model__checkpoint="secret/weights",
        dose__threshold="absolute",
        dose__gy=41.5,
        data__interpolation="bspline",
        data__crop="image",
        click__accumulate=False,
        loss__pass_weights=(0.5, 1.5),
        augment__flip_axes=(0, 2),
        out="secret/out",
        steps=11,
    )
    path = written(tmp_path, data, cfg, text_width=24, language_model="d" * 64)
    assert "secret" not in path.read_text()
    found = read_model_file(tmp_path)
    for section in ("dose", "click", "loss", "augment"):
        assert getattr(found.config, section) == getattr(cfg, section)
    assert found.config.model == dataclasses.replace(cfg.model, checkpoint="")
    assert found.config.prompt == dataclasses.replace(cfg.prompt, feature_cache="")
    for field in ("spacing_mm", "interpolation", "crop"):
        assert getattr(found.config.data, field) == getattr(cfg.data, field)
    assert found.config.optim == ExperimentConfig().optim and found.config.steps == 0
    assert found.tasks[0] == TaskEntry("orn", "CT", "ORN", "Segment orn.")
    assert [task.name for task in found.tasks] == list(TASKS)
    assert (found.text_width, found.language_model, found.calibration) == (24, "d" * 64, None)


def test_a_calibration_stays_with_a_run_that_has_steps_and_with_no_other(
    tmp_path: Path, data: RunData
) -> None:
    path = written(tmp_path, data)
    write_calibration(tmp_path, FITTED)
    assert read_model_file(tmp_path).calibration == FITTED
    before = json.loads(path.read_text())
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    written(tmp_path, data)  # the run's command once more
    assert json.loads(path.read_text()) == before
    (tmp_path / "checkpoints" / "4").rmdir()
    written(tmp_path, data)  # begun anew
    assert read_model_file(tmp_path).calibration is None


def test_the_runs_command_renews_a_file_of_an_earlier_version(
    tmp_path: Path, data: RunData
) -> None:
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    old = {"schema": 1, "kind": "run", "tasks": TASKS, "preset": "test"}
    (tmp_path / "model.json").write_text(json.dumps(old))
    written(tmp_path, data)
    assert read_model_file(tmp_path).config.model.preset == "test"


@pytest.mark.parametrize("schema", [1, 2])
def test_another_runs_tasks_or_language_model(tmp_path: Path, data: RunData, schema: int) -> None:
    if schema == 2:
        written(tmp_path, data, language_model="abc")
    else:
        old = {"schema": 1, "kind": "run", "tasks": TASKS, "language_model": "abc"}
        (tmp_path / "model.json").write_text(json.dumps(old))
    check_tasks(tmp_path, TASKS)
    check_language_model(tmp_path, "abc")
    for tasks in (TASKS[::-1], TASKS[:1], (*TASKS, "more")):
        with pytest.raises(errors.CheckpointError, match="was trained for the tasks"):
            check_tasks(tmp_path, tasks)
    for digest in (None, "abd"):
        with pytest.raises(errors.CheckpointError, match="language model abc"):
            check_language_model(tmp_path, digest)
    with pytest.raises(errors.CheckpointError, match="holds a run, not plain weights"):
        load_weights(tmp_path, "test")  # by mistake


@pytest.mark.parametrize("tasks", [5, True, [{"title": "ORN"}], [{"name": "orn"}, {}]])
def test_tasks_or_a_language_model_that_are_none(tmp_path: Path, data: RunData, tasks: Any) -> None:
    changed(written(tmp_path, data), tasks=tasks, language_model=5)
    with pytest.raises(errors.UnreadableFile, match="model.json is damaged .tasks"):
        check_tasks(tmp_path, TASKS)
    with pytest.raises(errors.UnreadableFile, match="model.json is damaged .language_model"):
        check_language_model(tmp_path, "abc")


def changed(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "error", "named"),
    [
        ({"schema": 1}, errors.PresetMismatch, "schema 1.*rtsam_jax.train` once more"),
        ({"schema": 99}, errors.PresetMismatch, "not of schema 2"),
        ({"kind": "weights"}, errors.CheckpointError, "about weights, not about a run"),
        ({"model": {"preset": "vit_xxl"}}, errors.PresetMismatch, "preset 'vit_xxl'"),
        ({"model": {"preset": 3}}, errors.UnreadableFile, "config.model.preset is 3"),
        ({"dose": {"tau": 7.0}}, errors.UnreadableFile, "config.dose.tau is 7.0"),
        ({"dose": {"tua": 0.7}}, errors.UnreadableFile, "dose.tua is unknown"),
        ({"tasks": [{"name": "orn"}]}, errors.UnreadableFile, "damaged"),
        ({"tasks": ["orn"]}, errors.UnreadableFile, "damaged"),
        ({"tasks": []}, errors.UnreadableFile, "tasks is empty"),
        ({"tasks": [TASK | {"modality": "PET"}]}, errors.UnreadableFile, "is on 'PET'"),
        ({"tasks": [TASK | {"sentence": 5}]}, errors.UnreadableFile, "task 'orn' has a field"),
        ({"tasks": [TASK | {"name": "../orn"}]}, errors.UnreadableFile, "task '../orn' has"),
        ({"text_width": "a"}, errors.UnreadableFile, "text_width is 'a'"),
        ({"text_width": 24}, errors.UnreadableFile, "'embedding', but text_width is 24"),
        ({"language_model": "ab"}, errors.UnreadableFile, "and language_model ab"),
        ({"language_model": 5}, errors.UnreadableFile, "language_model is no digest"),
        ({"calibration": [1]}, errors.UnreadableFile, "calibration is no object"),
    ],
)
def test_a_file_that_cannot_be_used(
    tmp_path: Path, data: RunData, fields: dict[str, Any], error: type, named: str
) -> None:
    changed(written(tmp_path, data), **fields)
    with pytest.raises(error, match=f"model.json.*{named}"):
        read_model_file(tmp_path)
    with pytest.raises(error):  # nothing is written over what is not understood
        write_calibration(tmp_path, FITTED)


def test_no_file_and_half_a_file(tmp_path: Path, data: RunData) -> None:
    with pytest.raises(errors.MissingFile, match="model.json does not exist"):
        read_model_file(tmp_path)
    path = written(tmp_path, data)
    content = json.loads(path.read_text())
    del content["preprocessing"]
    path.write_text(json.dumps(content))
    with pytest.raises(errors.UnreadableFile, match="lacks 'preprocessing'"):
        read_model_file(tmp_path)
    for text in ('{"schema": 2, "ta', "[" * 100_000, '{"schema": 2, "schema": 2}'):
        path.write_text(text)
        with pytest.raises(errors.UnreadableFile, match="damaged"):
            read_model_file(tmp_path)
