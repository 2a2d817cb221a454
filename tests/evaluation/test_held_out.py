"""What an evaluation says beside its measures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from rtsam_jax.data.cases import Case
from rtsam_jax.data.nifti import Volume, read_volume, write_volume
from rtsam_jax.data.selection import load_run_data
from rtsam_jax.errors import ConfigError
from rtsam_jax.evaluate import check_same_cases
from rtsam_jax.evaluation.held_out import MODEL, evaluate_held_out
from rtsam_jax.metrics.case import CaseMetrics
from rtsam_jax.report.tables import read_cases
from rtsam_jax.text.prompt_set import prompt_set
from rtsam_jax.training.run import prepare_training
from tests.made_up import made_up
from tests.tiny import tiny_config


def test_unscored_cases_and_missing_dose_are_told(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = tiny_config(tiny_dataset, figures=1)
    data = load_run_data(cfg)
    first, second = data.held_out
    dose = read_volume(first.dose)
    write_volume(tmp_path / "half.nii.gz", Volume(dose.array[:30], dose.affine), np.float32)
    first = dataclasses.replace(first, dose=tmp_path / "half.nii.gz")
    second = dataclasses.replace(second, label=None)
    training, prompts = prepare_training(cfg, data), prompt_set(cfg, data)

    def nothing(image: np.ndarray, roi: np.ndarray, task: np.ndarray) -> np.ndarray:
        return np.zeros_like(image)

    def evaluate(*cases: Case) -> str:
        held_out = dataclasses.replace(data, held_out=cases)
        found = evaluate_held_out(cfg, held_out, nothing, prompts, training, tmp_path)
        assert [m.case for m in found[MODEL]] == [c.id for c in cases if c.label]
        return capsys.readouterr().out

    unscored = "Not scored, for want of a label: 1 of 2 held-out cases (p4_ce)."
    outside = (
        "Images that reach beyond their dose grid, where dose counts as 0: 1 of 1; the largest "
        "share outside: p3_orn 25.0%."
    )
    printed = evaluate(first, second)
    tables = tmp_path / "evaluation" / "test" / "tables.md"
    for text in (printed, tables.read_text()):
        assert unscored in text and outside in text
    assert "evaluated 1/1 cases" in printed
    assert "Not scored" not in evaluate(data.held_out[0])
    assert "Not scored" not in tables.read_text() and "dose grid" not in tables.read_text()
    figures = tmp_path / "evaluation" / "test" / "figures"
    assert [path.stem for path in figures.iterdir()] == ["p3_orn"]
    page = tables.with_name("report.html")
    assert "only case: p3_orn" in page.read_text() and unscored not in page.read_text()
    # Nothing to score: nothing of the evaluation before is left to be taken for this one's.
    assert "1 of 1 held-out cases (p4_ce)" in evaluate(second)
    assert "1 of 1 held-out cases (p4_ce)" in tables.read_text()
    assert "p3_orn" not in tables.read_text() and not figures.exists()
    assert "p3_orn" not in page.read_text() and unscored.replace("2", "1") in page.read_text()


def test_cases_that_were_trained_on_are_told(tiny_dataset: Path, tmp_path: Path) -> None:
    cfg = tiny_config(tiny_dataset, figures=0)
    data = load_run_data(cfg)
    training, prompts = prepare_training(cfg, data), prompt_set(cfg, data)

    def nothing(image: np.ndarray, roi: np.ndarray, task: np.ndarray) -> np.ndarray:
        return np.zeros_like(image)

    seen, doubt = [data.held_out[0].id], "whether on others cannot be told"
    evaluate_held_out(cfg, data, nothing, prompts, training, tmp_path, seen=seen, doubt=doubt)
    tables = (tmp_path / "evaluation" / "test" / "tables.md").read_text()
    assert "was trained on the images of 1 of 2 cases" in tables and f"\n{doubt}.\n" in tables


def test_measures_found_elsewhere_stand_beside(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = tiny_config(tiny_dataset, figures=0)
    data = load_run_data(cfg)
    training, prompts = prepare_training(cfg, data), prompt_set(cfg, data)
    other = [made_up(c.id, 1.0, patient=c.patient, task=c.task) for c in data.held_out]

    def nothing(image: np.ndarray, roi: np.ndarray, task: np.ndarray) -> np.ndarray:
        return np.zeros_like(image)

    found = evaluate_held_out(
        cfg, data, nothing, prompts, training, tmp_path, recorded={"run other": other}
    )
    assert "run other" not in found
    folder = tmp_path / "evaluation" / "test"
    results = json.loads((folder / "results.json").read_text())
    assert list(results["methods"])[0] == MODEL and "run other" in results["methods"]
    [dice] = [
        d for d in results["differences"]
        if (d["task"], d["other"], d["measure"]) == ("all", "run other", "dice")
    ]  # fmt: skip
    assert dice["mean"] == -1 and dice["n"] == 2
    assert read_cases(folder / "cases.csv") == found[MODEL]


def case(name: str, *, patient: str = "p", task: str = "orn", label: bool = True) -> Case:
    return Case(name, patient, task, Path("i"), Path("d"), Path("l") if label else None)


def metrics(name: str, patient: str = "p", task: str = "orn") -> CaseMetrics:
    return made_up(name, patient=patient, task=task)


def test_only_the_same_cases_are_compared() -> None:
    names = ("new", "old")
    ours = [case("b"), case("a"), case("c", label=False)]
    check_same_cases(ours, [metrics("a"), metrics("b")], names)
    for theirs, named in (
        ([metrics("a")], "1 differ: b"),
        ([metrics(name) for name in "abc"], "1 differ: c"),
        ([metrics("a"), metrics("b"), metrics("b")], "1 differ: b"),
        ([metrics("a"), metrics("b", task="ce")], "1 differ: b"),
        ([metrics("a"), metrics("b", patient="q")], "1 differ: b"),
        ([metrics(name) for name in "vwxyz"], "7 differ: a, b, v, w, ..."),
    ):
        with pytest.raises(ConfigError, match="new and old are not scored.*same cases") as caught:
            check_same_cases(ours, theirs, names)
        assert f"({named});" in str(caught.value)
