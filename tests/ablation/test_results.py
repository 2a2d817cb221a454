"""Tables of made-up cases against values by hand."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import matplotlib.image
import pytest

from rtsam_jax.ablation.figures import draw_study
from rtsam_jax.ablation.plan import Plan, folds, make_plan, seeds, with_earlier
from rtsam_jax.ablation.record import (
    Record,
    make_record,
    settings,
    text,
    write_document,
    write_files,
)
from rtsam_jax.ablation.results import results_of
from rtsam_jax.ablation.runner import Failed
from rtsam_jax.ablation.tables import left_out_note
from rtsam_jax.ablation.variants import STUDIES
from rtsam_jax.data.json_file import write_json
from rtsam_jax.data.selection import RunData, load_run_data
from rtsam_jax.errors import UnreadableFile
from rtsam_jax.metrics.case import CaseMetrics
from rtsam_jax.report import canvas
from rtsam_jax.report.tables import case_rows, write_csv
from tests.tiny import tiny_config, write_config_file

# By variant and seed: Dice of patient p's two cases (orn, ce) and of patient q's one (orn).
DICE = {
    "base": {"seed0": (0.2, 0.4, 0.6), "seed1": (0.4, 0.6, 0.8)},
    "base-t": {"seed0": (0.3, 0.6, 0.6), "seed1": (0.5, 0.8, 0.7)},
}
CASES = (("1", "p", "orn"), ("2", "p", "ce"), ("3", "q", "orn"))


def measured(case: str, patient: str, task: str, dice: float, **fields: object) -> CaseMetrics:
    values: dict[str, object] = {
        "iou": dice / (2 - dice),
        "precision": dice,
        "recall": dice,
        "hd95_mm": 10 * (1 - dice),
        "assd_mm": 1 - dice,
        "volume_pred_ml": 1.0,
        "volume_truth_ml": 2.0,
        "both_empty": False,
        "missed": False,
        "diagonal_mm": 100.0,
        "masd_mm": 1 - dice,
        "nsd_1mm": dice,
        "nsd_2mm": dice,
        "lesions_truth": 1,
        "lesions_pred": 1,
        "lesions_found": 1,
        "lesions_right": 1,
        "structures_ml": {},
    }
    return CaseMetrics(case=case, patient=patient, task=task, dice=dice, **(values | fields))


def scores(variant: str) -> dict[str, list[CaseMetrics]]:
    return {
        seed: [measured(*case, value) for case, value in zip(CASES, dice, strict=True)]
        for seed, dice in DICE[variant].items()
    }


def text_study():
    found = results_of(STUDIES["text"], {name: scores(name) for name in DICE})
    return {(result.variant.name, result.task): result for result in found}


def test_means_are_over_cases_and_runs_and_deviations_over_runs() -> None:
    dice = text_study()["base", "all"].estimates["dice"]
    assert dice.mean == pytest.approx(3.0 / 6)
    assert dice.of_runs == pytest.approx((0.4, 0.6))
    assert dice.std == pytest.approx(math.sqrt(2 * 0.1**2))
    orn = text_study()["base", "orn"].estimates["dice"]
    assert orn.mean == pytest.approx(0.5) and orn.of_runs == pytest.approx((0.4, 0.6))
    assert text_study()["base", "ce"].estimates["hd95_mm"].mean == pytest.approx(5.0)


def test_intervals_draw_patients_with_all_their_cases_and_runs() -> None:
    """Of two patients a sample holds one twice or both: p's mean 0.4 over 4, q's 0.7 over 2."""
    dice = text_study()["base", "all"].estimates["dice"]
    assert (dice.low, dice.high) == pytest.approx((0.4, 0.7))


def test_differences_are_paired_by_case_and_run() -> None:
    result = text_study()["base-t", "all"]
    change = result.differences["dice"]
    assert change.mean == pytest.approx((0.1 + 0.2 + 0.0 + 0.1 + 0.2 - 0.1) / 6)
    assert (change.low, change.high) == pytest.approx((-0.05, 0.15))  # q alone, p alone
    assert text_study()["base", "all"].differences == {}


def test_a_missing_run_is_left_out_on_both_sides() -> None:
    both = {name: scores(name) for name in DICE}
    del both["base"]["seed1"]
    found = results_of(STUDIES["text"], both)
    (change,) = [r.differences["dice"] for r in found if r.task == "all" and r.differences]
    assert change.mean == pytest.approx((0.1 + 0.2 + 0.0) / 3)
    (base,) = [r for r in found if r.task == "all" and not r.differences]
    assert base.runs == ("seed0",) and math.isnan(base.estimates["dice"].std)


def test_a_miss_counts_with_its_diagonal() -> None:
    far = {"hd95_mm": math.inf, "assd_mm": math.inf, "missed": True}
    own = {"seed0": [measured(*CASES[0], 0.0, **far), measured(*CASES[2], 0.5)]}
    found = results_of(STUDIES["text"], {"base": own, "base-t": {}})
    (whole,) = [result for result in found if result.task == "all"]
    assert (whole.missed, whole.scored) == (1, 2)
    assert whole.estimates["hd95_mm"].mean == pytest.approx((100 + 5) / 2)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Plan:
    """Two of the components' variants look trained and scored, with the values above."""
    place = tmp_path_factory.mktemp("made-up")
    cfg = tiny_config(tiny_dataset, prompt__task="text", prompt__language_model="lm")
    file = write_config_file(place / "config.py", cfg)
    arguments = ["--config", str(file), f"--config.out={place / 'out'}"]
    plan = make_plan(arguments, ["components", "text", "tau"], seeds([0, 1]))
    for run in plan.runs:
        if run.variant in DICE:
            cases = scores(run.variant)[run.replicate.name]
            write_csv(case_rows(cases), run.cases_file)
            write_json(run.done_file, {"seconds": 61.0, "resumed": False})
            about = {"devices": ["cpu:0"], "python": "3", "versions": {"jax": "1"}}
            write_json(run.folder / "run.json", {"config": {}, **about})
    return plan


def data_of(plan: Plan) -> dict[str, RunData]:
    """By replicate; a fold of so few cases need not teach every task that it scores."""
    runs = {run.replicate.name: run for run in plan.runs}
    return {
        name: load_run_data(dataclasses.replace(run.cfg, evaluate=False))
        for name, run in runs.items()
    }


@pytest.fixture(scope="module")
def record(plan: Plan) -> Record:
    failed = [Failed(next(run for run in plan.runs if run.variant == "base-id"), "out of luck")]
    return make_record(["--config", "c.py"], plan, data_of(plan), failed)


def test_the_tables_say_what_was_measured_and_what_is_not_there(record: Record) -> None:
    lines = [" ".join(line.split()) for line in text(record).splitlines()]
    assert (
        "| Base | 2 | 3 | 0 of 6 | 0.500 ± 0.141 [0.400, 0.700] | 0.356 ± 0.131 | 0.500 ± 0.141 "
        "| 0.500 ± 0.141 | 5.00 ± 1.41 | 0.50 ± 0.14 |"
    ) in lines
    assert "| Base-T-B | 0 of 2 | - | - | - | - | - | - | - | - |" in lines
    difference = next(line for line in lines if line.startswith("| all | Base-T | Base |"))
    assert "+0.083 [-0.050, +0.150] | -0.83 [-1.50, +0.50]" in difference
    whole = "\n".join(lines)
    assert "tiny (synthetic), tasks orn, ce, crn" in whole
    assert "each variant as seed0, seed1" in whole and "1:01 (median, 0:01:01 at most" in whole
    assert "Failed: base-id/seed0." in whole
    assert "4 training cases, 2 held out (2 patients, test). Synthetic" in whole
    assert "cores, a run's share of which was not recorded; Python" in whole
    assert "pretraining" not in whole and "earlier commands" not in whole


def test_pairs_that_a_distance_leaves_out_are_told() -> None:
    """One case has no lesion: the row leaves it empty, the other one does not."""
    study = STUDIES["text"]
    empty = {"hd95_mm": math.nan, "both_empty": True}
    mine = [measured("1", "p", "orn", 0.6), measured("2", "q", "orn", 1.0, **empty)]
    theirs = [measured("1", "p", "orn", 0.5), measured("2", "q", "orn", 0.0, missed=True)]
    results = results_of(study, {"base": {"seed0": theirs}, "base-t": {"seed0": mine}})
    whole = results[-1].differences
    assert (whole["dice"].left_out, whole["hd95_mm"].left_out) == (0, 1)
    assert "leave out pairs of cases: Base-T 1. Dice counts these." in left_out_note(results)
    scores = {"base": {"seed0": theirs[:1]}, "base-t": {"seed0": mine[:1]}}
    assert left_out_note(results_of(study, scores)) == ""


def test_the_cores_that_runs_had_are_said(plan: Plan, record: Record) -> None:
    done = [run for run in plan.runs if run.done]
    before = [run.done_file.read_text() for run in done]
    try:
        for each, share in zip(done, (1, 2, 1, 1), strict=True):
            write_json(each.done_file, {"seconds": 61.0, "resumed": False, "cores": share})
        assert ", 1 to 2 cores a run; Python" in settings(record)
        for each in done:
            write_json(each.done_file, {"seconds": 61.0, "resumed": False, "cores": 1})
        assert ", 1 core a run; Python" in settings(record)
    finally:
        for each, content in zip(done, before, strict=True):
            each.done_file.write_text(content)


def test_folds_are_described_together(plan: Plan, tmp_path: Path) -> None:
    arguments = [*plan.runs[0].arguments[:2], f"--config.out={tmp_path / 'out'}"]
    folded = make_plan(arguments, ["text"], folds(2))
    record = make_record([], folded, data_of(folded), [])
    sides = [(len(data.train), len(data.held_out)) for data in record.data.values()]
    assert sides == [(1, 3), (3, 1)]
    said = "1 to 3 training cases a run, 4 held out over all runs (3 patients, inner0of2, inner1of2"
    assert said in settings(record)


def test_what_all_runs_start_from_is_said(plan: Plan, tmp_path: Path) -> None:
    arguments = [*plan.runs[0].arguments[:2], f"--config.out={tmp_path / 'out'}"]
    for replicates, whose in ((seeds([0, 1]), "that all share"), (folds(2), "of its own")):
        started = make_plan(arguments, ["text"], replicates, pretrain_steps=7)
        write_json(started.pretraining[0].done_file, {"seconds": 83.0, "resumed": False})
        said = settings(make_record([], started, data_of(started), []))
        assert f"starts from a pretraining {whose}: 7 steps (0:01:23) on the same" in said


def test_the_files_hold_the_same_numbers(record: Record, plan: Plan) -> None:
    pictures = write_files(record)
    with (plan.out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    (row,) = [
        row
        for row in rows
        if (row["study"], row["variant"], row["task"], row["measure"])
        == ("components", "base-t", "all", "dice")
    ]
    assert float(row["mean"]) == pytest.approx(3.5 / 6) and row["runs"] == "2"
    assert (row["against"], float(row["difference"])) == ("base", pytest.approx(0.5 / 6))
    content = json.loads((plan.out / "results.json").read_text())
    found = next(r for r in content["results"] if r["variant"]["name"] == "base-t")
    assert found["variant"]["changes"]["prompt.task"] == "text"
    assert content["failed"] == [{"run": "base-id/seed0", "reason": "out of luck"}]
    latex = (plan.out / "results.tex").read_text()
    assert latex.count(r"\begin{table}") == 3 and "tab:ablation-components" in latex
    assert text(record) in (plan.out / "results.md").read_text()
    assert [path.stem for path in pictures] == ["table2", "fig6", "fig7"]  # no run at any tau
    for path in pictures:
        pixels = matplotlib.image.imread(path)
        assert min(pixels.shape[:2]) > 200 and pixels.std() > 0.01


def test_a_document_gets_tables_and_pictures_between_its_marks(
    record: Record, tmp_path: Path
) -> None:
    document = tmp_path / "results.md"
    document.write_text("before\n<!-- ablation x -->\n<!-- end of ablation x -->\nafter\n")
    pictures = write_files(record)
    for _ in range(2):
        write_document(record, document, "x", pictures)
    said = document.read_text()
    assert said.startswith("before\n") and said.endswith("after\n")
    assert said.count("**Components (Table 2).**") == 1
    assert "](images/ablation_x_fig7.png)" in said  # of a phantom
    assert {path.name for path in (tmp_path / "images").iterdir()} == {
        f"ablation_x_{picture.name}" for picture in pictures
    }
    with pytest.raises(UnreadableFile, match="<!-- ablation y -->"):
        write_document(record, document, "y", pictures)


def test_a_patients_masks_do_not_go_into_a_document(record: Record, tmp_path: Path) -> None:
    dataset = dataclasses.replace(record.dataset, kind="surrogate")
    data = {n: dataclasses.replace(of, dataset=dataset) for n, of in record.data.items()}
    real = dataclasses.replace(record, data=data)
    pictures = write_files(real)
    assert "fig7" in [picture.stem for picture in pictures]
    write_document(real, tmp_path / "results.md", "x", pictures)
    assert "fig7" not in (tmp_path / "results.md").read_text()
    assert not (tmp_path / "images" / "ablation_x_fig7.png").exists()


def test_a_damaged_note_of_a_runs_end_is_named(plan: Plan, record: Record) -> None:
    run = next(run for run in plan.runs if run.done)
    before = run.done_file.read_text()
    run.done_file.write_text("{}")
    try:
        with pytest.raises(UnreadableFile, match=f"{run.done_file} is damaged"):
            text(record)
    finally:
        run.done_file.write_text(before)


def test_no_study_stands_alone_beside_what_earlier_commands_left(
    plan: Plan, record: Record
) -> None:
    """Those that have runs are in the tables again; of others no picture or page stays."""
    write_files(record)
    arguments = [*plan.runs[0].arguments[:2], f"--config.out={plan.out}"]
    for numbers, earlier in (([0, 1], ("components", "text")), ([7], ())):
        asked, whole = (
            make_plan(arguments, names, seeds(numbers)) for names in (["loss"], STUDIES)
        )
        shown = with_earlier(asked, whole)
        assert shown.earlier == earlier
        assert [study.name for study in shown.studies] == [*earlier, "loss"]
        write_files(make_record([], shown, data_of(shown), []))
        for name in ("components", "text", "tau"):
            assert (plan.out / "studies" / name / "report.html").is_file() == (name in earlier)
            picture = plan.out / "figures" / f"{STUDIES[name].figure}.png"
            assert picture.is_file() == (name in earlier)
        assert not (plan.out / "figures" / "fig7.png").exists()
        with (plan.out / "results.csv").open() as file:
            assert {row["study"] for row in csv.DictReader(file)} == set(earlier)
        said = (plan.out / "results.md").read_text()
        assert ("Of earlier commands in this folder: components, text." in said) == bool(earlier)


@pytest.mark.parametrize(("far", "scale"), [(40.0, "linear"), (400.0, "symlog")])
def test_a_row_that_failed_does_not_squeeze_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, far: float, scale: str
) -> None:
    kept: list = []
    monkeypatch.setattr(canvas, "save", lambda figure, out: kept.append(figure))
    rows = {
        name: {"seed0": [measured(*case, 0.5, hd95_mm=mm) for case in CASES]}
        for name, mm in (("base", 7.0), ("base-t", 8.0), ("base-id", 9.0), ("base-t-b", far))
    }
    study = STUDIES["components"]
    scores_of = {variant.name: rows.get(variant.name, {}) for variant in study.variants}
    assert draw_study(study, results_of(study, scores_of), "tiny", tmp_path / "x.png")
    dice, hd95 = kept[0].axes
    assert (dice.get_xscale(), hd95.get_xscale()) == ("linear", scale)
    assert hd95.get_xlim()[1] > 1.02 * far
