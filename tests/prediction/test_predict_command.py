"""`python -m rtsam_jax.predict`: what it leaves, and what is said of mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtsam_jax import errors, predict
from rtsam_jax.data.nifti import Volume, read_volume, write_volume
from rtsam_jax.prediction import cohort, outputs
from rtsam_jax.prediction.confidence import Confidence
from rtsam_jax.prediction.segmenter import Segmenter
from rtsam_jax.report.prediction_picture import draw_prediction
from tests.prediction.commanding import FILES, Command, document, rows
from tests.prediction.smooth_phantom import AFFINE, SHAPE, phantom, save


def test_a_split_of_a_dataset(
    command: Command,
    loaded: Segmenter,
    tiny_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(outputs, "draw_prediction", draw_prediction)
    out = command("--dataset", tiny_dataset, "--split", "test", repeats=2)
    said = capsys.readouterr().out
    assert "predicted 2/2 cases" in said and "| p4_ce" in said
    assert "tiny (synthetic data), split test" in (out / "summary.md").read_text()
    folder = out / "p3_orn" / "orn"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    image, dose = (read_volume(tiny_dataset / f"p3_{part}.nii.gz") for part in ("image", "dose"))
    loaded.set_case(image, dose, task="orn", name="p3_orn")
    prediction = loaded.predict()
    mask = read_volume(folder / "mask.nii.gz").array > 0
    np.testing.assert_array_equal(mask, prediction.mask().array)
    probability = read_volume(folder / "probability.nii.gz").array
    np.testing.assert_array_equal(probability, prediction.native_probability().array)
    assert (folder / "prediction.png").read_bytes()[:4] == b"\x89PNG"
    entropy = read_volume(folder / "entropy.nii.gz").array
    assert (entropy[probability == 0] == 0).all() and 0.9 < entropy.max() <= 1 + 1e-6

    told = document(out, "p3_orn")
    assert told["from"] == "tiny (synthetic data), split test"
    assert told["mask"]["voxels"] == mask.sum() > 0 and told["mask"]["empty"] is None
    assert told["mask"]["volume_ml"] == pytest.approx(mask.sum() * 8 / 1000)
    assert told["dose"]["mean_in_mask"] == pytest.approx(dose.array[mask].mean(), rel=1e-5)
    assert told["dose"]["max_in_mask"] == pytest.approx(dose.array[mask].max(), rel=1e-5)
    assert told["dose"]["dmax"] == pytest.approx(dose.array.max()) and told["dose"]["tau"] == 0.5
    hot = np.argwhere(dose.array >= 0.5 * dose.array.max())
    assert told["region"]["box"]["voxels"] == [hot.min(0).tolist(), hot.max(0).tolist()]
    faces = [2 * hot.min(0) - 1, 2 * hot.max(0) + 1]
    np.testing.assert_allclose(told["region"]["box"]["world_mm"], faces)
    assert told["model"]["weights"] == loaded.trained.weights and told["model"]["step"] == 7
    assert told["confidence"]["agreement"] is not None and told["confidence"]["flag"] == "review"
    assert (told["confidence"]["repeats"], told["confidence"]["seed"]) == (2, 0)
    assert told["inputs"]["image"]["axes"] == "RAS" and len(told["inputs"]["dose"]["sha256"]) == 64
    assert "jax" in told["versions"]
    assert [(row["case"], row["task"], row["result"]) for row in rows(out)] == [
        ("p3_orn", "orn", "mask"),
        ("p4_ce", "ce", "mask"),
    ]


@pytest.mark.parametrize(
    ("air", "options", "tasks"),
    [
        (-1000, (), ["orn"]),
        (0, (), ["ce", "crn"]),
        (0, ("--modality", "CT"), ["orn"]),
    ],
)
def test_all_tasks_are_those_of_the_images_modality(
    command: Command, tmp_path: Path, air: int, options, tasks: list[str]
) -> None:
    image, dose = phantom(SHAPE, AFFINE)
    least = f"{np.maximum(image, air).min():.4g}"
    save(tmp_path / "image.nii", np.maximum(image, air), AFFINE)
    save(tmp_path / "dose.nii", dose, AFFINE)
    where = "--image", tmp_path / "image.nii", "--dose", tmp_path / "dose.nii", "--task", "all"
    out = command(*where, *options)
    assert sorted(path.name for path in (out / "image").iterdir()) == tasks
    warned = " ".join(document(out, "image", tasks[0])["warnings"])
    assert ("air is near -1000 HU" in warned) == (options != ())
    modality, left_out = ("CT", "ce, crn") if tasks == ["orn"] else ("MR", "orn")
    guess = f"taken for {modality}, because its smallest value is {least}; tasks left out"
    assert (f"{guess}: {left_out}. State --modality" in warned) == (options == ())
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/*")}
    command(*where, *options)
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*/*")} == before


@pytest.mark.parametrize("frame", ["voxel", "world"])
def test_a_click_outside_the_crops_is_told_as_it_was_given(
    command: Command, case, frame: str
) -> None:
    at, key = ("39,39,39", "voxels") if frame == "voxel" else ("78,78,78", "world_mm")
    with pytest.raises(errors.PromptOutside) as refused:
        command(*case, "--click", f"{at},+", "--click-frame", frame)
    unit = "voxel" if frame == "voxel" else "world mm"
    assert f"The click ({at.replace(',', ', ')}) ({unit}) on p3_image is" in str(refused.value)
    first, last = map(tuple, document(command(*case))["region"]["covered"][key])
    assert f"{first} to {last}" in str(refused.value) and "with --box" in str(refused.value)


def test_a_bad_patient_is_listed_and_stops_no_other(
    command: Command, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c", "d é"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for part in ("image", "dose"):
            shutil.copy(
                tiny_dataset / f"p3_{part}.nii.gz", tmp_path / "in" / name / f"{part}.nii.gz"
            )
        (tmp_path / "in" / name / "record.json").write_text('{"age": 61}')
    broken = tmp_path / "in" / "b" / "image.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:1000])
    (tmp_path / "in" / "c" / "dose.nii.gz").unlink()
    (tmp_path / "in" / "d é" / "record.json").write_text('{"age": "old"}')
    where = tmp_path / "in" / "{case}"
    options = (
        *("--image", where / "image.nii.gz", "--dose", where / "dose.nii.gz"),
        *("--record", where / "record.json", "--task", "orn"),
    )
    with pytest.raises(errors.CasesFailed, match="3 of 4 cases could not be predicted"):
        command(*options)
    said = capsys.readouterr().out
    assert "d é is written as d," in said
    assert "predicted 4/4 cases" in said and "There is no dose file" in said
    out = tmp_path / "out"
    assert {row["case"]: (row["result"], row["error"]) for row in rows(out)} == {
        "a": ("mask", ""),
        "b": ("failed", "unreadable_file"),
        "c": ("failed", "missing_file"),
        "d": ("failed", "record_invalid"),
    }
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["a"]
    assert document(out, "a")["prompts"]["record"] == {"age": 61}

    broken.write_bytes(whole)
    with pytest.raises(errors.CasesFailed, match="2 of 4"):
        command(*options)
    assert "1 of 4 cases are there already" in capsys.readouterr().out
    assert [row["result"] for row in rows(out)] == ["mask", "mask", "failed", "failed"]

    broken.write_bytes(whole[:1000])
    with pytest.raises(errors.CasesFailed, match="3 of 4"):
        command(*options, "--overwrite")
    assert [(row["case"], row["result"]) for row in rows(out)] == [
        ("a", "mask"),
        ("b", "failed"),
        ("b", "earlier mask"),
        ("c", "failed"),
        ("d", "failed"),
    ]
    assert "Of an earlier command" in (out / "summary.md").read_text()


def test_a_dataset_needs_no_labels_and_a_bad_case_of_it_stops_no_other(
    command: Command, tiny_dataset: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_dataset, data, ignore=shutil.ignore_patterns("*label*", "p4_image*"))
    content = json.loads((data / "dataset.json").read_text())
    content["cases"] = [entry for entry in content["cases"] if entry["id"] != "p2_orn"]
    for entry in content["cases"]:
        entry["record"] = {"p0_orn": {"age": 200}, "p1_ce": [1]}.get(entry["id"], {})
    (data / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(errors.CasesFailed, match="3 of 5 cases"):
        command("--dataset", data)
    assert {row["case"]: row["error"] for row in rows(tmp_path / "out")} == {
        "p0_orn": errors.RecordError.code,
        "p1_ce": errors.DatasetSchemaError.code,
        "p1_crn": "",
        "p3_orn": "",
        "p4_ce": errors.MissingFile.code,
    }


def test_a_doubtful_dose_is_not_accepted_and_clicks_that_are_ignored_are_told(
    command: Command, case, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    monkeypatch.setattr(
        outputs,
        "draw_prediction",
        lambda *_, out, text, **__: (out.write_bytes(b"x"), texts.append(text)),
    )
    accepted = Confidence(0.9, 0.9, None, None, None, 0.95, "accept", ("it is so",))
    monkeypatch.setattr(cohort, "assess", lambda *_, **__: accepted)
    dose = read_volume(tiny_dataset / "p3_dose.nii.gz")
    cold = Volume(dose.array / 100, dose.affine)
    write_volume(tmp_path / "cold.nii.gz", cold, np.float32)
    clicks = "--click", "20,20,20,+", "--click", "20,20,20,-"  # one of which cannot be followed
    out = command(*case, "--dose", tmp_path / "cold.nii.gz", *clicks)
    told = document(out)
    assert told["confidence"]["flag"] == rows(out)[0]["flag"] == "review"
    assert any("implausible in Gy" in reason for reason in told["confidence"]["reasons"])
    assert texts[0].startswith("Flag: review (quality 0.95)") and "implausible in Gy" in texts[0]
    assert any("1 of 2 clicks is not as" in warning for warning in told["warnings"])


MISTAKES: dict[str, tuple[tuple[str, ...], type[errors.RTSamError], str]] = {
    "task": (("--task", "brain"), errors.ConfigError, "orn, ce, crn"),
    "modality": (("--modality", "MR"), errors.ConfigError, "trained for task orn on CT"),
    "click": (("--click", "40,0,0,+"), errors.PromptOutside, "outside the image of p3_image"),
    "click beyond the crops": (("--click", "39,39,39,+"), errors.PromptOutside, "the model is"),
    "click of four": (("--click", "1,2,3,4,+"), errors.ConfigError, "must be x,y,z"),
    "box too large": (("--box", "0,0,0,40,40,40"), errors.PromptOutside, "reaches 1 voxels beyond"),
    "box beside": (
        ("--box", "-90,-90,-90,-80,-80,-80", "--box-frame", "world"),
        errors.PromptOutside, "voxels beyond the image",
    ),
    "dose beside": (("--dose", "FAR"), errors.NoOverlap, "covers no voxel of its image"),
    "no dose file": (("--dose", "nowhere.nii.gz"), errors.MissingFile, "There is no dose file"),
    "a DICOM series": (("--image", "FOLDER"), errors.UnreadableFile, "folder, .* to NIfTI, and"),
    "an RTDOSE": (("--dose", "RTDOSE"), errors.UnreadableFile, "dose .* is DICOM, .* to NIfTI"),
    "empty mask": (("--mask", "EMPTY"), errors.PromptOutside, "marks no voxel at all"),
    "mask beside": (("--mask", "FAR"), errors.PromptOutside, "initial mask"),
    "record": (("--record", "age=200"), errors.RecordError, "'age' must be"),
    "no such record": (("--record", "r.json"), errors.MissingFile, "no record file r.json"),
    "nothing matches": (("--image", "x/{case}.nii"), errors.MissingFile, "--image x/{case}.nii"),
    "the image has no case": (("--dose", "{case}.nii"), errors.ConfigError, "--image has not"),
    "a name": (("--case", "../x"), errors.ConfigError, "cannot name a folder"),
    "a hidden name": (("--case", ".x"), errors.ConfigError, "begin with a letter or digit"),
    "a long name": (("--case", "x" * 300), errors.ConfigError, "at most 100 of them"),
    "a table's name": (("--case", "summary.csv"), errors.ConfigError, "called summary.csv"),
    "a folder per case": (("--out", "o/{case}"), errors.ConfigError, "--out o/{case} has"),
    "a split alone": (("--split", "val"), errors.ConfigError, "--split is of a --dataset"),
    "a seed alone": (("--split-seed", "0"), errors.ConfigError, "--split-seed is of a --dataset"),
    "no mask": (("--mask", ""), errors.ConfigError, "--mask is empty"),
    "no record": (("--record", ""), errors.ConfigError, "--record is empty"),
    "half a record": (("--record", "age=61", ""), errors.ConfigError, "--record is empty"),
    "no box": (("--box", ""), errors.ConfigError, "--box is empty"),
    "no place": (("--out", ""), errors.ConfigError, "--out is empty"),
    "no dataset": (("--dataset", ""), errors.ConfigError, "--dataset is empty"),
    "no language model": (("--language-model", ""), errors.ConfigError, "language-model is empty"),
    "clicks for all": (
        ("--task", "all", "--click", "20,20,20,+"), errors.ConfigError, "--click belongs to one t",
    ),
    "a mask for all": (
        ("--task", "all", "--mask", "FAR"), errors.ConfigError, "--mask belongs to one task",
    ),
    "repeats": (("--repeats", "-1"), errors.ConfigError, "--repeats is -1"),
    "seed": (("--seed", "-1"), errors.ConfigError, "--seed is -1"),
    "a dataset and an image": (("--dataset", "d"), errors.ConfigError, "--image does not go with"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_has_an_error_of_its_own(
    command: Command, case, tiny_dataset: Path, tmp_path: Path, name: str
) -> None:
    options, error, sentence = MISTAKES[name]
    near = read_volume(tiny_dataset / "p3_dose.nii.gz")
    far = Volume(np.ones_like(near.array), near.affine.copy())
    far.affine[:3, 3] += 900
    write_volume(tmp_path / "far.nii.gz", far, np.float32)
    write_volume(tmp_path / "empty.nii.gz", Volume(near.array * 0, near.affine), np.uint8)
    (tmp_path / "rtdose").write_bytes(bytes(128) + b"DICM")
    files = {name.upper(): str(tmp_path / f"{name}.nii.gz") for name in ("far", "empty")}
    files |= {"FOLDER": str(tmp_path), "RTDOSE": str(tmp_path / "rtdose")}
    with pytest.raises(error, match=sentence.replace("{", r"\{")):
        command(*case, *(files.get(part, part) for part in options))
    left = {path.name for path in (tmp_path / "out").rglob("*")}
    assert left <= {".lock"}


def test_a_pattern_whose_partners_are_nowhere_ends_before_it_begins(
    command: Command, tiny_dataset: Path
) -> None:
    image = tiny_dataset / "{case}_image.nii.gz"
    with pytest.raises(errors.MissingFile, match="--dose .* matches no file"):
        command("--image", image, "--dose", tiny_dataset / "{case}_rtdose.nii.gz", "--task", "orn")
    with pytest.raises(errors.ConfigError, match="--click belongs to one case"):
        command("--image", image, "--task", "orn", "--click", "1,1,1,+")


@pytest.mark.parametrize("option", ["--dose", "--mask", "--record"])
def test_one_patients_file_is_not_all_patients(
    command: Command, tiny_dataset: Path, option: str
) -> None:
    image, one = tiny_dataset / "{case}_image.nii.gz", tiny_dataset / "p1_dose.nii.gz"
    with pytest.raises(errors.ConfigError, match=rf"{option} .*p1_dose.nii.gz has no .case. in it"):
        command("--image", image, "--task", "orn", option, one)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        (("--split", "val"), errors.SplitError, "no case in the split 'val'"),
        (("--split-seed", "1"), errors.ConfigError, "goes with --split alone"),
        (("--split", "train", "--split-seed", "-1"), errors.ConfigError, "must be 0 or above"),
        (("--split", "train", "--task", "x"), errors.DatasetSchemaError, "no task 'x'"),
        (("--box", "0,0,0,1,1,1"), errors.ConfigError, "--box does not go with --dataset"),
    ],
)
def test_a_mistake_about_a_dataset(
    command: Command, tiny_dataset: Path, options, error, sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        command("--dataset", tiny_dataset, *options)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"schema": 1}, errors.PresetMismatch),
        ({"schema": 9}, errors.PresetMismatch),
        ({"model": {"preset": "vit_x"}}, errors.PresetMismatch),
        ({"tasks": []}, errors.RTSamError),
    ],
)
def test_another_kind_of_checkpoint_is_refused(
    run: Path, tmp_path: Path, change: dict[str, Any], error: type[errors.RTSamError]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "model.json"
    content = json.loads(path.read_text())
    for name, value in change.items():
        content[name] = content[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(content))
    options = ["--checkpoint", tmp_path / "run", "--out", tmp_path / "out", "--image", "x.nii"]
    with pytest.raises(error):
        predict.run(
            predict.parser().parse_args([str(part) for part in [*options, "--task", "orn"]])
        )
    assert not (tmp_path / "out").exists()
