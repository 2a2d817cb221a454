"""`python -m rtsam_jax.evaluate --run RUN --calibrate`, and a prediction that uses what it left."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from rtsam_jax import evaluate
from rtsam_jax.data.cache import cache_root
from rtsam_jax.data.fingerprints import fingerprints
from rtsam_jax.data.nifti import read_label
from rtsam_jax.data.selection import load_run_data
from rtsam_jax.errors import ConfigError, IncompleteCase, MissingFile, RTSamError, SplitError
from rtsam_jax.metrics.overlap import dice
from rtsam_jax.prediction import calibrating, calibration_cases
from rtsam_jax.prediction.calibrating import training_reference
from rtsam_jax.prediction.calibration import Calibration, Fit, Quality
from rtsam_jax.prediction.confidence import assess, calibrated, observe
from rtsam_jax.prediction.distance import FILE, Reference
from rtsam_jax.prediction.opened import Opened
from rtsam_jax.prediction.segmenter import Click, Prompts, Segmenter
from rtsam_jax.prediction.trained import load_trained
from rtsam_jax.training.model_file import write_calibration
from rtsam_jax.training.run import open_run_folder, prepare_training
from rtsam_jax.training.seen import read_seen, write_seen
from tests.prediction.observed import cohort
from tests.prediction.random_run import save_random_run
from tests.tiny import tiny_config

FILES = {"calibration.md", "calibration.json", "cases.csv", "reliability.png", "risk_coverage.png"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """A folder with a dataset and a run that is not calibrated."""
    folder = tmp_path_factory.mktemp("calibrate")
    shutil.copytree(tiny_dataset, folder / "dataset")
    cfg = tiny_config(folder / "dataset", out=str(folder / "run"), augment__flip_axes=(0, 1))
    data = load_run_data(cfg)
    with open_run_folder(cfg, fingerprints(data.train, cache_root(cfg))) as run:
        save_random_run(run, cfg)
        write_seen(run, cfg, data.train)
    return folder


def command(monkeypatch: pytest.MonkeyPatch, run: Path, *options: str) -> None:
    given = ["evaluate", "--run", str(run), "--calibrate", "--repeats", "2", *options]
    monkeypatch.setattr("sys.argv", given)
    evaluate.main()


def test_it_leaves_a_calibration_that_predictions_use(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, place / "run")
    said = capsys.readouterr().out
    assert "encoded 3/3 training scans" in said and "judged 2/2 cases of test" in said
    assert "warning: tiny has no split 'val'" in said and "on its own, 'test'" in said
    assert "tiny, split test (synthetic)" in said and "too few to know an AUROC" in said
    folder = place / "run" / "evaluation" / "test" / "calibration"
    assert {path.name for path in folder.iterdir()} == FILES
    for name in ("reliability.png", "risk_coverage.png"):
        pixels = matplotlib.image.imread(folder / name)
        assert min(pixels.shape[:2]) > 300 and pixels.std() > 0.01
    text = (folder / "calibration.md").read_text()
    assert text.startswith("# tiny, split test (synthetic)\n\nSynthetic: ") and said.count(
        text[-400:]
    )
    with (folder / "cases.csv").open(newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["p3_orn", "p4_ce"]

    model = json.loads((place / "run" / "model.json").read_text())
    kept = model["calibration"]
    assert (kept["step"], kept["split"], kept["kind"]) == (7, "test", "synthetic")
    found = kept["measured"]["test, cross-fitted"]
    assert (found["n"], found["n_patients"]) == (2, 2) and found["ece_after"] is not None
    known = Calibration.from_dict(kept)
    assert known.cases == 2 and known.arrays and (known.accept, known.reject) == (None, None)

    segmenter = Segmenter.from_checkpoint(place / "run")
    assert segmenter.trained.calibration == kept and not segmenter.trained.warnings
    files = [str(place / "dataset" / f"p3_{what}.nii.gz") for what in ("image", "dose")]
    segmenter.set_case(*files, task="orn", name="p3_orn")
    prediction = segmenter.predict()
    confidence = assess(segmenter.trained, segmenter.model, prediction, repeats=2)
    row = rows["p3_orn"]
    truth = read_label(place / "dataset" / "p3_orn_label.nii.gz")
    assert float(row["dice"]) == dice(prediction.mask().array, truth.array)
    assert float(row["distance"]) == confidence.distance
    assert float(row["agreement"]) == confidence.agreement
    assert confidence.flag == "review" and confidence.quality is not None
    probability = prediction.native_probability().array
    honest = calibrated(probability, segmenter.trained)
    assert ((honest >= 0.5) == prediction.mask().array).all() and (honest != probability).any()

    (place / "run" / FILE).unlink()
    lost = assess(load_trained(place / "run"), segmenter.model, prediction, repeats=0)
    assert lost.flag == "review" and lost.agreement is lost.distance is None
    assert "calibration.npz is not there" in lost.reasons[0]


def test_one_that_fails_leaves_the_calibration_that_is_there(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    run, made = tmp_path / "run", []

    def reference(*_: object) -> Reference | None:
        made.append(Reference.fit(rng.normal(size=(4, 3)), np.arange(4), np.full(4, "orn")))
        return made[-1]

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    shutil.copytree(place / "run", run)
    monkeypatch.setattr(calibrating, "training_reference", reference)
    monkeypatch.setattr(calibrating._Observer, "all", lambda *_: cohort(6))
    command(monkeypatch, run)
    for name in ("measured", "write_calibration_report", "write_calibration"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(calibrating, name, killed)
            command(patch, run)
        kept = load_trained(run).reference
        assert kept is not None
        np.testing.assert_array_equal(kept.distances, made[0].distances)
    command(monkeypatch, run)
    kept = load_trained(run).reference
    assert kept is not None and [path.name for path in run.rglob("*.npz")] == [FILE]
    np.testing.assert_array_equal(kept.distances, made[-1].distances)


@pytest.mark.parametrize(
    ("patients", "expected"),
    [
        (("p3", "p4"), "val"),
        (("p4",), ""),  # too few to calibrate across patients
        (("p2", "p3"), ""),  # one of whom it was trained on
        ((), ""),
    ],
)
def test_the_split_is_val_where_the_run_can_be_calibrated_on_it(
    place: Path, tmp_path: Path, patients: tuple[str, ...], expected: str
) -> None:
    cfg = tiny_config(place / "dataset")
    data = load_run_data(cfg)
    cases = [
        dataclasses.replace(case, split="val") if case.patient in patients else case
        for case in data.dataset.cases
    ]
    data = dataclasses.replace(data, dataset=dataclasses.replace(data.dataset, cases=tuple(cases)))
    seen = read_seen(place / "run")
    assert calibration_cases._default_split(cfg, data, seen) == expected
    write_seen(tmp_path, cfg, [case for case in cases if case.patient == "p3"])
    assert calibration_cases._default_split(cfg, data, read_seen(tmp_path)) == ""


def test_it_is_done_on_val_and_tried_on_another_split_where_there_is_one(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = place / "dataset" / "dataset.json"
    content = manifest.read_text()
    document = json.loads(content)
    [held_out] = [case for case in document["cases"] if case["id"] == "p3_orn"]
    document["cases"].append(held_out | {"id": "p5_orn", "patient": "p5"})
    for case in document["cases"]:
        case["split"] = {"p4": "val", "p5": "val"}.get(case["patient"], case["split"])
    manifest.write_text(json.dumps(document))
    try:
        command(monkeypatch, place / "run", "--repeats", "0")
    finally:
        manifest.write_text(content)
    said = capsys.readouterr().out
    assert "warning: " not in said
    assert "judged 2/2 cases of val" in said and "judged 1/1 cases of test" in said
    kept = json.loads((place / "run" / "model.json").read_text())["calibration"]
    assert list(kept["measured"]) == ["val, cross-fitted", "test, not calibrated on"]
    assert kept["measured"]["test, not calibrated on"]["n"] == 1
    assert (kept["cases"], kept["repeats"]) == (2, 0)


def test_what_the_run_was_trained_on_decides_not_todays_splits(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manifest = place / "dataset" / "dataset.json"
    content = manifest.read_text()
    document = json.loads(content)
    for case in document["cases"]:
        case["split"] = {"p2": "test"}.get(case["patient"], case["split"])
    manifest.write_text(json.dumps(document))
    try:
        with pytest.raises(ConfigError, match="was trained on other cases than .* now has"):
            command(monkeypatch, place / "run")
    finally:
        manifest.write_text(content)
    shutil.copytree(place / "run", tmp_path / "copy", ignore=shutil.ignore_patterns("run.json"))
    with pytest.raises(MissingFile, match=r"run\.json does not exist"):
        command(monkeypatch, tmp_path / "copy")


def test_a_run_on_inner_folds_is_calibrated_on_another_split(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its training cases are those of its folds, not all of the split."""
    cfg = tiny_config(
        place / "dataset",
        out=str(place / "inner"),
        data__inner_folds=2,
        data__inner_fold=0,
        data__tasks=("orn",),
    )
    data = load_run_data(cfg)
    assert len(data.train) == 1
    with open_run_folder(cfg, fingerprints(data.train, cache_root(cfg))) as run:
        save_random_run(run, cfg)
    with pytest.raises(SplitError, match="all of one"):  # p3 alone
        command(monkeypatch, run, "--split", "test", "--repeats", "0")
    assert "encoded 1/1 training scans" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="was trained on the split 'train'"):
        command(monkeypatch, run, "--split", "train")


def test_nobody_that_an_ancestor_was_trained_on_is_calibrated_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    cfg = tiny_config(place / "dataset", out=str(run))
    data = load_run_data(cfg)
    write_seen(run, cfg, [*data.train, data.held_out[0]])
    named = rf"1 of the 2 cases .*\({data.held_out[0].id}\).*; name another split with --split\.$"
    with pytest.raises(ConfigError, match=named):
        command(monkeypatch, run)


def test_whom_it_was_trained_on_may_not_be_known(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parent, run = tmp_path / "parent", tmp_path / "run"
    for copy in (parent, run):
        shutil.copytree(place / "run", copy)
    (parent / "train_images.txt").unlink()
    cfg = tiny_config(place / "dataset", model__checkpoint=str(parent))
    write_seen(run, cfg, load_run_data(cfg).train)
    record = json.loads((run / "run.json").read_text())
    del record["train_cases"]
    (run / "run.json").write_text(json.dumps(record))
    command(monkeypatch, run, "--repeats", "0")
    said = capsys.readouterr().out
    doubts = ("run.json does not record the training cases", "has no complete train_images.txt")
    report = (run / "evaluation" / "test" / "calibration" / "calibration.md").read_text()
    assert all(doubt in text for text in (said, report) for doubt in doubts)
    assert said.count("cannot be told\n") == report.count("cannot be told.\n") == 2
    monkeypatch.setattr("sys.argv", ["evaluate", "--run", str(run)])
    evaluate.main()
    assert f"{run} {doubts[1]}" in (run / "evaluation" / "test" / "tables.md").read_text()


def test_boxes_around_labels_are_none_that_predictions_have(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = tiny_config(
        place / "dataset", evaluate=False, dose__source="label", out=str(tmp_path / "run")
    )
    with open_run_folder(cfg, []) as run, pytest.raises(ConfigError, match="boxes around labels"):
        command(monkeypatch, run)


def test_without_a_region_cases_are_seen_as_predict_sees_them(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their doses neither place crops nor make boxes; a model that needs boxes has none here."""
    cfg = tiny_config(
        place / "dataset", evaluate=False, prompt__box=False, dose__source="none", out="unused"
    )
    data = load_run_data(cfg)
    trained = load_trained(save_random_run(tmp_path / "free", cfg))
    seen: list[Opened] = []
    kept = calibrating.open_scan
    monkeypatch.setattr(
        calibrating, "open_scan", lambda *of, **to: seen.append(kept(*of, **to)) or seen[-1]
    )
    observer = calibrating._Observer(trained, trained.click_model(), data, None, 0)
    observer.all(data.held_out[:1], "test")
    case = data.held_out[0]
    segmenter = Segmenter.from_checkpoint(tmp_path / "free")
    opened = segmenter.set_case(case.image, case.dose, task=case.task, name=case.id)
    np.testing.assert_array_equal(opened.tiles.origins, seen[0].tiles.origins)
    np.testing.assert_array_equal(opened.first.low_res, seen[0].first.low_res)


def test_a_training_case_is_at_its_own_place_for_a_model_that_knows_no_region(
    place: Path,
) -> None:
    """The scan is smaller than a crop: what lies beyond it counts in both places or in neither."""
    cfg = tiny_config(
        place / "dataset",
        evaluate=False,
        prompt__box=False,
        dose__source="none",
        data__spacing_mm=5.0,  # the scan is half a crop wide
    )
    data = load_run_data(cfg)
    run = save_random_run(place / "free", cfg)
    trained = load_trained(run)
    model = trained.click_model()
    known = training_reference(trained, model, prepare_training(cfg, data), data.train)
    assert known is not None
    segmenter = Segmenter.from_checkpoint(run)
    files = [str(place / "dataset" / f"p1_{what}.nii.gz") for what in ("image", "dose")]
    opened = segmenter.set_case(*files, task="ce", name="p1_ce")  # the only one of its task
    assert max(opened.scan.image.shape) < trained.size
    prediction = segmenter.predict()
    seen = observe(
        trained,
        segmenter.model,
        opened,
        prediction.turn,
        prediction.probability,
        empty=False,
        reference=known,
        repeats=0,
    )
    assert seen.distance == pytest.approx(0, abs=0.1)  # with the region's tokens in one place: 33


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ((), ""),
        (("click",), "no clicks: what"),
        (("box", "mask"), "no given box and no initial mask: what"),
    ],
)
def test_a_reason_says_what_the_calibration_had_none_of(
    place: Path, tmp_path: Path, told: tuple[str, ...], said: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    segmenter = Segmenter.from_checkpoint(run)
    fit = Fit(1.0, Quality((), (), (), (), 0.0), 0.5)
    known = Calibration(fit, None, None, None, 2, 1, 0, None)
    about = {"step": 7, "weights": segmenter.trained.weights}
    write_calibration(run, about | known.to_dict())
    segmenter = Segmenter.from_checkpoint(run)
    folder = place / "dataset"
    box = np.array([(10, 10, 10), (25, 25, 25)]) if "box" in told else None
    image, dose = folder / "p3_image.nii.gz", folder / "p3_dose.nii.gz"
    segmenter.set_case(image, dose, task="orn", box=box, name="p3")
    mask = read_label(folder / "p3_orn_label.nii.gz") if "mask" in told else None
    centre = tuple(float(at) for at in segmenter.opened.scan.grid.affine[:3, :3] @ [20, 20, 20])
    clicks = (Click(centre, True),) if "click" in told else ()
    prediction = segmenter.predict(Prompts(clicks, mask))
    found = assess(segmenter.trained, segmenter.model, prediction, repeats=0, mask=mask)
    assert any("the calibration's cases had " in reason for reason in found.reasons) == bool(said)
    assert not said or found.reasons[-1].startswith(f"the calibration's cases had {said}")


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        (("--split", "train"), ConfigError, "was trained on the split 'train'"),
        (("--split", "tset"), SplitError, r"'tset' .*: name one with --split\.$"),
        (("--split", ""), ConfigError, "--split is empty; give it a value, or leave it out"),
        (("--probe", "task"), ConfigError, "--calibrate scores nothing"),
        (("--repeats", "-1"), ConfigError, "--repeats is -1"),
    ],
)
def test_a_mistake_has_an_error_of_its_own(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    error: type[RTSamError],
    named: str,
) -> None:
    with pytest.raises(error, match=named):
        command(monkeypatch, place / "run", *options)


def test_a_run_whose_own_split_has_nobody_is_told_of_the_option(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "run")
    cfg = tiny_config(place / "dataset", out=out, evaluate=False, data__eval_split="later")
    data = load_run_data(cfg)
    with open_run_folder(cfg, fingerprints(data.train, cache_root(cfg))) as run:
        save_random_run(run, cfg)
    for calibrate in ((), ("--calibrate",)):
        monkeypatch.setattr("sys.argv", ["evaluate", "--run", str(run), *calibrate])
        with pytest.raises(SplitError, match=r"'later' .*: name one with --split\.$"):
            evaluate.main()


def test_without_labels_there_is_nothing_to_calibrate_by(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = place / "dataset" / "dataset.json"
    content = manifest.read_text()
    document = json.loads(content)
    for case in document["cases"]:
        if case["split"] == "test":
            del case["label"]
    manifest.write_text(json.dumps(document))
    try:
        with pytest.raises(IncompleteCase, match="has a label to calibrate by"):
            command(monkeypatch, place / "run")
    finally:
        manifest.write_text(content)
