"""Masks of any origin: scored like our own, compared, and nothing left out in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from rtsam_jax.data.nifti import Volume, write_volume
from rtsam_jax.errors import (
    ConfigError,
    MissingFile,
    NotWritable,
    OutputExists,
    RTSamError,
    UnreadableFile,
    VolumeError,
)
from rtsam_jax.evaluation.mask_files import Owner
from rtsam_jax.evaluation.mask_folders import MaskFolders, evaluate_masks
from tests.tiny import run_module

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
SHAPE = (12, 12, 10)


def block(start: int, size: int = 4, value: int = 1) -> np.ndarray:
    array = np.zeros(SHAPE, np.uint8)
    array[start : start + size, 4:8, 3:6] = value
    return array


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    write_volume(path, Volume(array, affine), array.dtype)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Four cases; method `near` is off by one voxel of four, `far` by two."""
    for i in range(4):
        save(tmp_path / "truth" / f"c{i}.nii.gz", block(3, value=i + 1))
        save(tmp_path / "near" / f"c{i}.nii.gz", block(4))
        save(tmp_path / "far" / f"c{i}.nii.gz", block(5, value=7))
    return tmp_path


def folders(place: Path, *methods: str, **more) -> MaskFolders:
    predictions = {name: str(place / name) for name in methods or ("near", "far")}
    return MaskFolders(str(place / "truth"), predictions, **more)


def run(place: Path, *methods: str, figures: int = 0, **more):
    given = folders(place, *methods, **more)
    return evaluate_masks(given, place / "out", kind="synthetic", figures=figures)


def results(place: Path) -> dict:
    return json.loads((place / "out" / "results.json").read_text())


def test_methods_are_scored_and_compared(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(place, figures=3)
    assert [m.dice for m in found["near"]] == [0.75] * 4
    assert [m.dice for m in found["far"]] == [0.5] * 4
    assert found["near"][0].volume_truth_ml == pytest.approx(4 * 4 * 3 * 2 / 1000)
    assert found["near"][0].hd95_mm == pytest.approx(1.0)
    assert {m.patient for m in found["near"]} == {"c0", "c1", "c2", "c3"}
    assert {m.task for m in found["near"]} == {"mask"}
    [dice] = [d for d in results(place)["differences"] if d["measure"] == "dice"]
    assert (dice["mean"], dice["n"]) == (0.25, 4)
    printed = capsys.readouterr().out
    assert "near, far against truth (synthetic)" in printed and "near - far" in printed
    assert "patient of its own" in printed
    pictures = sorted((place / "out" / "figures").iterdir())
    assert len(pictures) == 3
    assert all(matplotlib.image.imread(path).std() > 0.01 for path in pictures)
    assert (place / "out" / "report.html").read_text().count("<img") == 4 + 3


def test_cases_of_one_patient_are_resampled_together(place: Path) -> None:
    owners = {f"c{i}": Owner("p" if i < 3 else "q", ("orn",)) for i in range(4)}
    found = run(place, owners=owners)
    assert [m.patient for m in found["far"]] == ["p", "p", "p", "q"]
    assert {m.task for m in found["far"]} == {"orn"}
    assert not any("of its own" in note for note in results(place)["notes"])
    del owners["c2"]
    with pytest.raises(MissingFile, match="c2"):
        run(place, owners=owners)


def test_every_value_is_a_task(place: Path) -> None:
    for i in range(4):
        both = block(3) + block(8, size=2, value=5)
        save(place / "truth" / f"c{i}.nii.gz", both)
        save(place / "near" / f"c{i}.nii.gz", both if i else block(3))
    with pytest.raises(VolumeError, match="values 1, 5; name .* with --values"):
        run(place, "near")
    found = run(place, "near", values={"orn": 1, "ce": 5})["near"]
    assert [(m.case, m.task) for m in found][:2] == [("c0", "orn"), ("c0", "ce")]
    assert [m.dice for m in found] == [1, 0, *[1] * 6] and found[1].missed
    owners = {f"c{i}": Owner(f"p{i}", ("ce",)) for i in range(4)}
    found = run(place, "near", values={"orn": 1, "ce": 5}, owners=owners)["near"]
    assert [m.task for m in found] == ["ce"] * 4
    for values, task in (({}, ("orn", "ce")), ({"orn": 1}, ("ce",))):
        owners["c3"] = Owner("p3", task)
        with pytest.raises(ConfigError, match="--values"):
            run(place, "near", values=values, owners=owners)


def test_a_value_of_no_file_is_an_error_and_one_of_no_scored_case_is_said(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(4):
        save(place / "truth" / f"c{i}.nii.gz", block(3))
    values = {"orn": 1, "typo": 8}
    with pytest.raises(ConfigError, match=r"holds the value 8 \(task typo\)"):
        run(place, "near", values=values)
    assert not (place / "out").exists()
    assert "evaluated" not in capsys.readouterr().out  # nothing is scored for nothing
    save(place / "near" / "c3.nii.gz", block(4) + block(9, size=2, value=8))
    run(place, "near", values=values)
    assert not any("Task" in note for note in results(place)["notes"])
    owners = {f"c{i}": Owner("p", ("orn", "typo") if i < 2 else ("orn",)) for i in range(4)}
    run(place, "near", values=values, owners=owners)
    [note] = results(place)["notes"]
    assert note.startswith("Task typo is in no truth and in no mask of its cases")


def test_a_missing_prediction_is_empty_only_where_that_is_said(place: Path) -> None:
    (place / "far" / "c2.nii.gz").unlink()
    with pytest.raises(MissingFile, match=r"far has no mask for c2 \(1 in all\)"):
        run(place)
    found = run(place, allow_missing=True)
    assert [m.missed for m in found["far"]] == [False, False, True, False]
    assert found["far"][2].dice == 0
    note = "Counted as empty, for want of a file: 1 of 4 masks of far (c2)."
    assert note in results(place)["notes"]
    assert note in (place / "out" / "tables.md").read_text()


def test_another_grid_is_resampled_only_where_that_is_said(place: Path) -> None:
    fine = np.repeat(block(4), 2, axis=2)
    affine = np.eye(4)
    affine[2, 3] = -0.5
    save(place / "near" / "c1.nii.gz", fine, affine)
    with pytest.raises(VolumeError, match="mask of near of c1 is on another grid"):
        run(place)
    found = run(place, resampled=True)
    assert [m.dice for m in found["near"]] == [0.75] * 4
    assert any("the mask of near: 1 of 4 cases (c1)" in note for note in results(place)["notes"])


def test_false_positives_are_counted_in_structures(place: Path) -> None:
    save(place / "organs" / "cord" / "c0.nii.gz", block(7, size=1))
    found = run(place, structures=str(place / "organs"))
    assert found["near"][0].structures_ml == {"cord": pytest.approx(4 * 3 * 2 / 1000)}
    assert found["near"][1].structures_ml == {}
    assert "cord" in (place / "out" / "tables.md").read_text()
    (place / "organs" / "cord" / "c0.nii.gz").rename(place / "organs" / "cord" / "C0.nii.gz")
    with pytest.raises(MissingFile, match="cord has no mask of any case"):
        run(place, structures=str(place / "organs"))


def test_overlays_are_drawn_on_images_where_there_are_any(place: Path) -> None:
    run(place, figures=1)
    black = matplotlib.image.imread(place / "out" / "figures" / "c0_mask.png")
    image = np.random.default_rng(0).normal(size=(24, 24, 10)).astype(np.float32)
    for i in range(4):
        save(place / "images" / f"c{i}_0000.nii.gz", image, AFFINE @ np.diag([0.5, 0.5, 1, 1]))
    run(place, figures=1, images=str(place / "images" / "{case}_0000.nii.gz"))
    drawn = matplotlib.image.imread(place / "out" / "figures" / "c0_mask.png")
    assert np.abs(drawn - black).mean() > 0.02


def test_an_infinite_distance_is_the_diagonal_of_the_image_where_there_is_one(place: Path) -> None:
    save(place / "far" / "c0.nii.gz", block(0, size=0))
    save(place / "far" / "c1.nii.gz", block(0, size=0))
    save(place / "images" / "c0.nii", np.ones((30, 20, 10), np.float32), np.diag([1, 2, 4, 1]))
    found = run(place, "far", images=str(place / "images"))["far"]
    assert found[0].value("hd95_mm") == pytest.approx(np.linalg.norm([30, 40, 40]))
    assert found[1].value("hd95_mm") == pytest.approx(np.linalg.norm([12, 12, 20]))
    (place / "images" / "c0.nii").write_bytes(b"no")
    with pytest.raises(UnreadableFile, match="c0.nii"):
        run(place, "far", images=str(place / "images"))


def test_only_what_an_evaluation_of_masks_wrote_is_replaced(place: Path) -> None:
    run(place, figures=2)
    mine = place / "out" / "figures" / "mine.png"
    mine.touch()
    (place / "out" / ".hidden").touch()
    run(place, figures=1)
    assert sorted(path.name for path in mine.parent.iterdir()) == ["c0_mask.png", "mine.png"]
    for name, text in (("studies", ""), ("results.json", '{"studies": []}')):
        (place / "out" / name).write_text(text)
        before = {path: path.stat().st_mtime_ns for path in (place / "out").rglob("*")}
        with pytest.raises(OutputExists, match=name):
            run(place)
        assert before == {path: path.stat().st_mtime_ns for path in (place / "out").rglob("*")}
        (place / "out" / name).unlink()
    with pytest.raises(OutputExists, match="results.json"):
        run(place)


@pytest.mark.parametrize("where", ["file", "file/below", "/proc/none"])
def test_a_place_that_cannot_be_written_is_refused_before_scoring(
    place: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "file").touch()
    with pytest.raises(NotWritable, match="cannot be written"):
        evaluate_masks(folders(place), place / where, kind="synthetic", figures=0)
    assert "evaluated" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda place: shutil.rmtree(place / "truth"), MissingFile),
        (lambda place: save(place / "near" / "c9.nii.gz", block(3)), MissingFile),
        (lambda place: (place / "near" / "c1.nii.gz").write_bytes(b"no"), RTSamError),
        (lambda place: save(place / "out" / "mine.nii.gz", block(3)), OutputExists),
    ],
)
def test_nothing_is_written_where_something_is_wrong(
    place: Path, damage: Callable[[Path], None], error: type[Exception]
) -> None:
    damage(place)
    before = sorted(place.rglob("*"))
    with pytest.raises(error):
        run(place)
    assert sorted(place.rglob("*")) == before


def test_the_command(place: Path) -> None:
    rows = "".join(f"c{i},p{i}\n" for i in range(4))
    (place / "patients.csv").write_text(f"case,patient\n{rows}")
    options = ["--truth", "truth", "--pred", "best=near", "far", "--patients", "patients.csv"]
    result = run_module("evaluate", *options, "--kind", "synthetic", cwd=place)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "best, far against truth (synthetic)" in result.stdout
    assert (place / "runs" / "evaluation" / "report.html").is_file()
    (place / "far" / "c3.nii.gz").unlink()
    result = run_module("evaluate", *options, cwd=place)
    assert result.returncode == 3 and "Traceback" not in result.stderr
    assert result.stderr.startswith("error[missing_file]: far has no mask for c3")
