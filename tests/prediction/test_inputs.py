"""What a user gives, in a user's frames, to what the model takes."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.data.file_grid import FileGrid
from rtsam_jax.data.grid import Grid, model_grid
from rtsam_jax.data.nifti import Volume, placed, write_volume
from rtsam_jax.errors import ConfigError, MissingFile, PromptOutside, RecordError, VolumeError
from rtsam_jax.prediction.inputs import (
    GivenBox,
    GivenClick,
    Request,
    box_on_grid,
    click_in_world,
    parse_box,
    parse_click,
    parse_record,
    read_inputs,
    read_record,
)
from tests.data.test_nifti import ORIENTATIONS, oblique_affine

SHAPE = (12, 9, 7)


def stored_grid(orientation: np.ndarray, affine: np.ndarray) -> tuple[FileGrid, Grid]:
    """A file's grid, and the model's at the file's own (equal) spacing."""
    image = Volume(np.zeros(SHAPE, np.float32), affine)
    turned = nibabel.apply_orientation(image.array, orientation)
    place = affine @ nibabel.orientations.inv_ornt_aff(orientation, SHAPE)
    x, y, z = turned.shape
    return FileGrid((x, y, z), place, placed(place)), model_grid(image, 2.0)


boxes = st.tuples(
    *[st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).map(sorted) for n in SHAPE]
)


@settings(max_examples=30, deadline=None)
@given(orientation=st.sampled_from(ORIENTATIONS), box=boxes)
def test_a_box_of_voxels_is_the_same_place_in_any_order_of_axes(orientation, box) -> None:
    image, grid = stored_grid(orientation, oblique_affine((2.0, 2.0, 2.0)))
    ours = np.array(box, float).T  # (2, 3), indices along R, A, S
    low, high = np.sort(np.rint(image.to_index(grid.to_world(ours))), axis=0).tolist()
    found = box_on_grid(GivenBox((tuple(low), tuple(high)), "voxel"), image, grid, name="c")
    np.testing.assert_array_equal(found, ours)


@settings(max_examples=30, deadline=None)
@given(orientation=st.sampled_from(ORIENTATIONS), box=boxes)
def test_a_box_in_the_world_holds_what_it_is_drawn_around(orientation, box) -> None:
    image, grid = stored_grid(orientation, np.diag([2.0, 2.0, 2.0, 1.0]))
    low, high = np.array(box, float).T
    corners = (tuple(grid.to_world(low - 0.4).tolist()), tuple(grid.to_world(high + 0.4).tolist()))
    found = box_on_grid(GivenBox(corners, "world"), image, grid, name="c")
    np.testing.assert_array_equal(found, [low, high])


@settings(max_examples=20, deadline=None)
@given(orientation=st.sampled_from(ORIENTATIONS), seed=st.integers(0, 99))
def test_a_click_is_the_same_point_in_both_frames(orientation, seed: int) -> None:
    image, _ = stored_grid(orientation, oblique_affine())
    at = np.random.default_rng(seed).uniform(-0.5, np.array(image.shape) - 0.5)
    world = click_in_world(GivenClick(tuple(at.tolist()), True, "voxel"), image, name="c")
    assert click_in_world(GivenClick(world, True, "world"), image, name="c") == world
    np.testing.assert_allclose(image.to_index(np.array(world)), at, atol=1e-9)


def test_what_lies_outside_the_image_is_said_with_its_extent() -> None:
    image, grid = stored_grid(ORIENTATIONS[0], np.diag([2.0, 2.0, 2.0, 1.0]))
    with pytest.raises(PromptOutside, match=r"\(12, 0, 0\) \(voxel\) .* 12 x 9 x 7 voxels"):
        click_in_world(GivenClick((12, 0, 0), True, "voxel"), image, name="c")
    with pytest.raises(PromptOutside, match=r"between \(-1, -1, -1\) and \(23, 17, 13\) mm"):
        click_in_world(GivenClick((0, 18, 0), True, "world"), image, name="c")
    whole = ((0.0, 0.0, 0.0), (11.0, 8.0, 6.0))
    np.testing.assert_array_equal(
        box_on_grid(GivenBox(whole, "voxel"), image, grid, name="c"), whole
    )
    for corners, beyond in (
        (((0, 0, 0), (11, 9, 6)), "reaches 1 voxels beyond"),  # larger than the image
        (((40, 40, 40), (45, 45, 45)), "reaches 39 voxels beyond"),  # beside it
    ):
        with pytest.raises(PromptOutside, match=beyond):
            box_on_grid(GivenBox(corners, "voxel"), image, grid, name="c")


@pytest.mark.parametrize("text", ["1,2,3", "1,2,+", "1,2,3,4,+", "a,2,3,+", "1,nan,3,-", "", "+"])
def test_a_click_must_be_three_numbers_and_a_sign(text: str) -> None:
    with pytest.raises(ConfigError, match="must be x,y,z"):
        parse_click(text, "voxel")


@pytest.mark.parametrize("text", ["1,2,3", "5,0,0,4,1,1", "1,2,3,4,5,inf", "1,2,3,4,5,6,7"])
def test_a_box_must_be_six_numbers_in_order(text: str) -> None:
    with pytest.raises(ConfigError, match="must be x0,y0,z0"):
        parse_box(text, "voxel")


def test_well_formed_clicks_and_boxes_are_read() -> None:
    assert parse_click("-1.5, 2,3e1,-", "world") == GivenClick((-1.5, 2, 30), False, "world")
    assert parse_box("-1,0,2,3,4,5", "voxel") == GivenBox(((-1, 0, 2), (3, 4, 5)), "voxel")


def test_a_record_on_the_command_line_has_the_types_of_its_fields() -> None:
    given = parse_record(
        [
            "age=61",
            "sex=female",
            "surgery=TRUE",
            "smoking=former",
            "alcohol=false",
            "hpv = negative",
        ]
    )
    assert given == {
        **{"age": 61, "sex": "female", "surgery": True, "smoking": "former"},
        **{"alcohol": False, "hpv": "negative"},
    }


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["age"], "must be FIELD=VALUE"),
        (["age=61", "age=62"], "each field once"),
        (["patient_name=x"], "identifies a person"),
        (["lesion_size=3"], "must not carry the answer"),
    ],
)
def test_a_malformed_record_is_refused(texts: list[str], sentence: str) -> None:
    with pytest.raises(RecordError, match=sentence):
        parse_record(texts)


def test_a_record_file_is_one_object_of_known_fields(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    for content, sentence in (("[1]", "one JSON object"), ('{"age": [1]}', "a text or a number")):
        path.write_text(content)
        with pytest.raises(RecordError, match=sentence):
            read_record(path)
    path.write_text('{"age": 61, "surgery": true}')
    assert read_record(path) == {"age": 61, "surgery": True}
    with pytest.raises(MissingFile, match="There is no record"):
        read_record(tmp_path / "none.json")


def files(folder: Path) -> Request:
    volume = Volume(np.arange(756, dtype=np.float32).reshape(SHAPE), oblique_affine())
    for name in ("image", "dose"):
        write_volume(folder / f"{name}.nii.gz", volume, np.float32)
    mask = Volume(volume.array > 652, volume.affine)
    write_volume(folder / "mask.nii.gz", mask, np.uint8)
    (folder / "record.json").write_text(json.dumps({"age": 61}))
    return Request(
        "c1",
        ("orn",),
        *(folder / f"{name}.nii.gz" for name in ("image", "dose", "mask")),
        record=folder / "record.json",
    )


def test_a_request_is_read_as_it_names_its_files(tmp_path: Path) -> None:
    inputs = read_inputs(files(tmp_path))
    assert inputs.mask is not None and inputs.mask.array.dtype == bool
    assert inputs.mask.array.sum() == 103 and inputs.record == {"age": 61}
    assert inputs.dose is not None and inputs.grid.shape == inputs.image.shape == SHAPE


def test_the_contents_change_with_every_part(tmp_path: Path) -> None:
    request = files(tmp_path)
    first = request.contents()
    (tmp_path / "image.nii.gz").touch()
    assert request.contents() == first  # by content, not by date
    (tmp_path / "record.json").write_text(json.dumps({"age": 62}))
    assert {part for part, held in request.contents().items() if held != first[part]} == {"record"}


def test_a_record_that_a_prompt_must_not_say_and_a_map_as_mask_are_refused(tmp_path: Path) -> None:
    request = files(tmp_path)
    (tmp_path / "record.json").write_text(json.dumps({"age": 200}))
    with pytest.raises(RecordError, match="record.json: record field 'age' must be"):
        read_inputs(request)
    (tmp_path / "record.json").write_text("{}")
    write_volume(
        tmp_path / "mask.nii.gz",
        Volume(np.arange(756).reshape(SHAPE) % 3, oblique_affine()),
        np.uint8,
    )
    with pytest.raises(
        VolumeError, match="initial mask .* holds the values 1, 2; store a mask of one"
    ):
        read_inputs(request)
