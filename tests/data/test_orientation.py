"""One patient, one answer: whatever the axes, tilt and spacing of the files."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from rtsam_jax.data.crops import blend, crop_origins, extract
from rtsam_jax.data.nifti import Volume, read_label, read_volume
from rtsam_jax.data.preprocess import (
    Grid,
    Preprocessed,
    PreprocessSpec,
    label_to_grid,
    model_grid,
    preprocess,
    to_native,
)

ORIENTATIONS = [
    np.array(list(zip(axes, flips, strict=True)))
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
SHAPE = (24, 20, 18)
DOSE_SHAPE, DOSE_SPACING = (30, 32, 40), (3.0, 2.5, 2.0)
SLOPE = np.array([2.0, -1.5, 3.0])  # per mm

rotations = st.builds(
    lambda angles: Rotation.from_euler("xyz", angles).as_matrix(),
    st.tuples(*[st.floats(-0.7, 0.7)] * 3),
)
spacings = st.tuples(*[st.floats(0.8, 2.0)] * 3)
orientations = st.sampled_from(ORIENTATIONS)


def place(rotation: np.ndarray, spacing, shape: tuple[int, ...], centre=(0, 0, 0)) -> np.ndarray:
    """An affine around a world point, in steps that float32 headers hold exactly."""
    affine = np.eye(4)
    affine[:3, :3] = np.round(rotation @ np.diag(spacing) * 1024) / 1024
    offset = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    affine[:3, 3] = np.round(offset * 1024) / 1024
    return affine


def world(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def reread(array: np.ndarray, affine: np.ndarray, orientation: np.ndarray, read=read_volume):
    """The volume after a file whose axes are turned and flipped."""
    turned = nibabel.apply_orientation(array, orientation)
    moved = affine @ nibabel.orientations.inv_ornt_aff(orientation, array.shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.nii"
        nibabel.save(nibabel.Nifti1Image(turned, moved), path)
        return read(path)


def by_world(points: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values in an order that depends on their world points alone."""
    points = np.round(points.reshape(-1, 3), 3)
    return values.ravel()[np.lexsort(points.T)]


def box_in_world(scan: Preprocessed) -> np.ndarray:
    """The eight corners of the box."""
    _, box = scan.require_dose(name="c1", purpose="the test")
    corners = scan.grid.to_world(np.array([*itertools.product(*box.T)]))
    return corners[np.lexsort(np.round(corners, 3).T)]


@settings(deadline=None, max_examples=30)
@given(
    rotation=rotations,
    tilt=rotations,
    spacing=spacings,
    target=st.floats(1.0, 2.5),
    turned=st.tuples(orientations, orientations, orientations),
    spec=st.sampled_from([{}, {"interpolation": "bspline", "margin_mm": 3.0, "threshold": "d2"}]),
)
def test_the_answer_in_the_world_is_that_of_any_axes(
    rotation, tilt, spacing, target, turned, spec
) -> None:
    """Image, dose and label each with axes of its own; dose and label tilted against the image."""
    spec = PreprocessSpec(target, 0.6, **spec)
    affine = place(rotation, spacing, SHAPE)
    image = (world(SHAPE, affine) @ SLOPE + 400).astype(np.float32)
    hot = affine[:3, :3] @ (1.0, -1.0, 0.5)
    around = place(tilt @ rotation, DOSE_SPACING, DOSE_SHAPE, hot)
    distance = np.linalg.norm(world(DOSE_SHAPE, around) - hot, axis=-1)
    dose = (70 - 3 * distance).clip(0).astype(np.float32)
    structures = np.where(distance < 6, 2, np.where(distance < 9, 1, 0)).astype(np.int16)

    def answer(orders) -> tuple[Preprocessed, np.ndarray]:
        scan = preprocess(
            reread(image, affine, orders[0]),
            reread(dose, around, orders[1]),
            "MR",
            spec,
            name="c1",
        )
        label = reread(structures, around, orders[2], lambda path: read_label(path, 2))
        return scan, label_to_grid(label, scan.grid)

    (scan, label), (other, other_label) = answer([ORIENTATIONS[0]] * 3), answer(turned)
    points = [world(s.image.shape, s.grid.affine) for s in (scan, other)]
    for ours, theirs in (
        (scan.image, other.image),
        (scan.roi, other.roi),
        (label, other_label),
        *((points[0][..., axis], points[1][..., axis]) for axis in range(3)),
    ):
        np.testing.assert_allclose(
            by_world(points[0], ours), by_world(points[1], theirs), atol=1e-4
        )
    np.testing.assert_allclose(box_in_world(scan), box_in_world(other), atol=1e-4)

    # And it is the right one: the field at the model voxel, the ball around the hot spot.
    centre = (np.array(SHAPE) - 1) / 2
    edge = np.maximum(2 * target / np.array(spacing), 2)  # voxels that smoothing and splines reach
    deep = (np.abs(Grid(SHAPE, affine).to_index(points[0]) - centre) <= centre - edge).all(-1)
    assert deep.any()
    found = scan.image[deep] * scan.std + scan.mean
    np.testing.assert_allclose(found, points[0][deep] @ SLOPE + 400, atol=0.5)
    reach = np.linalg.norm(points[0] - hot, axis=-1)
    assert (label == 1)[reach < 6 - 3.5].all() and not label[reach > 6 + 3.5].any()


@pytest.mark.parametrize("orientation", range(48))
def test_all_48_orders_come_back_to_their_own_voxels(orientation: int) -> None:
    """Image, crop, model grid, original grid: voxel-exact where the spacing is equal."""
    rng = np.random.default_rng(orientation)
    shape, size = (13, 10, 8), 7
    affine = place(Rotation.from_euler("xyz", (0.2, -0.1, 0.4)).as_matrix(), (1, 1, 1), shape)
    # Rounding must not make one model voxel more.
    affine[:3, :3] /= np.linalg.norm(affine[:3, :3], axis=0)
    raw = rng.integers(1, 400, shape).astype(np.float32)
    image = reread(raw, affine, ORIENTATIONS[orientation])
    mask = rng.random(shape) < 0.2
    label = reread(mask.astype(np.uint8), affine, ORIENTATIONS[orientation], read_label)
    dose = Volume(np.where(mask, 60, 1).astype(np.float32), label.affine)
    scan = preprocess(image, dose, "MR", PreprocessSpec(1.0, 0.8), name="c1")
    assert scan.image.shape == shape
    _, box = scan.require_dose(name="c1", purpose="the test")
    np.testing.assert_array_equal(label_to_grid(label, scan.grid), mask)

    origin = crop_origins(box, size)[0]
    crop = extract(scan.image, origin, size, scan.background)
    whole = blend(crop[None], origin[None], scan.image.shape)
    back = to_native(whole, scan.grid, image) * scan.std + scan.mean
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    inside = ((index >= origin) & (index < origin + size)).all(-1)
    np.testing.assert_array_equal(np.rint(back[inside]), raw[inside])
    np.testing.assert_allclose(back[inside], raw[inside], atol=1e-3)
    assert (to_native(whole, scan.grid, image)[~inside] == 0).all()


@settings(deadline=None, max_examples=30)
@given(
    rotation=rotations,
    spacing=spacings,
    target=st.floats(0.8, 3.0),
    centre=st.tuples(*[st.floats(0.35, 0.65)] * 3),
    interpolation=st.sampled_from(["linear", "bspline"]),
)
def test_a_blob_comes_back_to_within_half_a_voxel(
    rotation, spacing, target, centre, interpolation
) -> None:
    spacing = np.array(spacing)
    shape = tuple(int(n) for n in np.ceil(48 / spacing))
    affine = place(rotation, spacing, shape)
    truth = np.array(centre) * (np.array(shape) - 1)
    middle = affine[:3, :3] @ truth + affine[:3, 3]
    blob = np.exp(-0.5 * (np.linalg.norm(world(shape, affine) - middle, axis=-1) / 4) ** 2)
    image = Volume((1000 * blob + 1).astype(np.float32), affine)
    spec = PreprocessSpec(target, 0.5, interpolation=interpolation)
    scan = preprocess(image, Volume(60 * blob.astype(np.float32), affine), "MR", spec, name="c1")
    _, box = scan.require_dose(name="c1", purpose="the test")
    size = int(np.ceil(40 / target))
    (origin,) = crop_origins(box, size)
    restored = extract(scan.image, origin, size, scan.background) * scan.std + scan.mean - 1
    whole = blend(restored.clip(0)[None], origin[None], scan.image.shape)
    back = to_native(whole, scan.grid, image)
    back[back < 100] = 0
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    found = (index * back[..., None]).sum((0, 1, 2)) / back.sum()
    assert (np.abs(found - truth) < 0.5).all()

    # A mask is one of whole voxels on either grid, so of the coarser one's.
    mask = Volume(blob > 0.5, affine)
    there = label_to_grid(mask, scan.grid).astype(np.float32)
    again = np.argwhere(to_native(there, scan.grid, mask) >= 0.5)
    apart = np.abs(again.mean(0) - np.argwhere(mask.array).mean(0)) * spacing
    assert (apart < 0.5 * np.maximum(target, spacing)).all()


def test_a_box_is_where_the_dose_is_on_the_grid_of_another_spacing() -> None:
    """Not a property of arrays: in mm, the box of a ball is the ball's, to a voxel."""
    affine = place(np.eye(3), (0.9, 1.7, 2.6), (40, 24, 16))
    around = place(np.eye(3), (2.0, 2.0, 2.0), (30, 30, 30))
    image = Volume((world((40, 24, 16), affine) @ SLOPE + 300).astype(np.float32), affine)
    distance = np.linalg.norm(world((30, 30, 30), around) - (2.0, -3.0, 1.0), axis=-1)
    dose = Volume((60 - 2 * distance).clip(0).astype(np.float32), around)
    for margin in (0.0, 4.0):
        spec = PreprocessSpec(1.0, threshold="absolute", gy=40.0, margin_mm=margin)
        scan = preprocess(image, dose, "MR", spec, name="c1")  # 40 Gy lies 10 mm out
        corners = box_in_world(scan)
        wanted = np.array([(2.0, -3.0, 1.0)] * 2) + [[-10 - margin] * 3, [10 + margin] * 3]
        found = [corners.min(0), corners.max(0)]
        np.testing.assert_allclose(found, wanted, atol=1.1)  # a voxel; lines cut the dose's cone


def test_the_model_grid_takes_the_axes_nearest_to_the_patients() -> None:
    affine = place(np.eye(3), (1.0, 1.0, 2.0), SHAPE)
    for orientation in ORIENTATIONS:
        image = reread(np.ones(SHAPE, np.float32), affine, orientation)
        grid = model_grid(image, 1.0)
        np.testing.assert_allclose(grid.affine[:3, :3], np.eye(3), atol=1e-6)
        assert grid.shape == (24, 20, 36)
