"""Nobody is scored on an image that the model, or what it started from, was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rtsam_jax import errors
from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.cases import load_dataset
from rtsam_jax.training.seen import read_seen, require_unseen, write_seen
from tests.tiny import tiny_config


def a_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps({"kind": "run"}))
    return folder


def starting(dataset: Path, tmp_path: Path, run: Path | None = None) -> ExperimentConfig:
    cfg = tiny_config(dataset, data__cache=str(tmp_path / "cache"))
    cfg.model.checkpoint = "" if run is None else str(run)
    return cfg


def test_a_run_has_seen_its_images_and_those_of_what_it_started_from(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    of_patient = {case.patient: case for case in load_dataset(tiny_dataset).cases}
    first, second, third, *_ = of_patient.values()
    parent, child = a_run(tmp_path / "parent"), a_run(tmp_path / "child")
    write_seen(parent, starting(tiny_dataset, tmp_path), [first])
    write_seen(child, starting(tiny_dataset, tmp_path, parent), [second])
    known = [read_seen(run) for run in (parent, child)]
    assert [(len(seen.images), seen.doubt) for seen in known] == [(1, ""), (2, "")]
    require_unseen(starting(tiny_dataset, tmp_path, parent), [second, third])
    require_unseen(starting(tiny_dataset, tmp_path, child), [third])
    require_unseen(starting(tiny_dataset, tmp_path), [first])  # from scratch
    for run, case in ((parent, first), (child, first), (child, second)):
        with pytest.raises(errors.ConfigError, match=rf"1 of the 2 cases .*\({case.id}\)"):
            require_unseen(starting(tiny_dataset, tmp_path, run), [case, third])


def test_what_a_start_has_seen_may_not_be_known(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases, run = load_dataset(tiny_dataset).cases, a_run(tmp_path / "run")
    cfg = starting(tiny_dataset, tmp_path, run)
    require_unseen(cfg, cases[:1])
    assert "run has no complete train_images.txt: whether it, or a" in capsys.readouterr().out
    require_unseen(cfg, [])
    assert not capsys.readouterr().out
    for content in ("0123\n", "", "incomplete\n"):
        (run / "train_images.txt").write_text(content)
        with pytest.raises(errors.UnreadableFile, match=r"train_images\.txt is damaged; bring it"):
            require_unseen(cfg, cases[:1])


def test_a_list_without_that_of_an_ancestor_says_so(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_patient = {case.patient: case for case in load_dataset(tiny_dataset).cases}
    first, second, third, *_ = of_patient.values()
    runs = [a_run(tmp_path / name) for name in ("parent", "child", "grandchild")]
    for start, run, case in ((runs[0], runs[1], first), (runs[1], runs[2], second)):
        write_seen(run, starting(tiny_dataset, tmp_path, start), [case])
    require_unseen(starting(tiny_dataset, tmp_path, runs[2]), [third])
    said = capsys.readouterr().out
    assert "grandchild has no complete train_images.txt" in said and "cannot be told" in said
    with pytest.raises(errors.ConfigError, match=rf"2 of the 2 cases .*\({first.id}, {second.id}"):
        require_unseen(starting(tiny_dataset, tmp_path, runs[2]), [first, second])
