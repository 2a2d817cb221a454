"""`python -m rtsam_jax.evaluate --run RUN --calibrate`, and a prediction that uses what it left."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import matplotlib.image
import pytest

from rtsam_jax import evaluate
from rtsam_jax.data.cache import cache_root
from rtsam_jax.data.nifti import read_label
from rtsam_jax.data.selection import load_run_data
from rtsam_jax.errors import ConfigError, IncompleteCase, RTSamError, SplitError
from rtsam_jax.metrics.overlap import dice
from rtsam_jax.prediction.calibration import Calibration
from rtsam_jax.prediction.confidence import assess, calibrated
from rtsam_jax.prediction.distance import FILE
from rtsam_jax.prediction.segmenter import Segmenter
from rtsam_jax.training.run import fingerprints, open_run_folder
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
    lost = assess(segmenter.trained, segmenter.model, prediction, repeats=0)
    assert lost.flag == "review" and lost.agreement is lost.distance is None
    assert "calibration.npz is not there" in lost.reasons[0]


def test_it_is_tried_on_another_split_where_there_is_one(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = place / "dataset" / "dataset.json"
    content = manifest.read_text()
    document = json.loads(content)
    for case in document["cases"]:
        moved = {"p2": "test", "p3": "val", "p4": "val"}
        case["split"] = moved.get(case["patient"], case["split"])
    manifest.write_text(json.dumps(document))
    try:
        command(monkeypatch, place / "run", "--split", "val", "--repeats", "0")
    finally:
        manifest.write_text(content)
    said = capsys.readouterr().out
    assert "judged 2/2 cases of val" in said and "judged 1/1 cases of test" in said
    kept = json.loads((place / "run" / "model.json").read_text())["calibration"]
    assert list(kept["measured"]) == ["val, cross-fitted", "test, not calibrated on"]
    assert kept["measured"]["test, not calibrated on"]["n"] == 1
    assert kept["arrays"] is None  # of two training patients none is left to measure by


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        (("--split", "train"), ConfigError, "was trained on the split 'train'"),
        (("--split", "tset"), SplitError, "'tset'"),
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
