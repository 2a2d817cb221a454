"""`python -m rtsam_jax.baselines`: what it leaves, what it says where something is wrong."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest

from rtsam_jax import baselines
from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.cache import cache_root
from rtsam_jax.data.fingerprints import fingerprints
from rtsam_jax.data.nifti import read_label
from rtsam_jax.data.selection import RunData, load_run_data
from rtsam_jax.errors import (
    ConfigError,
    ExtraMissing,
    MissingFile,
    NotWritable,
    OutputExists,
    RunsFailed,
    UnreadableFile,
)
from rtsam_jax.evaluation.kept_masks import mask_file
from rtsam_jax.evaluation.scored_cases import ScoredCases
from rtsam_jax.report.tables import read_cases
from rtsam_jax.rivals.ours import OurRun, read_ours
from rtsam_jax.rivals.run import RivalOptions, RivalRun, run_rival
from rtsam_jax.rivals.table import Comparison
from rtsam_jax.training.run import prepare_training
from tests.rivals import needs
from tests.tiny import run_module, tiny_config, write_config_file

torch = needs.torch()
grain.config.update("py_debug_mode", False)

NAMES = ("segresnet", "dynunet")
OPTIONS = ["--model", *NAMES, "--width", "0.01", "--out", "out"]
ALONE = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """A folder with a config, two small rivals in `out`, and a run to stand for ours."""
    folder = tmp_path_factory.mktemp("baselines")
    write_config_file(folder / "config.py", tiny_config(tiny_dataset, steps=2, log_every=2))
    first = run_module("baselines", "--config", "config.py", *OPTIONS, cwd=folder, **ALONE)
    assert first.returncode == 0, first.stderr[-3000:]
    # Its folder has what is read of a run of ours: the config and the measures.
    shutil.copytree(folder / "out" / "segresnet" / "seed0", folder / "ours")
    (folder / "first.txt").write_text(first.stdout)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_what_every_rival_leaves(place: Path) -> None:
    for name in NAMES:
        run = place / "out" / name / "seed0"
        recorded = json.loads((run / "rival.json").read_text())
        assert recorded == {
            "model": name,
            "tasks": ["orn", "ce", "crn"],
            "width": 0.01,
            "roi_channel": False,
            "loss": "dice_ce",
        }
        assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
        assert (run / "figures" / "curves.png").stat().st_size > 1000
        cases = read_cases(run / "evaluation" / "test" / "cases.csv")
        assert [(m.case, m.task) for m in cases] == [("p3_orn", "orn"), ("p4_ce", "ce")]


def test_the_masks_that_are_kept_are_those_that_were_scored(
    place: Path, tiny_dataset: Path
) -> None:
    for case in load_run_data(tiny_config(tiny_dataset)).held_out:
        for name in NAMES:
            results = place / "out" / name / "seed0" / "evaluation" / "test"
            mask, truth = read_label(mask_file(results, case.id)), read_label(case.label)
            assert np.allclose(mask.affine, truth.affine)
            (found,) = [m for m in read_cases(results / "cases.csv") if m.case == case.id]
            volume = abs(np.linalg.det(truth.affine[:3, :3])) / 1000
            assert found.volume_pred_ml == pytest.approx(mask.array.sum() * volume)
            both = mask.array.sum() + truth.array.sum()
            assert found.dice == pytest.approx(2 * (mask.array & truth.array).sum() / both)


def test_a_rival_without_a_mask_is_scored_again(place: Path, tmp_path: Path) -> None:
    """As those of earlier versions are, which kept none."""
    folder = tmp_path / "seed0"
    shutil.copytree(place / "out" / "segresnet" / "seed0", folder)
    cfg = ExperimentConfig.from_dict(json.loads((folder / "run.json").read_text())["config"])
    cfg.out, cfg.figures = str(folder), 2
    data = load_run_data(cfg)
    training, prints = prepare_training(cfg, data), fingerprints(data.train, cache_root(cfg))
    results = folder / "evaluation" / "test"
    before = (results / "cases.csv").read_bytes()
    mask_file(results, "p4_ce").unlink()
    now, options = ScoredCases.held_out(cfg, data), RivalOptions(width=0.01)
    for _ in range(2):
        run_rival("segresnet", cfg, options, data, training, train_cases=prints, held_out=now)
        assert mask_file(results, "p4_ce").is_file()
        assert (results / "cases.csv").read_bytes() == before
        assert sorted(p.stem for p in (results / "figures").iterdir()) == ["p3_orn", "p4_ce"]
        assert (results / "report.html").read_text().count("<figure>") == 4 + 2 + 1  # and curves


def test_a_rival_is_scored_again_where_cases_changed_or_it_began_anew(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "seed0"
    shutil.copytree(place / "out" / "segresnet" / "seed0", folder)
    cfg = ExperimentConfig.from_dict(json.loads((folder / "run.json").read_text())["config"])
    cfg.out = str(folder)
    data = load_run_data(cfg)
    training, prints = prepare_training(cfg, data), fingerprints(data.train, cache_root(cfg))
    now, options = ScoredCases.held_out(cfg, data), RivalOptions(width=0.01)

    def said(held_out: ScoredCases) -> str:
        run_rival("segresnet", cfg, options, data, training, train_cases=prints, held_out=held_out)
        return capsys.readouterr().out

    assert "scored before" in said(now)
    moved = dataclasses.replace(now, digests={**now.digests, "p3_orn": "another label's"})
    again = said(moved)
    assert "scored again, since p3_orn changed" in again and "scored 2/2 cases" in again
    assert "scored before" in said(moved)
    for left in ("checkpoint.pt", "metrics.jsonl"):
        (folder / left).unlink()
    cfg.optim.lr = 0.5
    anew = said(moved)
    assert "step 2/2" in anew and "scored 2/2 cases" in anew and "scored before" not in anew


def test_the_tables_beside_ours(place: Path) -> None:
    asked = ["--ours", "ours", "--markdown", "doc.md", "--section", "tiny"]
    found = run_module("baselines", "--config", "config.py", *OPTIONS, *asked, cwd=place, **ALONE)
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.count("scored before") == 2 and "step 2/2" not in found.stdout
    models = {row["Model"]: row for row in rows(place / "out" / "results" / "models.csv")}
    assert list(models) == ["ours", "SegResNet", "DynUNet"]
    assert models["ours"]["Sees"] == "image, task, dose box"
    assert models["DynUNet"]["Sees"] == "image, task"
    assert float(models["DynUNet"]["Parameters (M)"]) > 0.001
    differences = json.loads((place / "out" / "results" / "results.json").read_text())
    wanted = {"other": "SegResNet", "measure": "dice", "task": "all"}
    (to_itself,) = [d for d in differences["differences"] if wanted.items() <= d.items()]
    assert to_itself["mean"] == to_itself["low"] == to_itself["high"] == 0 and to_itself["n"] == 2
    figures = place / "out" / "results" / "figures"
    assert sorted(path.stem for path in figures.iterdir()) == ["best", "fig4", "worst"]
    page = (place / "out" / "results" / "report.html").read_text()
    assert "Training curves, DynUNet" in page and "best of ours: " in page
    copied = place / "images" / "baselines_tiny_fig4.png"
    assert copied.read_bytes() == (figures / "fig4.png").read_bytes()
    document = (place / "doc.md").read_text()
    assert "](images/baselines_tiny_fig4.png)" in document
    assert document.startswith("<!-- baselines tiny -->")
    assert document.rstrip().endswith("<!-- end of baselines tiny -->")
    for text in (
        "python -m rtsam_jax.baselines --config config.py",
        "tiny, split test (synthetic)",
        "DynUNet",
    ):
        assert text in document


def test_another_network_in_the_same_folder_is_refused(place: Path) -> None:
    folder = place / "out" / "segresnet" / "seed0"
    cfg = ExperimentConfig.from_dict(json.loads((folder / "run.json").read_text())["config"])
    cfg.out = str(folder)
    data = load_run_data(cfg)
    training, prints = prepare_training(cfg, data), fingerprints(data.train, cache_root(cfg))
    now = ScoredCases.held_out(cfg, data)
    for options, field in (
        (RivalOptions(width=0.5), "width"),
        (RivalOptions(width=0.01, roi_channel=True), "roi_channel"),
        (RivalOptions(width=0.01, loss="ours"), "loss"),
    ):
        with pytest.raises(OutputExists, match=f"another {field}; give another folder with --out"):
            run_rival("segresnet", cfg, options, data, training, train_cases=prints, held_out=now)
    cfg.optim.lr = 0.5
    with pytest.raises(OutputExists, match=r"\(optim.lr\); give another folder with --out FOLDER,"):
        run_rival("segresnet", cfg, options, data, training, train_cases=prints, held_out=now)


def arguments(*given: str) -> Any:
    return baselines.parser().parse_args(given)


def test_a_rival_that_fails_is_named_and_the_others_go_on(
    place: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = read_cases(place / "ours" / "evaluation" / "test" / "cases.csv")

    def stand_in(name: str, cfg: Any, *_: Any, **__: Any) -> RivalRun:
        if name == "vnet":
            raise RuntimeError("out of\nmemory")
        title = baselines.ARCHITECTURES[name].title
        return RivalRun(title, cfg.seed, Path(cfg.out), done, 10, 2, 60.0, "cpu")

    monkeypatch.setattr(baselines, "run_rival", stand_in)
    cfg = tiny_config(tiny_dataset)
    given = arguments("--model", "vnet", "unetr", "--out", str(tmp_path), "--seeds", "0", "1")
    with pytest.raises(RunsFailed, match="2 of 4 runs failed"):
        baselines.run(cfg, given, "the command")
    written = capsys.readouterr()
    named = "VNet, seed 0, failed (RuntimeError): out of memory"
    assert f"error: {named}" in written.err and "VNet, seed 1, failed" in written.err
    models = rows(tmp_path / "results" / "models.csv")
    assert [row["Model"] for row in models] == ["UNETR"]
    assert named in (tmp_path / "results" / "tables.md").read_text()
    assert models[0]["Seeds"] == "2" and models[0]["Training (min)"] == "1.0"


def comparison(place: Path, data: RunData, seeds: list[int], **changes: Any) -> Comparison:
    cases = read_cases(place / "ours" / "evaluation" / "test" / "cases.csv")
    cfg = tiny_config(data.dataset.root, steps=2)
    ours = [OurRun(place / "ours", dataclasses.replace(cfg, **changes), cases) for _ in seeds]
    runs = [RivalRun("VNet", seed, place / "ours", cases, 10, 2, 60.0, "cpu") for seed in seeds]
    return Comparison(cfg, RivalOptions(roi_channel=True), data, seeds, ours, {"VNet": runs}, [])


def test_several_seeds_stand_side_by_side(place: Path, tiny_dataset: Path) -> None:
    data = load_run_data(tiny_config(tiny_dataset))
    found = comparison(place, data, [3, 5])
    for cases in found.methods.values():
        names = [m.case for m in cases]
        assert names == [f"{c} (seed {s})" for s in (3, 5) for c in ("p3_orn", "p4_ce")]
        assert {m.patient for m in cases} == {"p3", "p4"}
    table = found.by_seed()
    assert table is not None and table.header[1:] == (
        "Dice, seed 3",
        "Dice, seed 5",
        "Std over seeds",
    )
    mean = sum(case.dice for case in found.ours[0].cases) / len(found.ours[0].cases)
    assert [row[0] for row in table.rows] == ["ours", "VNet"]
    assert table.rows[0][1:] == (pytest.approx(mean), pytest.approx(mean), 0)
    assert comparison(place, data, [3]).by_seed() is None
    assert any("seeds 3, 5" in note and "by patient" in note for note in found.notes())
    assert found.models().rows[1][1] == "image, task, ROI"


def test_what_ours_was_trained_with_otherwise_is_told(place: Path, tiny_dataset: Path) -> None:
    data = load_run_data(tiny_config(tiny_dataset))
    assert not any("was not trained" in note for note in comparison(place, data, [0]).notes())
    notes = comparison(place, data, [0], steps=9, log_every=7).notes()
    (told,) = [note for note in notes if "was not trained" in note]
    assert "steps (9, rivals 2)" in told and "log_every" not in told


@pytest.mark.parametrize(("steps", "otherwise"), [(6, False), (5, True)])
def test_the_training_that_ours_starts_from_is_told_and_counted(
    place: Path, tiny_dataset: Path, tmp_path: Path, steps: int, otherwise: bool
) -> None:
    """In the column of steps, in a note, and where steps are compared with the rivals'."""
    weights, first, second = tmp_path / "weights", tmp_path / "first", tmp_path / "second"
    for folder, start in ((first, weights), (second, first)):
        record = json.loads((place / "ours" / "run.json").read_text())
        record["config"]["model"]["checkpoint"] = str(start)
        if folder is first:
            record["train_cases"] = "others"
        (folder / "checkpoints" / "2").mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "model.json").write_text('{"kind": "run"}')
    (second / "time.json").write_text('{"seconds": 90}')
    data = load_run_data(tiny_config(tiny_dataset))
    model = dataclasses.replace(tiny_config().model, checkpoint=str(second), freeze_encoder=True)
    found = comparison(place, data, [0], steps=steps - 4, model=model)
    found.cfg.steps = 6
    header, ours = found.models().header, found.models().rows[0]
    row = dict(zip(header, ours, strict=True))
    assert row["Steps"] == f"2 + 2 + {steps - 4}"
    assert str(row["Training (min)"]).startswith("? + 1.5 + ")
    (told,) = [note for note in found.notes() if "starts from" in note]
    assert f"{weights} (weights from elsewhere), then {first} (2 steps on other cases)" in told
    assert f"{second} (2 steps on the same training cases), and keeps its image" in told
    told_otherwise = [note for note in found.notes() if "was not trained as" in note]
    assert bool(told_otherwise) == otherwise
    assert not otherwise or "steps (2 + 2 + 1, rivals 6)" in told_otherwise[0]


def test_a_run_of_an_earlier_version_stands_in_the_table(
    place: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    """Its record does not say what it was trained on, so nothing is said of it."""
    start, run = tmp_path / "start", tmp_path / "run"
    for folder in (start, run):
        record = json.loads((place / "ours" / "run.json").read_text())
        del record["train_cases"]
        (folder / "checkpoints" / "2").mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "model.json").write_text('{"kind": "run"}')
    cfg = tiny_config(tiny_dataset)
    cfg.model.checkpoint = str(start)
    assert [(of.steps, of.same_cases) for of in OurRun(run, cfg, ()).starts] == [(2, None)]
    found = comparison(place, load_run_data(cfg), [0], model=cfg.model)
    assert any(f"starts from {start} (2 steps);" in note for note in found.notes())


def test_ours_must_be_scored_on_the_same_cases_and_seeds(
    place: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    cfg = tiny_config(tiny_dataset)
    data = load_run_data(cfg)
    now = ScoredCases.held_out(cfg, data)
    assert [run.folder for run in read_ours([place / "ours"], data, [0], now)] == [place / "ours"]
    assert read_ours([], data, [0, 1], now) == []
    with pytest.raises(ConfigError, match=r"config.seed \[0\], but --seeds is \[0, 1\]"):
        read_ours([place / "ours"], data, [0, 1], now)
    fewer = dataclasses.replace(data, held_out=data.held_out[:1])
    with pytest.raises(ConfigError, match=r"scored on other cases .* \(p4_ce\); evaluate it again"):
        read_ours([place / "ours"], fewer, [0], ScoredCases.held_out(cfg, fewer))
    moved = dataclasses.replace(now, digests={**now.digests, "p3_orn": "another label's"})
    with pytest.raises(ConfigError, match=r"or on other files of theirs \(p3_orn\); evaluate it"):
        read_ours([place / "ours"], data, [0], moved)
    shutil.copytree(place / "ours", tmp_path / "unscored")
    shutil.rmtree(tmp_path / "unscored" / "evaluation")
    with pytest.raises(MissingFile, match="evaluate that run"):
        read_ours([tmp_path / "unscored"], data, [0], now)


def altered(run: Path, copy: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a run whose config is another."""
    shutil.copytree(run, copy)
    record = json.loads((copy / "run.json").read_text())
    change(record["config"])
    (copy / "run.json").write_text(json.dumps(record))
    return copy


def test_ours_are_runs_of_one_model_one_for_each_seed(
    place: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    cfg = tiny_config(tiny_dataset)
    data = load_run_data(cfg)
    now, ours = ScoredCases.held_out(cfg, data), place / "ours"
    twin = altered(ours, tmp_path / "twin", lambda config: None)
    with pytest.raises(ConfigError, match=f"two runs of config.seed 0, {ours} and {twin}; give"):
        read_ours([ours, twin], data, [0], now)
    second = altered(ours, tmp_path / "second", lambda config: config.update(seed=1, name="b"))
    assert [run.cfg.seed for run in read_ours([second, ours], data, [0, 1], now)] == [0, 1]

    def without_box(config: dict[str, Any]) -> None:
        config["seed"] = 1
        config["prompt"]["box"] = not config["prompt"]["box"]

    other = altered(ours, tmp_path / "other", without_box)
    with pytest.raises(
        ConfigError, match=r"other settings than .* \(prompt.box\), so they are not"
    ):
        read_ours([ours, other], data, [0, 1], now)
    shutil.rmtree(other / "evaluation")
    elsewhere = altered(
        other, tmp_path / "elsewhere", lambda config: config["data"].update(dataset="another")
    )
    with pytest.raises(ConfigError, match="is a run on another, not scored on the split 'test' of"):
        read_ours([elsewhere], data, [1], now)


@pytest.mark.parametrize("seed", ["-1", "1.5", "x"])
def test_seeds_are_whole_numbers(seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments("--seeds", seed)
    assert "argument --seeds" in capsys.readouterr().err


def test_mistakes_are_told_before_anything_is_trained(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = tiny_config(tiny_dataset)
    out = ("--out", str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="--width is 2,"):
        baselines.run(cfg, arguments("--width", "2", *out), "")
    with pytest.raises(MissingFile, match="nowhere"):
        baselines.run(cfg, arguments("--ours", str(tmp_path / "nowhere"), *out), "")
    (tmp_path / "doc.md").write_text("words\n")
    with pytest.raises(UnreadableFile, match="doc.md has no lines <!-- baselines rivals -->"):
        baselines.run(cfg, arguments("--markdown", str(tmp_path / "doc.md"), *out), "")
    unscored = dataclasses.replace(cfg, evaluate=False)
    with pytest.raises(ConfigError, match="config.evaluate"):
        baselines.run(unscored, arguments(*out), "")
    (tmp_path / "file").touch()
    with pytest.raises(NotWritable, match="file/x cannot be written .* with --out FOLDER"):
        baselines.run(cfg, arguments("--out", str(tmp_path / "file" / "x")), "")
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(ExtraMissing, match="baselines"):
        baselines.run(cfg, arguments(*out), "")
    assert not (tmp_path / "out").exists()
