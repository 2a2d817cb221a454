"""The run folder: one run, one configuration."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from rtsam_jax import errors
from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.cases import load_dataset
from rtsam_jax.data.fingerprints import fingerprints
from rtsam_jax.data.nifti import read_volume, write_volume
from rtsam_jax.training.restored import load_run_config
from rtsam_jax.training.run import (
    environment,
    open_run_folder,
    read_record,
    total_steps,
)
from tests.tiny import command_environment, tiny_config


def cfg_for(run: Path, **fields: object) -> ExperimentConfig:
    return tiny_config(out=str(run), **fields)


def open_folder(cfg: ExperimentConfig, cases: Sequence[str] = ("a", "b")) -> Path:
    """The folder, opened and let go."""
    with open_run_folder(cfg, cases) as folder:
        return folder


def take_a_step(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')


def test_a_new_folder_records_what_it_is(tmp_path: Path) -> None:
    cfg = cfg_for(tmp_path / "a" / "run", loss__pass_weights=(1.0, 2.0))
    assert open_folder(cfg) == tmp_path / "a" / "run"
    record = json.loads((tmp_path / "a" / "run" / "run.json").read_text())
    assert record["config"]["loss"]["pass_weights"] == [1.0, 2.0]
    assert {"jax", "flax", "orbax-checkpoint"} <= record["versions"].keys()
    assert {"git_commit", "platform", "python", "devices"} <= record.keys()
    assert load_run_config(tmp_path / "a" / "run") == cfg


def test_the_same_settings_resume(tmp_path: Path) -> None:
    cfg = cfg_for(tmp_path / "run", data__tasks=("orn",), optim__milestones=(0.5,))
    open_folder(cfg)
    take_a_step(tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    open_folder(cfg)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_moved_run_resumes(tmp_path: Path) -> None:
    open_folder(cfg_for(tmp_path / "old"))
    take_a_step(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    open_folder(cfg_for(tmp_path / "new", views__folder="elsewhere"))


def test_a_run_goes_on_with_less_memory(tmp_path: Path) -> None:
    open_folder(cfg_for(tmp_path))
    take_a_step(tmp_path)
    smaller = {"accumulate": 2, "model__remat": "blocks", "click__remat": "all", "mesh__fsdp": 2}
    open_folder(cfg_for(tmp_path, **smaller))


def test_a_run_goes_on_saving_oftener(tmp_path: Path) -> None:
    open_folder(cfg_for(tmp_path, evaluate=False))
    take_a_step(tmp_path)
    oftener = {"log_every": 1, "checkpoint_every": 7, "keep_checkpoints": 5, "figures": 0}
    open_folder(cfg_for(tmp_path, **oftener))


def test_a_run_of_an_earlier_version_had_the_defaults_of_new_fields(tmp_path: Path) -> None:
    open_folder(cfg_for(tmp_path))
    take_a_step(tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    del record["config"]["views"], record["config"]["dose"]["box_jitter"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    open_folder(cfg_for(tmp_path))
    with pytest.raises(errors.OutputExists, match="dose.box_jitter"):
        open_folder(cfg_for(tmp_path, dose__box_jitter=3))


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    open_folder(cfg_for(tmp_path))
    take_a_step(tmp_path)
    with pytest.raises(errors.OutputExists) as caught:
        open_folder(cfg_for(tmp_path, optim__lr=0.5, seed=3, optim__milestones=(0.5,)))
    assert "(optim.lr, optim.milestones, seed)" in str(caught.value)
    assert "--config.out=" in str(caught.value)


@pytest.mark.parametrize("left", ["", "metrics.jsonl", "checkpoints/2.orbax-checkpoint-tmp/x"])
def test_a_run_without_a_step_is_begun_anew(tmp_path: Path, left: str) -> None:
    """Whatever stopped it, its advice may be to change a setting."""
    open_folder(cfg_for(tmp_path))
    if left:
        (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / left).touch()
    open_folder(cfg_for(tmp_path, dose__tau=0.3), ["c"])
    assert read_record(tmp_path)["config"]["dose"]["tau"] == 0.3
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    with pytest.raises(errors.OutputExists, match="dose.tau"):
        open_folder(cfg_for(tmp_path), ["c"])


def test_other_training_cases_are_refused(tmp_path: Path) -> None:
    cfg = cfg_for(tmp_path)
    open_folder(cfg)
    take_a_step(tmp_path)
    for cases in (["a"], ["b", "a"], ["a", "b", "c"], ["ab"]):
        with pytest.raises(errors.OutputExists, match="other cases than dataset now has"):
            open_folder(cfg, cases)
    open_folder(cfg)
    record = read_record(tmp_path)
    del record["train_cases"]  # as earlier versions wrote it
    (tmp_path / "run.json").write_text(json.dumps(record))
    open_folder(cfg, ["a"])


def test_one_command_at_a_time(tmp_path: Path) -> None:
    """The lock is another process's, and goes with it however it ends."""
    cfg = cfg_for(tmp_path / "run")
    code = (
        "import json, sys, time\n"
        "from rtsam_jax.config import ExperimentConfig\n"
        "from rtsam_jax.training.run import open_run_folder\n"
        "with open_run_folder(ExperimentConfig.from_dict(json.loads(sys.argv[1])), ['a', 'b']):\n"
        "    print('open', flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, cfg.to_json()],
        env=command_environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "open\n"
            before = (tmp_path / "run" / "run.json").read_bytes()
            with pytest.raises(errors.OutputExists, match="in use by another command"):
                open_folder(cfg_for(tmp_path / "run", seed=3))
            assert (tmp_path / "run" / "run.json").read_bytes() == before
        finally:
            other.send_signal(signal.SIGKILL)
    open_folder(cfg)


def test_a_folder_that_cannot_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    open_folder(cfg_for(tmp_path))
    assert "cannot be locked (No locks available)" in capsys.readouterr().out


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing program is no fault of the run folder."""
    assert environment()["git_commit"]
    monkeypatch.setenv("PATH", str(tmp_path))
    open_folder(cfg_for(tmp_path / "run"))
    assert read_record(tmp_path / "run")["git_commit"] is None


def test_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(errors.OutputExists, match="not a run's folder"):
        open_folder(cfg_for(tmp_path))
    with pytest.raises(errors.OutputExists, match="not a run's folder"):
        open_folder(cfg_for(tmp_path / "thesis.tex"))


def test_a_kill_before_the_record_was_complete(tmp_path: Path) -> None:
    """`write_json` writes beside and renames: what a kill leaves is no obstacle."""
    (tmp_path / ".run.json.4711.part").write_text('{"config": {')
    (tmp_path / ".lock").touch()
    open_folder(cfg_for(tmp_path))
    assert (tmp_path / "run.json").is_file()


@pytest.mark.parametrize("text", ["", '{"config": {"na', "[]", "{}", '{"config": 3}', "null"])
def test_a_damaged_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    for use in (lambda: open_folder(cfg_for(tmp_path)), lambda: load_run_config(tmp_path)):
        with pytest.raises(errors.UnreadableFile, match="run.json is damaged"):
            use()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model": 5}, "config.model is 5"),
        ({"seed": "x"}, "config.seed is 'x'"),
        ({"dose": {"tau": "x"}}, "config.dose.tau is 'x'"),
        ({"data": {"dataset": 5}}, "config.data.dataset is 5"),
        ({"steps": -3}, "config.steps is -3"),
    ],
)
def test_a_record_with_impossible_values(tmp_path: Path, changed: dict, named: str) -> None:
    open_folder(cfg_for(tmp_path))
    record = json.loads((tmp_path / "run.json").read_text())
    for name, value in changed.items():
        record["config"][name] = (
            {**record["config"][name], **value} if isinstance(value, dict) else value
        )
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(errors.UnreadableFile, match="run.json is damaged") as caught:
        load_run_config(tmp_path)
    assert named in str(caught.value)


def test_a_method_is_no_field(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="config.validate is unknown"):
        ExperimentConfig.from_dict({"validate": 3})


def test_other_files_are_other_cases(tiny_dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_dataset, tmp_path / "own")
    before = fingerprints(load_dataset(tmp_path / "own").cases, epath.Path(tmp_path / "cache"))
    path = tmp_path / "own" / "p1_image.nii.gz"
    volume = read_volume(path)
    volume.array[:5] += 1
    write_volume(path, volume, np.float32)
    after = fingerprints(load_dataset(tmp_path / "own").cases, epath.Path(tmp_path / "cache"))
    changed = [x for x, y in zip(before, after, strict=True) if x != y]
    assert [json.loads(line)[0] for line in changed] == [
        "p1_ce",
        "p1_crn",
    ]


def test_another_record_is_another_case(tiny_dataset: Path, tmp_path: Path) -> None:
    """Its sentences are part of what a run was told."""
    cases = load_dataset(tiny_dataset).cases
    older = [dataclasses.replace(cases[0], record={**cases[0].record, "age": 62}), *cases[1:]]
    cache = epath.Path(tmp_path / "cache")
    before, after = fingerprints(cases, cache), fingerprints(older, cache)
    assert before[0] != after[0] and before[1:] == after[1:]


def test_a_record_of_a_later_version(tmp_path: Path) -> None:
    cfg = cfg_for(tmp_path)
    document = {"config": {**dataclasses.asdict(cfg), "teleport": True}}
    (tmp_path / "run.json").write_text(json.dumps(document))
    take_a_step(tmp_path)
    with pytest.raises(errors.ConfigError, match="config.teleport is unknown"):
        load_run_config(tmp_path)
    with pytest.raises(errors.OutputExists, match="teleport"):
        open_folder(cfg)


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(errors.MissingFile, match="run.json"):
        read_record(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.NotWritable, match="--config.out="):
        open_folder(cfg_for(tmp_path / "file" / "run"))

    def refuse(*_: object, **__: object) -> None:  # root may write anywhere: imitate
        raise PermissionError(13, "Permission denied", "run")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(errors.NotWritable, match="Permission denied"):
        open_folder(cfg_for(tmp_path / "run"))


@pytest.mark.parametrize(
    ("epochs", "steps", "cases", "batch", "expected"),
    [(100, 0, 40, 4, 1000), (1, 0, 5, 4, 2), (3, 0, 1, 4, 1), (100, 7, 40, 4, 7)],
)
def test_total_steps(epochs: int, steps: int, cases: int, batch: int, expected: int) -> None:
    assert total_steps(tiny_config(epochs=epochs, steps=steps, batch_size=batch), cases) == expected
