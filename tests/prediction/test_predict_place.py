"""Masks lie where the lesion is, whatever the axes, the tilt and the format of the files."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rtsam_jax.data.nifti import Volume, read_volume, write_volume
from rtsam_jax.geometry import index_map, resample
from rtsam_jax.metrics.overlap import dice
from rtsam_jax.prediction.predicted import Click, Prompts
from rtsam_jax.prediction.segmenter import Segmenter
from tests.prediction.commanding import Command, document
from tests.prediction.smooth_phantom import AFFINE, SHAPE, phantom, save, turned


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    for name, array in zip(("image", "dose"), phantom(SHAPE, AFFINE), strict=True):
        save(folder / f"{name}.nii", array, AFFINE)
    return folder


def predicted(command: Command, image: Path, dose: Path, case: str, task: str = "orn") -> Path:
    out = command("--image", image, "--dose", dose, "--task", task, "--case", case)
    mask = nibabel.load(out / case / task / "mask.nii.gz")
    if image.suffix == ".nii":  # it lies on the file, axis by axis
        ours = nibabel.load(image)
        assert mask.shape == ours.shape
        np.testing.assert_array_equal(mask.affine, ours.affine)
    return out / case / task / "mask.nii.gz"


@pytest.mark.parametrize(
    ("axes", "ending"),
    [("LPS", ".nii"), ("SRA", ".nii"), ("PIR", ".nii"), ("LPS", ".nrrd"), ("ASL", ".mha")],
)
def test_other_axes_and_formats_give_the_same_mask(
    command: Command, original: Path, tmp_path: Path, axes: str, ending: str
) -> None:
    expected = read_volume(
        predicted(command, original / "image.nii", original / "dose.nii", "original")
    )
    assert 0 < expected.array.sum() < expected.array.size
    image, dose = phantom(SHAPE, AFFINE)
    files = [
        save(tmp_path / f"{name}{ending}", *turned(array, code))
        for name, array, code in (("image", image, axes), ("dose", dose, axes[::-1]))
    ]
    found = read_volume(predicted(command, *files, "turned"))
    np.testing.assert_array_equal(found.array, expected.array)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)


def test_an_oblique_header_turns_the_mask_with_the_image(
    command: Command, original: Path, tmp_path: Path
) -> None:
    expected = predicted(command, original / "image.nii", original / "dose.nii", "original")
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", (0.3, -0.2, 0.4)).as_matrix()
    turn[:3, 3] = (-120, 33, 7)
    image, dose = phantom(SHAPE, AFFINE)
    files = [
        save(tmp_path / f"{name}.nii", array, turn @ AFFINE)
        for name, array in (("image", image), ("dose", dose))
    ]
    found = predicted(command, *files, "oblique")
    masks = [read_volume(path) for path in (expected, found)]
    assert dice(masks[1].array > 0, masks[0].array > 0) >= 0.98
    np.testing.assert_allclose(masks[1].affine, turn @ masks[0].affine, atol=1e-4)


@pytest.mark.parametrize("axis", range(3))
def test_a_copy_in_thinner_slices_has_its_mask_in_the_same_place(
    command: Command, original: Path, tmp_path: Path, axis: int
) -> None:
    expected = read_volume(
        predicted(command, original / "image.nii", original / "dose.nii", "original", "ce")
    )
    shape, affine = list(SHAPE), AFFINE.copy()
    shape[axis] *= 2
    affine[axis, axis], affine[axis, 3] = 1.0, -0.5  # the same field of view
    files = [
        save(tmp_path / f"{name}.nii", array, affine)
        for name, array in zip(("image", "dose"), phantom(shape, affine), strict=True)
    ]
    found = read_volume(predicted(command, *files, "resliced", "ce"))
    there = resample(found.array, index_map(found.affine, expected.affine), expected.shape) >= 0.5
    assert dice(there, expected.array > 0) >= 0.98
    folder = tmp_path / "out" / "resliced" / "ce"
    inside = read_volume(folder / "probability.nii.gz").array[found.array > 0]
    told = document(tmp_path / "out", "resliced", "ce")["confidence"]
    assert told["mean_probability"] == pytest.approx(inside.mean(dtype=float), rel=1e-6)


def test_clicks_and_an_initial_mask_are_those_of_the_segmenter(
    command: Command, loaded: Segmenter, tiny_dataset: Path, tmp_path: Path
) -> None:
    image, dose = (tiny_dataset / f"p3_{part}.nii.gz" for part in ("image", "dose"))
    array = np.linalg.norm(np.indices(SHAPE).T - (20, 19, 21), axis=-1).T < 5
    write_volume(tmp_path / "mask.nii.gz", Volume(array, AFFINE), np.uint8)
    flipped = nibabel.load(image).as_reoriented(np.array([[0, -1], [1, 1], [2, 1]]))
    nibabel.save(flipped, tmp_path / "flipped.nii.gz")
    out = command(
        *("--image", tmp_path / "flipped.nii.gz", "--dose", dose, "--task", "ce"),
        *("--click", "19,20,21,+", "--click", "17,19,20,-", "--mask", tmp_path / "mask.nii.gz"),
    )
    loaded.set_case(image, dose, task="ce")
    clicks = Click((40.0, 40.0, 42.0), True), Click((44.0, 38.0, 40.0), False)
    expected = loaded.predict(Prompts(clicks, tmp_path / "mask.nii.gz"))
    found = read_volume(out / "flipped" / "ce" / "probability.nii.gz")
    np.testing.assert_allclose(found.array, expected.native_probability().array, atol=1e-6)
    told = document(out, "flipped", "ce")["prompts"]
    assert told["initial_mask"] and told["box"] is None
    assert told["clicks"][1] == {"at_mm": [44, 38, 40], "voxel": [17, 19, 20], "positive": False}


def test_a_box_does_for_a_dose(command: Command, tiny_dataset: Path) -> None:
    image = tiny_dataset / "p3_image.nii.gz"
    box = "--box", "-1,19,21,49,51,53", "--box-frame", "world"
    told = document(command("--image", image, "--task", "orn", *box))
    assert told["region"]["box"]["voxels"] == [[0, 10, 11], [24, 25, 26]]
    assert told["region"]["box"]["from"] == "given" and told["dose"] is None
    corners = [[-1.0, 19.0, 21.0], [49.0, 51.0, 53.0]]
    assert told["prompts"]["box"] == {"corners": corners, "frame": "world"}


def test_beside_a_box_no_threshold_of_the_dose_is_needed(
    command: Command, tiny_dataset: Path, tmp_path: Path
) -> None:
    image = tiny_dataset / "p3_image.nii.gz"
    nothing = tmp_path / "zero.nii.gz"
    write_volume(nothing, Volume(np.zeros(SHAPE), AFFINE), np.float32)
    box = "--task", "orn", "--box", "10,10,10,24,25,26"
    told = document(command("--image", image, "--dose", nothing, *box))
    assert told["region"]["box"]["from"] == "given" and told["dose"]["dmax"] == 0
    assert any("largest dose is 0, implausible" in said for said in told["warnings"])
    dose = tiny_dataset / "p3_dose.nii.gz"
    with_dose = document(command("--image", image, "--dose", dose, *box, "--case", "b"), "b")
    for of in (told["dose"], with_dose["dose"]):
        assert of["threshold"] is of["tau"] is of["threshold_is"] is None
    assert with_dose["dose"]["max_in_mask"] > 0


def test_a_region_of_a_dose_goes_back_in_as_a_box(command: Command, original: Path) -> None:
    image, options = original / "image.nii", ("--task", "orn")
    out = command("--image", image, "--dose", original / "dose.nii", *options, "--case", "dose")
    region = document(out, "dose")["region"]
    box = ",".join(str(at) for corner in region["box"]["world_mm"] for at in corner)
    command("--image", image, *options, "--case", "box", "--box", box, "--box-frame", "world")
    again = document(out, "box")["region"]
    assert again == region | {"box": region["box"] | {"from": "given"}}
    masks = [read_volume(out / case / "orn" / "mask.nii.gz").array for case in ("dose", "box")]
    assert masks[0].any() and (masks[0] == masks[1]).all()
