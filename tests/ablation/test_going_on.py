"""An ablation that goes on: the runs that are there must be of the dataset as it is now."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from rtsam_jax.ablate import load_data
from rtsam_jax.ablation.plan import Plan, make_plan, seeds
from rtsam_jax.data.json_file import write_json
from rtsam_jax.data.nifti import Volume, read_label, write_volume
from rtsam_jax.data.selection import load_run_data
from rtsam_jax.errors import OutputExists
from rtsam_jax.evaluation.scored_cases import ScoredCases
from tests.scored_run import scored
from tests.tiny import tiny_config, write_config_file


@pytest.fixture
def plan(tiny_dataset: Path, tmp_path: Path) -> Plan:
    """Base and Base-T are there, scored."""
    shutil.copytree(tiny_dataset, tmp_path / "dataset")
    cfg = tiny_config(tmp_path / "dataset", prompt__task="text", steps=30)
    data = load_run_data(cfg)
    write_config_file(tmp_path / "config.py", cfg)
    given = ["--config", str(tmp_path / "config.py"), f"--config.out={tmp_path / 'out'}"]
    made = make_plan(given, ["text"], seeds([0]))
    for run in made.runs:
        scored(run.variant, data, run.cases_file.parent, {"p3_orn": 1, "p4_ce": 2})
        ScoredCases.held_out(run.cfg, data).keep(run.cases_file.parent)
        write_json(run.done_file, {"seconds": 61.0, "resumed": False})
    return made


def test_another_label_of_a_held_out_case_is_told(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtsam_jax.ablate.require_language_model", lambda cfg: None)
    assert [*load_data(plan)] == ["seed0"]
    label = tmp_path / "dataset" / "p4_ce_label.nii.gz"
    volume = read_label(label)
    write_volume(label, Volume(volume.array[::-1], volume.affine), np.uint8)
    said = (
        rf"{plan.runs[0].folder} was scored on other held-out cases .* \(p4_ce\), as one of "
        rf"{len(plan.runs)} runs; .*evaluate --run {plan.runs[0].folder}`\.$"
    )
    with pytest.raises(OutputExists, match=said):
        load_data(plan)
