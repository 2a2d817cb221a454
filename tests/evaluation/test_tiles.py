"""Crops of a scan: the same as training's, no seams, no more memory than their window."""

from __future__ import annotations

import dataclasses
import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rtsam_jax.data.crops import extract
from rtsam_jax.data.neighbourhood import training_origins
from rtsam_jax.data.nifti import Volume
from rtsam_jax.data.preprocess import Preprocessed, PreprocessSpec, preprocess
from rtsam_jax.errors import IncompleteCase, PromptOutside
from rtsam_jax.evaluation.inference import BATCH, predict_volume
from rtsam_jax.evaluation.tiles import tile

SIDE, SIZE = 30, 12
# Voxels that blending lets another place of the crops turn over, as a share of the mask's, where
# what predicts acts alike wherever its crop lies. A trained network does not: docs/api.md.
SEAM = 0.01


def prepared(
    shape: tuple[int, int, int],
    centre: tuple[int, ...] | None,
    *,
    crop: str = "dose",
    width: float = 6,
) -> Preprocessed:
    """Smooth noise, in air from two voxels before the faces, under a round dose."""
    rng = np.random.default_rng(sum(shape))
    inner = tuple(slice(2, n - 2) for n in shape)
    array = np.full(shape, -1000, np.float32)
    array[inner] = 900 * ndimage.gaussian_filter(rng.standard_normal(shape), 2, mode="wrap")[inner]
    image, dose = Volume(array, np.eye(4)), None
    if centre is not None:
        index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
        distance = np.linalg.norm(index - np.array(centre), axis=-1)
        dose = Volume((60 * np.exp(-((distance / width) ** 2))).astype(np.float32), image.affine)
    return preprocess(image, dose, "CT", PreprocessSpec(1.0, 0.5, crop=crop), name="c")


@settings(max_examples=15, deadline=None)
@given(
    centre=st.tuples(*[st.integers(2, SIDE - 3)] * 3),
    width=st.floats(4, 16),
    crop=st.sampled_from(["dose", "image"]),
)
def test_prediction_is_shown_the_crops_that_training_draws_from(centre, width, crop) -> None:
    """Before training moves them by its jitter; the boxes are then cut to the crops alike."""
    scan = prepared((SIDE,) * 3, centre, crop=crop, width=width)
    tiles = tile(scan, SIZE, name="c")
    drawn = np.unique(training_origins(scan, None, SIZE, crop=crop), axis=0)
    np.testing.assert_array_equal(np.unique(tiles.origins + tiles.low, axis=0), drawn)
    for row, origin in enumerate(tiles.origins + tiles.low):
        np.testing.assert_array_equal(
            tiles.image(row), extract(scan.image, origin, SIZE, scan.background)
        )
        np.testing.assert_array_equal(tiles.region(row), extract(scan.roi, origin, SIZE, 0))


corners = st.tuples(*[st.integers(0, SIDE - 1)] * 3)


@settings(max_examples=20, deadline=None)
@given(first=corners, second=corners)
def test_a_given_box_is_the_region_and_crops_lie_around_it(first, second) -> None:
    scan = prepared((SIDE,) * 3, None)
    tiles = tile(scan, SIZE, name="c", box=np.array([first, second]))
    box = np.sort([first, second], axis=0)
    marked = np.argwhere(tiles.roi)
    np.testing.assert_array_equal([marked.min(0), marked.max(0)], box)
    assert len(marked) == np.prod(box[1] - box[0] + 1)
    seen = tiles.blended(np.ones((SIZE,) * 3) for _ in range(len(tiles)))
    assert (seen[tiles.roi[tiles.place] > 0] == 1).all()
    at = np.array(first) - tiles.low
    rows, inside = tiles.holding(at)
    assert len(rows)
    for row, voxel in zip(rows, inside, strict=True):
        assert tiles.image(row)[tuple(voxel)] == scan.image[first]


@pytest.mark.parametrize(
    "box", [((0, 0, 0), (SIDE, 5, 5)), ((-1, 0, 0), (5, 5, 5)), ((0, 40, 0), (5, 44, 5))]
)
def test_a_box_outside_the_image(box) -> None:
    with pytest.raises(PromptOutside, match=r"box of c reaches from voxel .*\(29, 29, 29\)"):
        tile(prepared((SIDE,) * 3, None), SIZE, name="c", box=np.array(box))


def test_neither_dose_nor_box() -> None:
    with pytest.raises(IncompleteCase, match="Case c has no dose"):
        tile(prepared((SIDE,) * 3, None), SIZE, name="c")


def smooth(images: np.ndarray, *_: object) -> np.ndarray:
    """Looks four voxels far, and sees nothing beyond a crop."""
    return 1 / (1 + np.exp(-4 * np.stack([ndimage.gaussian_filter(i, 1.0) for i in images])))


def network(images: np.ndarray, *_: object) -> np.ndarray:
    """Three layers of random 3 x 3 x 3 convolutions on zeros beyond a crop: it acts locally."""
    rng = np.random.default_rng(5)
    channels, out = 4, images[:, None]
    for width in (channels, channels, 1):
        kernels = rng.standard_normal((width, out.shape[1], 3, 3, 3)) / np.sqrt(27 * out.shape[1])
        out = np.stack(
            [
                [
                    sum(
                        ndimage.convolve(plane, part, mode="constant")
                        for plane, part in zip(case, kernel, strict=True)
                    )
                    for kernel in kernels
                ]
                for case in out
            ]
        )
        out = np.maximum(out, 0.1 * out) if width > 1 else out
    return 1 / (1 + np.exp(-20 * out[:, 0]))


@pytest.mark.parametrize("predict", [smooth, network], ids=["smooth", "network"])
def test_blending_hides_the_faces_of_crops_of_what_acts_alike_everywhere(predict) -> None:
    """Moved by some voxels they leave all but `SEAM` of the mask; pasted, not blended, they do not.

    This is of the blending alone. Both stand-ins err at a crop's faces, as every network does, and
    else act alike wherever the crop lies, which no network with a coarse grid does.
    """
    shape, size = (48, 36, 36), 20
    scan = prepared(shape, None)
    core = tuple(slice(12, n - 12) for n in shape)

    def masks(shift: int) -> tuple[np.ndarray, np.ndarray]:
        box = np.array([(2,) * 3, np.array(shape) - 8]) + shift
        tiles = tile(scan, size, name="c", box=box)
        crops = predict(np.stack([tiles.image(row) for row in range(len(tiles))]))
        whole, pasted = np.zeros(shape), np.zeros(shape)
        whole[tiles.place] = tiles.blended(crops)
        for crop, origin in zip(crops, tiles.origins + tiles.low, strict=True):
            pasted[tuple(slice(a, a + size) for a in origin)] = crop
        return whole[core] >= 0.5, pasted[core] >= 0.5

    blended, pasted = masks(0)
    assert 0.1 < blended.mean() < 0.9
    turned = {"blended": 0.0, "pasted": 0.0}
    for shift in (1, 2, 3, 5):
        again, pasted_again = masks(shift)
        turned["blended"] = max(turned["blended"], (again ^ blended).sum() / blended.sum())
        turned["pasted"] = max(turned["pasted"], (pasted_again ^ pasted).sum() / pasted.sum())
    assert turned["blended"] < SEAM < turned["pasted"], turned


def test_memory_is_bounded_by_the_window_however_many_crops_there_are() -> None:
    """2000 crops of a long thin volume, whose images and regions alone would take more."""
    shape, size = (4000, 20, 20), 16
    scan = prepared((24,) * 3, None)
    image = np.zeros(shape, np.float32)
    roi = np.zeros(shape, np.uint8)
    result = image.nbytes
    held = {}
    for name, extent in (("all of it", shape[0]), ("a tenth", shape[0] // 10)):
        box = np.array([(0, 0, 0), (extent - 1, 19, 19)])
        roi[...] = 0
        roi[:extent] = 1
        long = dataclasses.replace(scan, image=image, roi=roi, box=box)
        tracemalloc.start()
        found = predict_volume(lambda image, roi, text: image, long, 0, size, name="c")
        held[name] = tracemalloc.get_traced_memory()[1] - result
        tracemalloc.stop()
        window, crop = extent * 20 * 20, size**3
        assert found.shape == shape
        assert held[name] < 20.5 * window + 64 * BATCH * crop
    assert held["a tenth"] < 0.2 * held["all of it"] < 0.2 * 2000 * size**3 * 5


def test_every_voxel_of_every_crop_lies_in_the_window() -> None:
    tiles = tile(prepared((SIDE,) * 3, (3, 15, 27), width=14), SIZE, name="c")
    low, high = tiles.low, tiles.low + tiles.shape
    for origin, axis in itertools.product(tiles.origins + tiles.low, range(3)):
        assert low[axis] <= max(origin[axis], 0)
        assert min(origin[axis] + SIZE, SIDE) <= high[axis]
