"""The pictures of cases that an ablation draws of what its runs kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from rtsam_jax.ablation.pictures import draw_variants
from rtsam_jax.ablation.plan import Plan, make_plan, seeds
from rtsam_jax.ablation.record import make_record, write_document, write_files
from rtsam_jax.ablation.variants import STUDIES
from rtsam_jax.data.json_file import write_json
from rtsam_jax.data.selection import RunData, load_run_data
from rtsam_jax.evaluation.kept_masks import mask_file
from tests.scored_run import scored
from tests.tiny import tiny_config, write_config_file

SHIFT = {
    "base": {"p3_orn": 2, "p4_ce": 2},
    "base-t": {"p3_orn": 1, "p4_ce": 2},
    "base-t-b-c-l": {"p3_orn": 1, "p4_ce": 0},
}


@pytest.fixture
def data(tiny_dataset: Path) -> RunData:
    return load_run_data(tiny_config(tiny_dataset))


@pytest.fixture
def plan(data: RunData, tmp_path: Path) -> Plan:
    """Three of Table 2's rows are there, for the first of two seeds."""
    cfg = tiny_config(data.dataset.root, prompt__task="text", steps=30)
    write_config_file(tmp_path / "config.py", cfg)
    given = ["--config", str(tmp_path / "config.py"), f"--config.out={tmp_path / 'out'}"]
    made = make_plan(given, ["components"], seeds([0, 1]))
    for run in made.runs:
        if run.variant in SHIFT and run.replicate.name == "seed0":
            scored(run.variant, data, run.cases_file.parent, SHIFT[run.variant])
            write_json(run.done_file, {"seconds": 61.0, "resumed": False})
            about = {"devices": ["cpu"], "python": "3", "versions": {"jax": "0"}}
            write_json(run.folder / "run.json", {"config": {}, **about})
    return made


def test_the_variants_stand_side_by_side_on_the_last_ones_cases(
    plan: Plan, data: RunData, tmp_path: Path
) -> None:
    record = make_record([], plan, {"seed0": data, "seed1": data}, [])
    study, scores = STUDIES["components"], record.scores["components"]
    pictures, said = draw_variants(plan, study, scores, data, tmp_path / "figures")
    absent = (
        "Not shown side by side, since seed0 is not there: Base, plain task id; Base-T-B; "
        "Base-T-B, crop without dose; Base-T-B-C."
    )
    assert said == absent
    assert [picture.title for picture in pictures] == [
        "best of Base-T-B-C-L: p4_ce",
        "worst of Base-T-B-C-L: p3_orn",
    ]
    (old,) = (run for run in plan.runs if (run.variant, run.replicate.name) == ("base", "seed0"))
    mask_file(old.cases_file.parent, "p4_ce").unlink()
    pictures, said = draw_variants(plan, study, scores, data, tmp_path / "figures")
    assert len(pictures) == 2 and "kept none): Base;" in said and said.endswith(absent)


@pytest.mark.parametrize("kind", ["synthetic", "surrogate"])
def test_figure_5_is_drawn_and_published_of_phantoms_alone(
    plan: Plan, data: RunData, tmp_path: Path, kind: str
) -> None:
    data = dataclasses.replace(data, dataset=dataclasses.replace(data.dataset, kind=kind))
    record = make_record([], plan, {"seed0": data, "seed1": data}, [])
    pictures = write_files(record)
    assert [path.stem for path in pictures] == ["table2", "fig5"]
    page = (plan.page(STUDIES["components"]) / "report.html").read_text()
    assert "best of Base-T-B-C-L: p4_ce" in page
    document = tmp_path / "results.md"
    write_document(record, document, "x", pictures)
    assert ("fig5" in document.read_text()) == (kind == "synthetic")
    assert (tmp_path / "images" / "ablation_x_fig5.png").exists() == (kind == "synthetic")
