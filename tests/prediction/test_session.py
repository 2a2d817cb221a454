"""A saved session is had again, or an error says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rtsam_jax import errors
from rtsam_jax.data.nifti import Volume, read_volume, write_volume
from rtsam_jax.prediction.segmenter import Click, Prompts, Segmenter
from rtsam_jax.prediction.session import Source, read_session
from tests.prediction.random_run import save_random_run
from tests.tiny import SHAPE, tiny_config

CLICKS = (Click((40.0, 38.0, 42.0), True), Click((36.0, 48.0, 30.0), False))


@pytest.fixture
def place(tiny_dataset: Path, tmp_path: Path) -> Path:
    """A folder of one patient: image, dose, another tool's mask."""
    folder = tmp_path / "patient"
    folder.mkdir()
    for what in ("image", "dose"):
        shutil.copy(tiny_dataset / f"p3_{what}.nii.gz", folder)
    mask = np.zeros(SHAPE, np.uint8)
    mask[15:25, 15:25, 15:25] = 1
    affine = read_volume(folder / "p3_image.nii.gz").affine
    write_volume(folder / "other.nii.gz", Volume(mask, affine), np.uint8)
    return folder


@pytest.fixture(scope="module")
def segmenter(run: Path) -> Segmenter:
    return Segmenter.from_checkpoint(run)


def saved(segmenter: Segmenter, place: Path) -> np.ndarray:
    """Saves a session with every kind of action; the mask that it led to."""
    image, dose = place / "p3_image.nii.gz", place / "p3_dose.nii.gz"
    segmenter.set_case(image, dose, task="orn", record={"age": 47}, name="p3")
    segmenter.predict(Prompts(CLICKS[:1]))
    segmenter.predict(Prompts(CLICKS, mask=place / "other.nii.gz"))
    segmenter.click((44.0, 40.0, 40.0), positive=False)
    segmenter.undo()
    prediction = segmenter.click((38.0, 40.0, 46.0))
    segmenter.save(place / "session.json")
    return prediction.mask().array


def test_another_process_does_again_what_was_done(
    segmenter: Segmenter, run: Path, place: Path, tmp_path: Path
) -> None:
    mask = saved(segmenter, place)
    content = json.loads((place / "session.json").read_text())
    assert [entry["action"] for entry in content["actions"]] == [
        *("begin", "click", "begin", "click", "click", "click", "undo", "click")
    ]
    assert content["case"]["record"] == {"age": 47} and content["case"]["task"] == "orn"
    place.rename(tmp_path / "moved")  # with the files, which lie below it
    again = Segmenter.from_checkpoint(run)
    prediction = again.load(tmp_path / "moved" / "session.json")
    np.testing.assert_array_equal(prediction.mask().array, mask)
    assert again.opened.name == "p3"
    assert (again.undo().turn.labels >= 0).sum() == 2
    again.click((38.0, 40.0, 46.0))
    again.save(tmp_path / "moved" / "again.json")
    assert read_session(tmp_path / "moved" / "again.json").actions[8:] == (
        *read_session(tmp_path / "moved" / "session.json").actions[6:],
    )


def test_a_box_and_no_dose(segmenter: Segmenter, place: Path) -> None:
    box = np.array([(10, 11, 12), (24, 25, 26)])
    segmenter.set_case(place / "p3_image.nii.gz", task="orn", box=box)
    mask = segmenter.click(CLICKS[0].at_mm).mask()
    segmenter.save(place / "session.json")
    np.testing.assert_array_equal(segmenter.load(place / "session.json").mask().array, mask.array)


@pytest.mark.parametrize(
    ("file", "what"),
    [("p3_image", "image"), ("p3_dose", "dose"), ("other", "initial mask")],
)
def test_a_file_that_has_changed(segmenter: Segmenter, place: Path, file: str, what: str) -> None:
    saved(segmenter, place)
    path = place / f"{file}.nii.gz"
    content = path.read_bytes()
    volume = read_volume(path)
    volume.array[0, 0, 0] += 1
    write_volume(path, volume, np.float32)
    with pytest.raises(errors.SessionMismatch, match=f"The {what} .* is not what it was"):
        segmenter.load(place / "session.json")
    path.unlink()
    with pytest.raises(errors.MissingFile, match=file):
        segmenter.load(place / "session.json")
    path.write_bytes(content)
    segmenter.load(place / "session.json")


def test_another_model_or_another_mask(
    segmenter: Segmenter, place: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    saved(segmenter, place)
    other = save_random_run(tmp_path / "other", tiny_config(tiny_dataset), seed=9)
    with pytest.raises(errors.SessionMismatch, match="was saved with the weights"):
        Segmenter.from_checkpoint(other).load(place / "session.json")
    content = json.loads((place / "session.json").read_text())
    del content["actions"][-1]
    (place / "session.json").write_text(json.dumps(content))
    with pytest.raises(errors.SessionMismatch, match="leads to another mask"):
        segmenter.load(place / "session.json")


def test_what_came_as_an_array_cannot_be_named(segmenter: Segmenter, place: Path) -> None:
    image, dose = (read_volume(place / f"p3_{what}.nii.gz") for what in ("image", "dose"))
    path = place / "session.json"
    for given in ((image, dose), (place / "p3_image.nii.gz", dose)):
        segmenter.set_case(*given, task="orn")
        with pytest.raises(errors.ConfigError, match="given as an array"):
            segmenter.save(path)
    segmenter.set_case(place / "p3_image.nii.gz", place / "p3_dose.nii.gz", task="orn")
    segmenter.predict(Prompts(mask=read_volume(place / "other.nii.gz")))
    segmenter.click(CLICKS[0].at_mm)
    with pytest.raises(errors.ConfigError, match="given as an array"):
        segmenter.save(path)
    assert not path.exists()
    mask = segmenter.predict(Prompts(CLICKS[1:])).mask().array  # without that mask
    segmenter.save(path)
    assert [action.action for action in read_session(path).actions] == ["begin", "click"]
    np.testing.assert_array_equal(segmenter.load(path).mask().array, mask)


def test_a_map_or_a_probability_is_no_initial_mask(segmenter: Segmenter, place: Path) -> None:
    segmenter.set_case(place / "p3_image.nii.gz", place / "p3_dose.nii.gz", task="orn")
    mask = read_volume(place / "other.nii.gz")
    for values, named in ((mask.array + 1, "the values 1, 2"), (mask.array * 0.6 + 0.2, "0.2")):
        write_volume(place / "other.nii.gz", Volume(values, mask.affine), np.float32)
        with pytest.raises(errors.VolumeError, match=f"initial mask .*other.* holds {named}"):
            segmenter.predict(Prompts(mask=place / "other.nii.gz"))


def test_a_mask_in_memory_is_held_to_what_a_file_is(segmenter: Segmenter, place: Path) -> None:
    segmenter.set_case(place / "p3_image.nii.gz", place / "p3_dose.nii.gz", task="orn")
    mask = read_volume(place / "other.nii.gz")
    whole = segmenter.predict(Prompts(mask=mask)).probability
    for marked in (mask.array > 0, 3 * mask.array.astype(np.uint8)):
        again = segmenter.predict(Prompts(mask=Volume(marked, mask.affine)))
        np.testing.assert_array_equal(again.probability, whole)
    for values, named in (
        (mask.array + 1, "in memory holds the values 1, 2; mark one structure"),
        (mask.array * 0.6 + 0.2, "in memory holds 0.2"),
        (np.where(mask.array > 0, np.nan, 0), "in memory has 1000 NaN"),
        (mask.array[0], r"array of float32 \(40, 40\)"),
    ):
        with pytest.raises(errors.VolumeError, match=f"initial mask {named}|mask in memory has an"):
            segmenter.predict(Prompts(mask=Volume(values, mask.affine)))


def test_numpys_scalars_in_a_record_are_saved(segmenter: Segmenter, place: Path) -> None:
    files = (place / "p3_image.nii.gz", place / "p3_dose.nii.gz")
    record = {"age": np.int64(47), "surgery": np.bool_(True), "prescription_gy": np.float32(66)}
    mask = segmenter.set_case(*files, task="orn", record=record) and segmenter.predict().mask()
    segmenter.save(place / "session.json")
    content = json.loads((place / "session.json").read_text())
    assert content["case"]["record"] == {"age": 47, "surgery": True, "prescription_gy": 66.0}
    np.testing.assert_array_equal(segmenter.load(place / "session.json").mask().array, mask.array)
    content["case"]["record"] = {"age": [61]}
    (place / "session.json").write_text(json.dumps(content))
    with pytest.raises(errors.RecordError, match="record field 'age' must be a whole number"):
        segmenter.load(place / "session.json")


def test_a_session_that_cannot_be_loaded_leaves_the_open_case(
    segmenter: Segmenter, place: Path
) -> None:
    saved(segmenter, place)
    path = place / "session.json"
    path.write_text(path.read_text().replace('"mask_sha256": "', '"mask_sha256": "x'))
    box = np.array([(10, 11, 12), (24, 25, 26)])
    segmenter.set_case(place / "p3_image.nii.gz", task="ce", box=box, name="kept")
    before = segmenter.click(CLICKS[0].at_mm)
    with pytest.raises(errors.SessionMismatch, match="leads to another mask"):
        segmenter.load(path)
    (place / "other.nii.gz").unlink()
    with pytest.raises(errors.MissingFile, match=r"other.nii.gz"):
        segmenter.load(path)
    assert (segmenter.opened.name, segmenter.opened.task.name) == ("kept", "ce")
    assert (segmenter.undo().turn.labels >= 0).sum() == 0
    again = segmenter.click(CLICKS[0].at_mm)
    np.testing.assert_array_equal(again.probability, before.probability)


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", '{"kind": "session", "schema": 9}', '{"kind": "session", "schema": 1}'),
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_damaged_session(segmenter: Segmenter, tmp_path: Path, content: str) -> None:
    path = tmp_path / "session.json"
    with pytest.raises(errors.MissingFile, match="no session"):
        segmenter.load(path)
    path.write_text(content)
    with pytest.raises(errors.UnreadableFile, match="session.json cannot be read"):
        segmenter.load(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weights", 5),
        ("mask_sha256", None),
        ("case/name", ["p3"]),
        ("case/record", [61]),
        ("case/image/sha256", 1),
        ("case/box", [[0, 0, 0]]),
        ("case/box", [[0, 0, 0], [1, 1, "a"]]),
        ("case/box", [[0, 0, 0.5], [1, 1, 1]]),
        ("actions/1/positive", "false"),
        ("actions/1/at_mm", [1.0, 2.0]),
        ("case/image/path", "p3\0.nii.gz"),
        ("case/image/path", "p3\ud800.nii.gz"),
        ("case/image/path", 5),
    ],
)
def test_a_session_of_wrong_values(
    segmenter: Segmenter, place: Path, field: str, value: object
) -> None:
    saved(segmenter, place)
    path = place / "session.json"
    content = json.loads(path.read_text())
    *parents, last = field.split("/")
    part = content
    for name in parents:
        part = part[int(name) if isinstance(part, list) else name]
    part[last] = value
    path.write_text(json.dumps(content))
    with pytest.raises(errors.UnreadableFile, match="session.json cannot be read"):
        segmenter.load(path)


def test_a_place_that_is_no_session(segmenter: Segmenter, place: Path) -> None:
    saved(segmenter, place)
    (place / "folder").mkdir()
    with pytest.raises(errors.UnreadableFile, match="folder cannot be read .Is a directory"):
        segmenter.load(place / "folder")
    for path in (place / "folder", place / "session.json" / "below"):
        named = rf"The session {path} cannot be written \((?!None)"
        with pytest.raises(errors.NotWritable, match=named):
            segmenter.save(path)
    for place_of_none in ("", None, 5):
        for use in (segmenter.save, segmenter.load):
            with pytest.raises(errors.ConfigError, match="session's file is given as .*; give the"):
                use(place_of_none)
    assert not [*place.glob(".*")]


def test_a_source_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(errors.UnreadableFile, match="The dose .* cannot be read"):
        Source.of(tmp_path, what="dose")


def test_an_unknown_action_is_not_passed_over(segmenter: Segmenter, place: Path) -> None:
    saved(segmenter, place)
    content = json.loads((place / "session.json").read_text())
    content["actions"][0]["action"] = "lasso"
    (place / "session.json").write_text(json.dumps(content))
    with pytest.raises(errors.UnreadableFile, match="action 'lasso' is unknown"):
        segmenter.load(place / "session.json")
