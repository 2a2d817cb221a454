"""Measures that were found earlier, and the cases as they are now."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.nifti import Volume, read_label, write_volume
from rtsam_jax.data.selection import load_run_data
from rtsam_jax.evaluation.scored_cases import ScoredCases
from rtsam_jax.report.tables import read_cases
from tests.scored_run import scored
from tests.tiny import tiny_config


@pytest.fixture
def cfg(tiny_dataset: Path, tmp_path: Path) -> ExperimentConfig:
    shutil.copytree(tiny_dataset, tmp_path / "dataset")
    return tiny_config(tmp_path / "dataset")


def now(cfg: ExperimentConfig) -> ScoredCases:
    return ScoredCases.held_out(cfg, load_run_data(cfg))


def changes(of: ScoredCases, results: Path) -> list[str]:
    return of.changed_since(results, read_cases(results / "cases.csv"))


@pytest.fixture
def results(cfg: ExperimentConfig, tmp_path: Path) -> Path:
    data = load_run_data(cfg)
    run = scored("run", data, tmp_path / "results", {"p3_orn": 0, "p4_ce": 1})
    now(cfg).keep(run.results)
    return run.results


def test_another_label_another_record_another_patient(cfg: ExperimentConfig, results: Path) -> None:
    assert changes(now(cfg), results) == []
    label = Path(cfg.data.dataset) / "p4_ce_label.nii.gz"
    volume = read_label(label)
    moved = Volume(np.roll(volume.array, 1, axis=0), volume.affine)
    write_volume(label, moved, np.uint8)
    assert changes(now(cfg), results) == ["p4_ce"]
    write_volume(label, volume, np.uint8)
    data = load_run_data(cfg)
    for change in ({"record": {"age": 91}}, {"patient": "another"}, {"id": "another"}):
        first = dataclasses.replace(data.held_out[0], **change)
        held_out = dataclasses.replace(data, held_out=(first, data.held_out[1]))
        changed = changes(ScoredCases.held_out(cfg, held_out), results)
        assert "p3_orn" in changed and ("another" in changed) == ("id" in change), change


def test_a_case_that_came_or_went_or_lost_its_label(cfg: ExperimentConfig, results: Path) -> None:
    data = load_run_data(cfg)
    first, second = data.held_out
    for held_out, changed in (
        ((first,), ["p4_ce"]),
        ((first, second, data.train[0]), [data.train[0].id]),
        ((first, dataclasses.replace(second, label=None)), ["p4_ce"]),
        ((second, first), []),
    ):
        of = ScoredCases.held_out(cfg, dataclasses.replace(data, held_out=held_out))
        assert changes(of, results) == changed


def test_without_a_record_cases_are_compared_and_a_damaged_one_vouches_for_none(
    cfg: ExperimentConfig, results: Path
) -> None:
    record = results / "scored_cases.json"
    for content in ("{", "[]", "{}"):
        record.write_text(content)
        assert changes(now(cfg), results) == ["p3_orn", "p4_ce"], content
    record.unlink()
    assert changes(now(cfg), results) == []
    data = load_run_data(cfg)
    fewer = dataclasses.replace(data, held_out=data.held_out[:1])
    assert changes(ScoredCases.held_out(cfg, fewer), results) == ["p4_ce"]
