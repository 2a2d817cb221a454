"""The run folder: one run, one configuration."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from rtsam_jax import errors
from rtsam_jax.evaluate import load_run_config
from rtsam_jax.training.run import open_run_folder, read_record, total_steps
from tests.tiny import tiny_config


def cfg_for(run: Path, **fields: object):
    return tiny_config(out=str(run), **fields)


def test_a_new_folder_records_what_it_is(tmp_path: Path) -> None:
    cfg = cfg_for(tmp_path / "a" / "run", loss__pass_weights=(1.0, 2.0))
    assert open_run_folder(cfg) == tmp_path / "a" / "run"
    record = json.loads((tmp_path / "a" / "run" / "run.json").read_text())
    assert record["config"]["loss"]["pass_weights"] == [1.0, 2.0]
    assert {"jax", "flax", "orbax-checkpoint"} <= record["versions"].keys()
    assert {"git_commit", "platform", "python", "devices"} <= record.keys()
    assert load_run_config(tmp_path / "a" / "run") == cfg


def test_the_same_settings_resume(tmp_path: Path) -> None:
    cfg = cfg_for(tmp_path / "run", data__tasks=("orn",), optim__milestones=(0.5,))
    open_run_folder(cfg)
    before = (tmp_path / "run" / "run.json").read_bytes()
    open_run_folder(cfg)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_moved_run_resumes(tmp_path: Path) -> None:
    open_run_folder(cfg_for(tmp_path / "old"))
    (tmp_path / "old").rename(tmp_path / "new")
    open_run_folder(cfg_for(tmp_path / "new"))


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    open_run_folder(cfg_for(tmp_path))
    with pytest.raises(errors.OutputExists) as caught:
        open_run_folder(cfg_for(tmp_path, optim__lr=0.5, seed=3, optim__milestones=(0.5,)))
    assert "(optim.lr, optim.milestones, seed)" in str(caught.value)
    assert "--config.out=" in str(caught.value)


def test_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(errors.OutputExists, match="not a run's folder"):
        open_run_folder(cfg_for(tmp_path))
    with pytest.raises(errors.OutputExists, match="not a run's folder"):
        open_run_folder(cfg_for(tmp_path / "thesis.tex"))


def test_a_kill_before_the_record_was_complete(tmp_path: Path) -> None:
    """`write_json` writes beside and renames: what a kill leaves is no obstacle."""
    (tmp_path / ".run.json.4711.part").write_text('{"config": {')
    open_run_folder(cfg_for(tmp_path))
    assert (tmp_path / "run.json").is_file()


@pytest.mark.parametrize("text", ["", '{"config": {"na', "[]", "{}", '{"config": 3}', "null"])
def test_a_damaged_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    for use in (lambda: open_run_folder(cfg_for(tmp_path)), lambda: load_run_config(tmp_path)):
        with pytest.raises(errors.UnreadableFile, match="run.json is damaged"):
            use()


def test_a_record_of_a_later_version(tmp_path: Path) -> None:
    cfg = cfg_for(tmp_path)
    document = {"config": {**dataclasses.asdict(cfg), "teleport": True}}
    (tmp_path / "run.json").write_text(json.dumps(document))
    with pytest.raises(errors.ConfigError, match="config.teleport is unknown"):
        load_run_config(tmp_path)
    with pytest.raises(errors.OutputExists, match="teleport"):
        open_run_folder(cfg)


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(errors.MissingFile, match="run.json"):
        read_record(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.NotWritable, match="--config.out="):
        open_run_folder(cfg_for(tmp_path / "file" / "run"))

    def refuse(*_: object, **__: object) -> None:  # root may write anywhere: imitate
        raise PermissionError(13, "Permission denied", "run")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(errors.NotWritable, match="Permission denied"):
        open_run_folder(cfg_for(tmp_path / "run"))


@pytest.mark.parametrize(
    ("epochs", "steps", "cases", "batch", "expected"),
    [(100, 0, 40, 4, 1000), (1, 0, 5, 4, 2), (3, 0, 1, 4, 1), (100, 7, 40, 4, 7)],
)
def test_total_steps(epochs: int, steps: int, cases: int, batch: int, expected: int) -> None:
    assert total_steps(tiny_config(epochs=epochs, steps=steps, batch_size=batch), cases) == expected
