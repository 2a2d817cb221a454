"""A prediction's folder is there whole or not at all, and an empty mask says why it is empty."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import errno
import functools
import json
import math
import os
import resource
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rtsam_jax.data.failure import Failure
from rtsam_jax.data.nifti import Volume
from rtsam_jax.errors import NotWritable, OutputExists, UnreadableFile
from rtsam_jax.prediction import cohort, outputs
from rtsam_jax.prediction.document import Result
from rtsam_jax.prediction.inputs import Request, parse_click
from rtsam_jax.prediction.outputs import only_one, write_result
from rtsam_jax.prediction.predicted import Prediction
from rtsam_jax.prediction.remarks import guess_modality, remarks
from rtsam_jax.prediction.segmenter import Segmenter
from rtsam_jax.prediction.summary import write_summary
from tests.prediction.commanding import document, rows


@pytest.fixture(scope="module")
def result(
    loaded: Segmenter, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    """What the command makes of a case before it is written."""
    kept: list[Result] = []
    image, dose = (tiny_dataset / f"p3_{part}.nii.gz" for part in ("image", "dose"))
    options = cohort.Options(tmp_path_factory.mktemp("unused"), repeats=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cohort, "write_result", lambda out, made, trained: kept.append(made))
        cohort.predict_cases(loaded, [Request("p3_image", ("orn",), image, dose)], options)
    return kept[0]


@pytest.fixture
def empty(result: Result) -> Result:
    """The same as if no voxel had reached one half."""
    return dataclasses.replace(
        result,
        mask=np.zeros_like(result.mask),
        probability=(result.probability / result.probability.max() * 0.31).astype(np.float32),
    )


def visible(out: Path) -> list[str]:
    return [path.name for path in out.rglob("*") if not path.name.startswith(".")]


def test_an_empty_mask_is_a_result_with_a_reason(
    empty: Result, loaded: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles, draw = [], outputs.draw_prediction
    monkeypatch.setattr(
        outputs,
        "draw_prediction",
        lambda *parts, **named: (titles.append(named["title"]), draw(*parts, **named)),
    )
    with only_one(tmp_path):
        write_result(tmp_path, empty, loaded.trained)
        table = write_summary(tmp_path, [], "Predictions")
    reason = "no voxel reached 0.5; the largest probability on the image's grid is 0.31"
    told = document(tmp_path)
    assert told["mask"]["empty"] == reason and told["mask"]["volume_ml"] == 0
    assert told["mask"]["longest_diameter_mm"] == 0 and told["dose"]["mean_in_mask"] is None
    assert reason in table and reason in titles[0]
    assert (tmp_path / "p3_image" / "orn" / "prediction.png").stat().st_size > 10_000
    with (tmp_path / "summary.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["result"], row["mean_dose"]) == ("empty", "")


def test_a_result_is_given_up_before_the_next_is_made(
    loaded: Segmenter, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, dose = (tiny_dataset / f"p4_{part}.nii.gz" for part in ("image", "dose"))
    written: list[weakref.ref[Result]] = []
    alive: list[int] = []
    predict = cohort._predict

    def counting(*given: Any) -> Result:
        alive.append(sum(result() is not None for result in written))
        return predict(*given)

    monkeypatch.setattr(cohort, "_predict", counting)
    monkeypatch.setattr(
        cohort, "write_result", lambda out, result, trained: written.append(weakref.ref(result))
    )
    requests = [Request(case, ("ce", "crn"), image, dose) for case in ("a", "b")]
    cohort.predict_cases(loaded, requests, cohort.Options(tmp_path, repeats=0))
    assert len(written) == 4 and alive == [0] * 4


@pytest.mark.parametrize("renew", [False, True])
@pytest.mark.parametrize("limit", [1000, 300_000])
def test_a_disk_that_fills_up_leaves_what_was_there(
    result: Result, loaded: Segmenter, tmp_path: Path, limit: int, renew: bool
) -> None:
    if renew:
        write_result(tmp_path, result, loaded.trained)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(NotWritable, match="p3_image/orn cannot be written .File too large"):
            write_result(tmp_path, result, loaded.trained)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not [*tmp_path.glob(".*")]


@pytest.mark.parametrize("at", ["write_json", "_draw"])
def test_no_space_ends_the_command_whichever_file_it_was(
    result: Result, loaded: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs, at, full)
    monkeypatch.setattr(cohort, "_results", lambda *_: iter([result]))
    several = [result.request, dataclasses.replace(result.request, case="other")]
    with pytest.raises(NotWritable, match="No space left on device"):
        cohort.predict_cases(loaded, several, cohort.Options(tmp_path, repeats=0))
    assert visible(tmp_path) == []


def test_what_came_meanwhile_is_not_replaced(
    result: Result, loaded: Segmenter, tmp_path: Path
) -> None:
    write_result(tmp_path, result, loaded.trained)
    folder = tmp_path / "p3_image" / "orn"
    (folder / "corrected.nii.gz").touch()
    with pytest.raises(OutputExists, match="orn holds corrected"):
        write_result(tmp_path, result, loaded.trained)
    assert sorted(os.listdir(folder)) == sorted((*outputs.FILES, "corrected.nii.gz"))
    assert visible(tmp_path)[0] == "p3_image" and not [*tmp_path.glob(".*")]


def test_files_are_on_the_disk_before_they_are_seen(
    result: Result, loaded: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    put = outputs._put

    def checked(beside: Path, folder: Path) -> None:
        assert {path.name for path in beside.iterdir()} == {*outputs.FILES}
        assert {path.stat().st_ino for path in beside.iterdir()} <= synced
        put(beside, folder)

    monkeypatch.setattr(os, "fsync", lambda handle: synced.add(os.fstat(handle).st_ino))
    monkeypatch.setattr(outputs, "_put", checked)
    write_result(tmp_path, result, loaded.trained)
    folder = tmp_path / "p3_image" / "orn"
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sizes.pop("prediction.json") and document(tmp_path)["bytes"] == sizes


def test_a_place_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputExists, match="is a file"), only_one(tmp_path / "file"):
        pass
    for out in (tmp_path / "file" / "out", Path("/sys/rtsam_jax")):  # which even root cannot make
        with pytest.raises(NotWritable, match="cannot be written"), only_one(out):
            pass


def test_a_folder_is_one_commands_alone_and_what_a_kill_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / ".rtsam-a.orn.part"
    left.mkdir()
    for name in ("mask.nii.gz", ".entropy.nii.gz.7.nii.gz", ".prediction.json.0a.part"):
        (left / name).write_text("half")
    with only_one(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {".lock"}
        with pytest.raises(OutputExists, match="in use by another command"), only_one(tmp_path):
            pass
    with only_one(tmp_path):
        pass


def test_what_is_not_ours_is_neither_removed_nor_renamed(
    result: Result, loaded: Segmenter, tmp_path: Path
) -> None:
    mine = f".rtsam-{result.request.case}.orn.part/notes.txt"
    for name in (".mine.part/f", mine, "sub/.git.old/f", "sub/git/f", "sub/.bashrc.old"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    before = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    with only_one(tmp_path), pytest.raises(NotWritable, match="File exists"):
        write_result(tmp_path, result, loaded.trained)
    (tmp_path / ".lock").unlink()
    assert {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_case_that_is_stale_is_listed_and_stops_no_other(
    loaded: Segmenter, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "draw_prediction", lambda *_, out, **__: out.write_bytes(b"x"))
    image, dose = (tiny_dataset / f"p3_{part}.nii.gz" for part in ("image", "dose"))
    requests = [Request(case, ("orn",), image, dose) for case in ("a", "b", "c")]
    options = cohort.Options(tmp_path, repeats=0)
    cohort.predict_cases(loaded, requests[:2], options)
    first = (tmp_path / "a" / "orn" / "prediction.json").read_bytes()
    stale = dataclasses.replace(requests[0], clicks=(parse_click("20,20,20,+", "voxel"),))
    table, failures = cohort.predict_cases(loaded, [stale, *requests[1:]], options)
    assert [(failure.case, failure.code) for failure in failures] == [("a", OutputExists.code)]
    assert "a/orn is there and comes of other files" in table and document(tmp_path, "c")
    with (tmp_path / "summary.csv").open(newline="") as file:
        found = [(row["case"], row["result"]) for row in csv.DictReader(file)]
    assert sorted(found) == [("a", "earlier mask"), ("a", "failed"), ("b", "mask"), ("c", "mask")]
    assert (tmp_path / "a" / "orn" / "prediction.json").read_bytes() == first
    with pytest.raises(OutputExists):
        cohort.predict_cases(loaded, [stale], options)


def test_a_command_that_fails_at_once_leaves_no_folder(tmp_path: Path) -> None:
    for name, left in (("new", []), ("used", ["new"])):
        with pytest.raises(ZeroDivisionError), only_one(tmp_path / "new"):
            for path in left:
                (tmp_path / "new" / path).touch()
            raise ZeroDivisionError(name)
        assert (tmp_path / "new").exists() == bool(left)


@pytest.mark.parametrize("renamed", [1, 2])
def test_a_prediction_that_is_being_replaced_outlives_a_kill(
    result: Result,
    loaded: Segmenter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    renamed: int,
) -> None:
    write_result(tmp_path, result, loaded.trained)
    folder = tmp_path / "p3_image" / "orn"
    (folder / "prediction.png").write_text("old")
    calls = []

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def replace(source: Path, target: Path) -> None:
        if len(calls) == renamed:
            killed()
        calls.append(source.rename(target))

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(outputs, "os", SimpleNamespace(**{**vars(os), "replace": replace}))
        patch.setattr(outputs, "shutil", SimpleNamespace(rmtree=killed))
        write_result(tmp_path, result, loaded.trained)
    assert folder.exists() == (renamed == 2)
    with only_one(tmp_path):
        assert ((folder / "prediction.png").read_bytes() == b"old") == (renamed == 1)
        assert document(tmp_path)["key"] == result.key
        assert [path.name for path in folder.parent.iterdir()] == ["orn"]
        assert {path.name for path in tmp_path.iterdir()} == {"p3_image", ".lock"}


def test_the_summary_is_of_all_that_lies_there_and_of_what_failed_now(
    result: Result, empty: Result, loaded: Segmenter, tmp_path: Path
) -> None:
    for case, made in (("b", result), ("a", empty)):
        request = dataclasses.replace(made.request, case=case)
        write_result(tmp_path, dataclasses.replace(made, request=request), loaded.trained)
    (tmp_path / "c" / "orn").mkdir(parents=True)
    other = tmp_path / "c" / "orn" / "prediction.json"
    other.write_text("{")  # another program's
    told = document(tmp_path, "b")
    for number, change in enumerate(({"schema": 9}, {"kind": "run"})):  # or another version's
        folder = tmp_path / f"d{number}" / "orn"
        folder.mkdir(parents=True)
        (folder / "prediction.json").write_text(json.dumps({**told, **change}))
    (tmp_path / "e" / "orn").mkdir(parents=True)
    parts = {name: told[name] for name in ("schema", "kind", "key")}
    (tmp_path / "e" / "orn" / "prediction.json").write_text(json.dumps(parts))
    failures = [Failure("bb", "no_overlap", "The dose | of bb is elsewhere.")]
    table = write_summary(tmp_path, failures, "Predictions: x")
    assert (tmp_path / "summary.md").read_text() == f"# Predictions: x\n\n{table}"
    with (tmp_path / "summary.csv").open(newline="") as file:
        found = [(row["case"], row["result"], row["error"]) for row in csv.DictReader(file)]
    assert found == [
        *(("a", "empty", ""), ("b", "mask", ""), ("bb", "failed", "no_overlap")),
        *((case, "unreadable", UnreadableFile.code) for case in ("c", "d0", "d1", "e")),
    ]
    assert f"{other} is damaged, or of another version or program; predict it again" in table


def test_a_copied_or_renamed_prediction_has_the_name_of_its_folder(
    result: Result, loaded: Segmenter, tmp_path: Path
) -> None:
    write_result(tmp_path, result, loaded.trained)
    for name in ("backup", "caf\udce9"):  # as of bytes that are no UTF-8
        shutil.copytree(tmp_path / "p3_image", tmp_path / name)
    (tmp_path / "p3_image").rename(tmp_path / "patient7")
    failures = [Failure("p3_image", "no_overlap", "in/caf\udce9 is elsewhere.")]
    table = write_summary(tmp_path, failures, "Predictions")
    found = [(row["case"], row["task"], row["result"]) for row in rows(tmp_path)]
    assert found == [
        ("backup", "orn", "mask"),
        ("caf?", "orn", "mask"),
        ("p3_image", "", "failed"),
        ("patient7", "orn", "mask"),
    ]
    assert table.count("It was predicted as p3_image/orn.") == 3 and "in/caf? is" in table


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("case",), ["p3_image"]),
        *((("mask", "volume_ml"), value) for value in ([1], {"a": 1}, "big", True, math.inf)),
        (("dose", "max_in_mask"), "high"),
        (("confidence", "quality"), [0.5]),
        (("confidence", "flag"), 1),
        (("model", "weights"), ["0"]),
        (("warnings",), "one"),
    ],
)
def test_values_that_no_prediction_has_make_it_unreadable(
    result: Result, loaded: Segmenter, tmp_path: Path, place: tuple[str, ...], value: object
) -> None:
    write_result(tmp_path, result, loaded.trained)
    told = document(tmp_path)
    *parents, last = place
    functools.reduce(lambda part, name: part[name], parents, told)[last] = value
    text = json.dumps(told).replace("Infinity", "1e999")
    (tmp_path / "p3_image" / "orn" / "prediction.json").write_text(text)
    write_summary(tmp_path, [], "Predictions")
    (row,) = rows(tmp_path)
    assert (row["case"], row["task"], row["result"]) == ("p3_image", "orn", "unreadable")


@pytest.mark.parametrize("flag", ["accept", "review", "reject"])
def test_the_summary_says_why_a_mask_is_not_accepted(
    result: Result, loaded: Segmenter, tmp_path: Path, flag: str
) -> None:
    reasons, warnings = ("one reason", "the dose is odd"), ("The axes are odd.", "the dose is odd.")
    confidence = dataclasses.replace(result.confidence, flag=flag, reasons=reasons)
    judged = dataclasses.replace(result, confidence=confidence, warnings=warnings)
    write_result(tmp_path, judged, loaded.trained)
    table = write_summary(tmp_path, [], "Predictions")
    with (tmp_path / "summary.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (
        row["what"]
        == {
            "accept": "The axes are odd. the dose is odd.",
            "review": "Review: one reason; the dose is odd. The axes are odd.",
            "reject": "Reject: one reason; the dose is odd. The axes are odd.",
        }[flag]
    )
    assert row["what"] in table


def test_a_mask_at_the_edges_is_remarked(result: Result) -> None:
    opened = result.opened
    window, image = opened.window.shape, result.inputs.image
    marked = np.ones(image.shape, bool)

    def said(place: tuple[slice | int, ...]) -> str:
        probability = np.zeros(window, np.float32)
        probability[place] = 0.9
        return " ".join(remarks(Prediction(opened, opened.first, probability), image, marked))

    middle = tuple(slice(n // 2, n // 2 + 1) for n in window)
    assert "reaches" not in said(middle)
    low = np.maximum(opened.origins.min(0), 0)
    ends = (opened.tiles.low + low)[0] == 0
    edge = said((int(low[0]), *middle[1:]))
    assert ("reaches the image's border" in edge) == ends
    assert ("edge of the region that the model is shown" in edge) == (not ends)


def test_values_like_those_of_air_are_a_cts(result: Result) -> None:
    image = result.inputs.image
    assert guess_modality(Volume(image.array - 1000, image.affine)) == "CT"
    assert guess_modality(Volume(np.abs(image.array), image.affine)) == "MR"
