"""What a reader is warned of, and that no mask is accepted on an image or dose that is doubted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rtsam_jax.data.nifti import Volume
from rtsam_jax.prediction.confidence import ACCEPT, REJECT, REVIEW, Confidence
from rtsam_jax.prediction.opened import Opened
from rtsam_jax.prediction.predicted import Click, Prediction
from rtsam_jax.prediction.remarks import doubted, doubts, remarks
from rtsam_jax.prediction.segmenter import Segmenter
from tests.prediction.smooth_phantom import AFFINE, SHAPE, phantom


@pytest.fixture(scope="module")
def opened(loaded: Segmenter) -> Opened:
    """A phantom's CT with air, its dose on the same grid."""
    image, dose = (Volume(array, AFFINE) for array in phantom(SHAPE, AFFINE))
    return loaded.set_case(image, dose, task="orn", name="phantom")


@pytest.mark.parametrize(
    ("scale", "offset", "said"),
    [
        (1, 0, ()),
        (1, 1024, ("smallest value is",)),
        (10, 0, ("check its scaling",)),
        (-1, 0, ("inverted",)),
        (-10, 0, ("inverted", "check its scaling")),
    ],
)
def test_values_that_are_no_hu(opened: Opened, scale: int, offset: int, said) -> None:
    array = phantom(SHAPE, AFFINE)[0]
    array[20, 20, 18:22] = 1500  # bone
    image = Volume(scale * array + offset, AFFINE)
    found = doubts(opened, image)
    assert len(found) == len(said)
    assert all(part in sentence for part, sentence in zip(said, found, strict=True))


def test_the_padding_of_a_scanner_and_a_metal_are_no_doubt(opened: Opened) -> None:
    array = phantom(SHAPE, AFFINE)[0]
    array[0], array[20, 20, 20] = -3024, 3071
    assert doubts(opened, Volume(array, AFFINE)) == ()


def test_a_region_that_is_the_whole_image(loaded: Segmenter) -> None:
    array = phantom(SHAPE, AFFINE)[0]
    image, dose = Volume(array, AFFINE), Volume(np.full(SHAPE, 60, np.float32), AFFINE)
    (said,) = doubts(loaded.set_case(image, dose, task="orn"), image)
    assert "100 % of the image inside the dose grid is in the high-dose region" in said
    whole = np.array([(0, 0, 0), (39, 37, 35)])
    assert doubts(loaded.set_case(image, dose, task="orn", box=whole), image) == ()


def test_a_region_that_is_the_whole_dose_grid(loaded: Segmenter) -> None:
    image = Volume(phantom(SHAPE, AFFINE)[0], AFFINE)
    dose = Volume(np.full((20, 20, 20), 60, np.float32), AFFINE)  # a corner of the image
    rim, region = doubts(loaded.set_case(image, dose, task="orn"), image)
    assert "lies outside the dose grid" in rim
    assert "of the image inside the dose grid is in the high-dose region" in region


def test_a_doubt_turns_an_accepted_mask_into_one_to_be_reviewed() -> None:
    accepted = Confidence(0.9, 0.9, None, None, None, 0.95, ACCEPT, ("the chance is 0.95",))
    found = doubted(accepted, ["The dose is odd."])
    assert (found.flag, found.quality) == (REVIEW, 0.95)
    assert found.reasons == ("The dose is odd", "the chance is 0.95")
    assert doubted(accepted, []) == accepted
    rejected = dataclasses.replace(accepted, flag=REJECT)
    assert doubted(rejected, ["The dose is odd."]) == rejected


@pytest.mark.parametrize(
    ("clicks", "said"),
    [
        ((), None),
        ((Click((42.0, 40.0, 44.9), True), Click((0.0, 0.0, 0.0), False)), None),
        ((Click((42.0, 40.0, 44.9), False), Click((0.0, 0.0, 0.0), False)), "1 of 2 clicks is not"),
        ((Click((47.1, 40.0, 44.0), True), Click((42.0, 40.0, 44.0), False)), "2 of 2 clicks are"),
    ],
)
def test_clicks_that_the_mask_ignores(opened: Opened, clicks, said: str | None) -> None:
    mask = np.zeros(SHAPE, bool)
    mask[20:23, 19:22, 21:23] = True
    prediction = Prediction(opened, opened.first, np.zeros(opened.window.shape, np.float32))
    found = remarks(prediction, Volume(np.zeros(SHAPE), AFFINE), mask, clicks)
    assert [said in sentence for sentence in found] == ([] if said is None else [True])


@pytest.mark.parametrize(("degrees", "sheared"), [(0, False), (0.5, False), (1.5, True)])
def test_axes_that_are_not_at_right_angles(opened: Opened, degrees: float, sheared: bool) -> None:
    affine = AFFINE.copy()
    affine[1, 2] = 2 * np.tan(np.deg2rad(degrees))
    image = Volume(np.zeros(SHAPE), affine)
    prediction = Prediction(opened, opened.first, np.zeros(opened.window.shape, np.float32))
    found = remarks(prediction, image, np.zeros(SHAPE, bool))
    assert ["1.5 degrees from right angles" in said for said in found] == [True] * sheared
