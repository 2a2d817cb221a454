"""`python -m rtsam_jax.predict` upon what is there: kept, made again, or refused; and killed."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rtsam_jax import errors
from rtsam_jax.prediction import cohort, outputs
from rtsam_jax.prediction.distance import Reference, sha256
from rtsam_jax.prediction.inputs import Request
from rtsam_jax.prediction.segmenter import Segmenter
from tests.prediction.commanding import FILES, Command, document, rows
from tests.prediction.test_calibration import calibration
from tests.tiny import command_environment


def test_what_is_there_is_kept_unless_it_comes_of_something_else(
    command: Command, case, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = command(*case) / "p3_image" / "orn"
    first = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    command(*case)
    assert "1 of 1 cases are there already" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == first
    click = "--click", "20,20,20,+"
    with pytest.raises(errors.OutputExists, match="other files, prompts, weights or options"):
        command(*case, *click)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == first
    assert not document(folder.parents[1])["prompts"]["clicks"]
    out = command(*case, *click, "--overwrite")
    assert document(out)["prompts"]["clicks"] and len([*folder.iterdir()]) == len(FILES)
    assert not [path for path in out.iterdir() if path.name.endswith(".part")]


def test_other_voxels_beside_an_image_s_header_are_another_image(
    command: Command, case, tiny_dataset: Path, tmp_path: Path
) -> None:
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.ReadImage(str(tiny_dataset / "p3_image.nii.gz"))
    sitk.WriteImage(image, str(tmp_path / "ct.nhdr"))
    (tmp_path / "ct.nhdr").rename(tmp_path / "ct.nrrd")
    options = *case, "--image", tmp_path / "ct.nrrd"
    command(*options)
    voxels = bytearray((tmp_path / "ct.raw").read_bytes())
    voxels[:4] = voxels[-4:]
    (tmp_path / "ct.raw").write_bytes(voxels)
    with pytest.raises(errors.OutputExists, match="comes of other files"):
        command(*options)


@pytest.mark.parametrize("name", FILES)
def test_a_prediction_that_lacks_a_file_is_made_again(
    command: Command, case, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = command(*case) / "p3_image" / "orn"
    (folder / name).unlink()
    command(*case)
    assert f"orn lacks {name}: it is predicted again" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)

    (folder / name).unlink()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(errors.OutputExists, match=r"holds notes\.txt.* move notes\.txt away"):
        command(*case)
    (folder / "notes.txt").unlink()
    if name != "prediction.json":  # which says that the rest is not the same command's
        with pytest.raises(errors.OutputExists, match="comes of other files, prompts"):
            command(*case, "--click", "20,20,20,+")
    assert sorted(path.name for path in folder.iterdir()) == sorted({*FILES} - {name})


@pytest.mark.parametrize("name", ["mask_corrected.nii.gz", "raw/notes.txt", "mask.nii.gz/x"])
def test_files_that_are_not_a_predictions_are_not_replaced(
    command: Command, case, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "out" / "p3_image" / "orn" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    monkeypatch.setattr(cohort, "_results", lambda *_: pytest.fail("it was predicted"))
    for options in ((), ("--overwrite",)):
        with pytest.raises(errors.OutputExists, match=f"orn holds {name.split('/')[0]}") as refused:
            command(*case, *options)
        assert "--overwrite" not in str(refused.value)
    assert mine.read_text() == "mine"


def test_a_result_is_kept_beside_other_files(command: Command, case, tmp_path: Path) -> None:
    mine = command(*case) / "p3_image" / "orn" / "mask_corrected.nii.gz"
    mine.write_text("mine")
    command(*case)
    with pytest.raises(errors.OutputExists, match="orn holds mask_corrected"):  # not --overwrite
        command(*case, "--click", "20,20,20,+")
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", FILES)
def test_an_emptied_file_is_made_again(
    command: Command, case, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = command(*case) / "p3_image" / "orn" / name
    path.write_bytes(b"")
    command(*case)
    assert f"orn lacks {name}: it is predicted again" in capsys.readouterr().out
    assert path.stat().st_size


def test_a_file_of_another_size_is_no_result_and_not_replaced_unasked(
    command: Command, case, capsys: pytest.CaptureFixture[str]
) -> None:
    path = command(*case) / "p3_image" / "orn" / "mask.nii.gz"
    path.write_bytes(b"corrected by hand")
    for gone in ((), ("prediction.png",)):
        for name in gone:
            (path.parent / name).unlink()
        with pytest.raises(errors.OutputExists, match=r"mask\.nii\.gz has another size"):
            command(*case)
        assert path.read_bytes() == b"corrected by hand"
    path.rename(path.parents[3] / "kept.nii.gz")
    command(*case)
    assert "lacks mask.nii.gz, prediction.png: it is predicted" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["p3_image", "p3_image/orn", "summary.csv/x", "summary.md/x"])
def test_a_place_that_is_taken_is_told_before_anything_is_predicted(
    command: Command, case, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out" / place
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(cohort, "_results", lambda *_: pytest.fail("it was predicted"))
    taken = place.removesuffix("/x")
    with pytest.raises(errors.OutputExists, match=f"out/{taken} is (no|a) folder, but"):
        command(*case, "--overwrite")
    assert path.is_symlink()


def test_a_taken_place_stops_no_other_case(command: Command, tiny_dataset: Path) -> None:
    options = "--dataset", tiny_dataset, "--split", "test"
    out = command(*options)
    shutil.rmtree(out / "p3_orn")
    (out / "p3_orn").write_text("a file")
    with pytest.raises(errors.CasesFailed, match="1 of 2"):
        command(*options)
    assert [(row["case"], row["error"]) for row in rows(out)] == [
        ("p3_orn", "output_exists"),
        ("p4_ce", ""),
    ]


def test_training_cases_that_are_copied_later_make_other_predictions(
    loaded: Segmenter, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    reference = Reference.fit(rng.normal(size=(4, 3)), np.arange(4), np.full(4, "orn"))
    assert reference is not None
    content = reference.packed()
    known = calibration(arrays=sha256(content)).to_dict()
    trained = dataclasses.replace(loaded.trained, folder=tmp_path, calibration=known)
    monkeypatch.setattr(loaded, "trained", trained)
    monkeypatch.setattr(outputs, "draw_prediction", lambda *_, out, **__: out.write_bytes(b"x"))
    image, dose = (tiny_dataset / f"p3_{part}.nii.gz" for part in ("image", "dose"))
    requests = [Request("p3", ("orn",), image, dose)]
    options = cohort.Options(tmp_path / "out", repeats=0)
    cohort.predict_cases(loaded, requests, options)
    cohort.predict_cases(loaded, requests, options)
    (tmp_path / "calibration.npz").write_bytes(content)
    with pytest.raises(errors.OutputExists):
        cohort.predict_cases(loaded, requests, options)
    known["fit"]["temperature"] = "hot"
    monkeypatch.setattr(loaded, "trained", dataclasses.replace(trained))  # as another command
    with pytest.raises(errors.UnreadableFile, match=r"model\.json is damaged"):
        cohort.predict_cases(loaded, requests, options)


KILLED_AT_THE_LAST_FILE = """
import os, signal, sys
from rtsam_jax import predict
from rtsam_jax.prediction import outputs
outputs.draw_prediction = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
predict.main()
"""


def test_a_killed_command_leaves_nothing_to_be_seen(
    command: Command, run: Path, case, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = [*case, "--checkpoint", run, "--out", out, "--repeats", 0]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT_THE_LAST_FILE, *map(str, options)],
        env=command_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    hidden = [path for path in out.rglob("*") if path.is_file()]
    assert {path.name for path in hidden} >= {"mask.nii.gz", "entropy.nii.gz"}
    assert all(path.relative_to(out).parts[0].startswith(".") for path in hidden)
    assert not [path for path in out.iterdir() if not path.name.startswith(".")]
    command(*case)
    assert sorted(path.name for path in (out / "p3_image" / "orn").iterdir()) == sorted(FILES)
    assert {path.name for path in out.glob(".*")} == {".lock"}
