"""Which cases a run takes, and a sentence where there is none to take."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rtsam_jax import errors
from rtsam_jax.data.selection import load_run_data
from tests.tiny import TRAIN, tiny_config


@pytest.fixture
def own(tiny_dataset: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    shutil.copytree(tiny_dataset, tmp_path / "dataset")
    return tmp_path / "dataset"


def ids(cases) -> list[str]:
    return [case.id for case in cases]


def change(root: Path, edit) -> None:
    document = json.loads((root / "dataset.json").read_text())
    edit(document["cases"])
    (root / "dataset.json").write_text(json.dumps(document))


def test_both_sides(own: Path) -> None:
    data = load_run_data(tiny_config(own))
    assert data.tasks == ("orn", "ce", "crn")
    assert data.modality == {"orn": "CT", "ce": "MR", "crn": "MR"}
    assert ids(data.train) == TRAIN and ids(data.held_out) == ["p3_orn", "p4_ce"]
    assert data.held_out_name == "test"
    assert not (own / "splits_seed0.json").exists()  # explicit ones need no file


def test_some_tasks_keep_the_datasets_order(own: Path) -> None:
    data = load_run_data(tiny_config(own, data__tasks=("ce", "orn")))
    assert data.tasks == ("orn", "ce")
    assert ids(data.train) == ["p0_orn", "p1_ce", "p2_orn"]


def test_inner_folds_cover_the_train_side(own: Path) -> None:
    held: list[str] = []
    for fold in range(3):
        cfg = tiny_config(own, data__inner_folds=3, data__inner_fold=fold, evaluate=False)
        data = load_run_data(cfg)
        assert data.held_out_name == f"inner{fold}of3"
        assert sorted(ids(data.train) + ids(data.held_out)) == sorted(TRAIN)
        patients = [{case.patient for case in side} for side in (data.train, data.held_out)]
        assert patients[0].isdisjoint(patients[1])
        held += ids(data.held_out)
    assert sorted(held) == sorted(TRAIN)


def test_an_unknown_task(own: Path) -> None:
    with pytest.raises(errors.ConfigError, match=r"\['dent'\].*\['orn', 'ce', 'crn'\]"):
        load_run_data(tiny_config(own, data__tasks=("orn", "dent")))


@pytest.mark.parametrize("field", ["train_split", "eval_split"])
def test_a_split_nobody_is_in(own: Path, field: str) -> None:
    with pytest.raises(errors.SplitError, match=r"'tset'.*\['test', 'train'\]"):
        load_run_data(tiny_config(own, **{f"data__{field}": "tset"}))


def test_without_evaluation_nothing_need_be_held_out(own: Path) -> None:
    data = load_run_data(tiny_config(own, data__eval_split="none", evaluate=False))
    assert ids(data.train) == TRAIN and data.held_out == ()


def test_a_task_that_nobody_teaches(own: Path) -> None:
    change(own, lambda cases: [c.update(task="crn") for c in cases if c["id"] == "p1_ce"])
    (own / "splits_seed0.json").unlink(missing_ok=True)
    with pytest.raises(errors.SplitError, match="task ce .* none to train on"):
        load_run_data(tiny_config(own))
    assert load_run_data(tiny_config(own, data__tasks=("orn", "crn"))).train


def test_a_training_case_without_a_label(own: Path) -> None:
    change(own, lambda cases: cases[0].pop("label"))
    with pytest.raises(errors.SplitError, match="training case p0_orn .* has no label"):
        load_run_data(tiny_config(own))


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(errors.MissingFile, match="dataset.json"):
        load_run_data(tiny_config(tmp_path / "nowhere"))


@pytest.mark.parametrize("there", [False, True])
def test_the_phantom_is_built_once(
    tmp_path: Path, there: bool, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also into an empty folder, such as a mounted volume."""
    root, calls = tmp_path / "made", []

    def build(where: Path, **options: int) -> None:
        calls.append(options)
        shutil.copytree(tiny_dataset, where, dirs_exist_ok=True)

    monkeypatch.setattr("rtsam_jax.data.phantom.build", build)
    if there:
        root.mkdir()
    cfg = tiny_config(root, data__builder="phantom", data__builder_cases=6)
    for _ in range(2):
        assert ids(load_run_data(cfg).train) == TRAIN
    assert calls == [{"seed": 0, "cases": 6}]


def test_a_dataset_that_is_there_is_used_and_said(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_run_data(tiny_config(own, data__builder="phantom", data__builder_cases=500))
    assert "6 cases, not data.builder_cases=500" in capsys.readouterr().out
    load_run_data(tiny_config(own, data__builder="phantom", data__builder_cases=6))
    load_run_data(tiny_config(own, data__builder="phantom"))
    assert capsys.readouterr().out == ""


def test_openkbp_needs_a_source(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="config.data.source"):
        load_run_data(tiny_config(tmp_path / "made", data__builder="openkbp"))
    cfg = tiny_config(tmp_path / "made", data__builder="openkbp", data__source=str(tmp_path / "no"))
    with pytest.raises(errors.MissingFile):
        load_run_data(cfg)
