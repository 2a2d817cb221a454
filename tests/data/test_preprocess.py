"""Grids, intensities and labels on the way to the model and back."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.nifti import Volume, read_volume
from rtsam_jax.data.preprocess import (
    Grid,
    PreprocessSpec,
    label_to_grid,
    model_grid,
    preprocess,
    to_native,
)
from rtsam_jax.errors import (
    DoseUnit,
    EmptyROI,
    IncompleteCase,
    NegativeDose,
    NoOverlap,
    VolumeError,
    ZeroDose,
)
from tests.data.affines import oblique

SPEC = PreprocessSpec(spacing_mm=1.0, tau=0.5)


def linear_field(shape: tuple[int, int, int], affine: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """A field linear in world mm: linear interpolation reproduces it exactly."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return ((index @ affine[:3, :3].T + affine[:3, 3]) @ slope).astype(np.float32)


def ct_and_dose(seed: int = 0, shape=(10, 11, 9)) -> tuple[Volume, Volume]:
    rng = np.random.default_rng(seed)
    image = Volume(rng.uniform(-1500, 1500, shape).astype(np.float32), np.eye(4))
    axes = np.ogrid[tuple(map(slice, shape))]
    squared = sum((a - n / 2) ** 2 for a, n in zip(axes, shape, strict=True))
    return image, Volume((60 * np.exp(-squared / 20)).astype(np.float32), np.eye(4))


def test_preprocess_takes_no_label() -> None:
    assert list(inspect.signature(preprocess).parameters) == [
        "image", "dose", "modality", "spec", "name", "prescription_gy", "with_roi"
    ]  # fmt: skip


def test_spec_from_config() -> None:
    cfg = ExperimentConfig()
    assert PreprocessSpec.from_config(cfg) == PreprocessSpec()
    cfg.data.spacing_mm, cfg.data.interpolation = 3.0, "bspline"
    cfg.dose.tau, cfg.dose.threshold, cfg.dose.gy = 0.5, "absolute", 45.0
    cfg.dose.component, cfg.dose.roi, cfg.dose.margin_mm = "all", "mask", 5.0
    assert PreprocessSpec.from_config(cfg) == PreprocessSpec(
        3.0, 0.5, "all", "mask", threshold="absolute", gy=45.0, margin_mm=5.0,
        interpolation="bspline",
    )  # fmt: skip


def test_ct_is_clipped_and_scaled_by_the_voxels_above_air() -> None:
    image, dose = ct_and_dose()
    result = preprocess(image, dose, "CT", SPEC, name="c1")
    clipped = np.clip(image.array, -1000, 1000)
    body = clipped[clipped > -900]
    np.testing.assert_allclose(result.image, (clipped - body.mean()) / body.std(), atol=1e-5)
    assert result.image.dtype == np.float32 and result.roi.dtype == np.uint8
    # What fills a crop beyond the volume is exactly what blank air became inside it.
    assert result.background == result.image.min()
    assert result.fraction_outside_dose == 0.0 and result.modality == "CT"
    np.testing.assert_array_equal(result.roi, dose.array >= 30 * dose.array.max() / 60)
    points = np.argwhere(result.roi)
    np.testing.assert_array_equal(result.box, [points.min(0), points.max(0)])


def test_mr_is_scaled_by_its_non_zero_voxels() -> None:
    image, dose = ct_and_dose()
    array = np.abs(image.array) + 1
    array[:4] = 0
    result = preprocess(Volume(array, image.affine), dose, "MR", SPEC, name="c1")
    brain = result.image[4:]
    np.testing.assert_allclose((brain.mean(), brain.std()), (0, 1), atol=1e-5)
    assert (result.image[:4] == np.float32(result.background)).all() and result.background < -1


def test_statistics_are_of_the_native_grid_whatever_the_models() -> None:
    image, dose = ct_and_dose()
    fine = preprocess(image, dose, "CT", SPEC, name="c1")
    coarse = preprocess(image, dose, "CT", PreprocessSpec(2.0, 0.5), name="c1")
    assert fine.background == coarse.background
    assert fine.dmax == coarse.dmax == dose.array.max()


def test_the_statistics_undo_the_normalisation() -> None:
    image, dose = ct_and_dose()
    result = preprocess(image, dose, "CT", SPEC, name="c1")
    restored = result.image * result.std + result.mean
    np.testing.assert_allclose(restored, np.clip(image.array, -1000, 1000), atol=1e-3)


def test_without_a_dose_the_image_is_the_same_and_nothing_else_is_made_up() -> None:
    image, dose = ct_and_dose()
    spec = PreprocessSpec(2.0, threshold="prescription")  # no dose, no need of it
    bare = preprocess(image, None, "CT", spec, name="c1")
    full = preprocess(image, dose, "CT", PreprocessSpec(2.0, 0.5), name="c1")
    np.testing.assert_array_equal(bare.image, full.image)
    assert (bare.mean, bare.std, bare.background) == (full.mean, full.std, full.background)
    assert bare.roi is bare.box is bare.dmax is None
    assert bare.threshold_gy is bare.fraction_outside_dose is None
    assert full.require_dose(name="c1", purpose="scoring") == (full.roi, full.box)
    with pytest.raises(IncompleteCase, match="Case c1 has no dose, which scoring needs; add one"):
        bare.require_dose(name="c1", purpose="scoring")


def test_every_threshold_reaches_the_roi() -> None:
    image, dose = ct_and_dose()
    levels = {}
    for kind in ("dmax", "d2", "prescription", "absolute"):
        spec = PreprocessSpec(tau=0.5, threshold=kind, gy=20.0)
        result = preprocess(image, dose, "CT", spec, name="c1", prescription_gy=48.0)
        np.testing.assert_array_equal(result.roi, dose.array >= np.float32(result.threshold_gy))
        assert result.dmax == dose.array.max()
        levels[kind] = result.threshold_gy
    assert levels["dmax"] == 0.5 * dose.array.max()
    assert (levels["prescription"], levels["absolute"]) == (24.0, 20.0)
    assert 20.0 < levels["d2"] < levels["dmax"]
    spec = PreprocessSpec(threshold="prescription")
    with pytest.raises(IncompleteCase, match="record of c1 has no prescription_gy"):
        preprocess(image, dose, "CT", spec, name="c1")
    with pytest.raises(DoseUnit, match="dose of c1"):
        cgy = Volume(100 * dose.array, dose.affine)
        preprocess(image, cgy, "CT", spec, name="c1", prescription_gy=48.0)


def test_a_dose_that_makes_no_region_needs_no_threshold() -> None:
    image, dose = ct_and_dose()
    spec = PreprocessSpec(threshold="prescription")  # which there is none of
    beside = preprocess(image, dose, "CT", spec, name="c1", with_roi=False)
    assert beside.roi is beside.box is beside.threshold_gy is None
    assert (beside.dmax, beside.fraction_outside_dose) == (dose.array.max(), 0.0)
    nothing = Volume(0 * dose.array, dose.affine)
    assert preprocess(image, nothing, "CT", spec, name="c1", with_roi=False).dmax == 0
    with pytest.raises(NegativeDose):
        preprocess(image, Volume(-dose.array, dose.affine), "CT", spec, name="c1", with_roi=False)


def test_the_box_grows_with_the_margin_as_far_as_the_volume() -> None:
    image, dose = ct_and_dose(shape=(24, 24, 10))
    tight = preprocess(image, dose, "CT", PreprocessSpec(1.0, 0.8), name="c1")
    wide = preprocess(image, dose, "CT", PreprocessSpec(1.0, 0.8, margin_mm=4.0), name="c1")
    last = np.array(image.shape) - 1
    np.testing.assert_array_equal(wide.box[0], np.maximum(tight.box[0] - 4, 0))
    np.testing.assert_array_equal(wide.box[1], np.minimum(tight.box[1] + 4, last))
    assert (wide.roi >= tight.roi).all() and wide.box[1, 2] == 9


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), modality=st.sampled_from(["CT", "MR"]))
def test_a_cubic_spline_keeps_voxels_and_range(seed: int, modality: str) -> None:
    image, _ = ct_and_dose(seed)
    exact = preprocess(image, None, modality, SPEC, name="c1")
    spec = PreprocessSpec(1.0, interpolation="bspline")
    same = preprocess(image, None, modality, spec, name="c1")
    np.testing.assert_allclose(same.image, exact.image, atol=1e-5)
    fine = PreprocessSpec(0.7, interpolation="bspline")
    steps = preprocess(image, None, modality, fine, name="c1").image  # noise: it rings everywhere
    assert exact.image.min() <= steps.min() and steps.max() <= exact.image.max()


def test_a_cubic_spline_follows_a_wave_closer_than_lines() -> None:
    axis = np.arange(20)
    wave = (100 * np.sin(axis / 1.5))[:, None, None] + np.zeros((20, 6, 6)) + 500
    image = Volume(wave.astype(np.float32), np.eye(4))
    errors = {}
    for kind in ("linear", "bspline"):
        spec = PreprocessSpec(0.5, interpolation=kind)
        result = preprocess(image, None, "MR", spec, name="c1")
        place = result.grid.to_world(np.argwhere(np.ones(result.image.shape)))[:, 0]
        truth = 100 * np.sin(place / 1.5) + 500
        inner = (place > 5) & (place < 14)
        found = (result.image * result.std + result.mean).ravel()
        errors[kind] = np.abs(found - truth)[inner].max()
    assert errors["bspline"] < errors["linear"] / 3  # crests between voxels are clipped


def test_a_grid_that_no_memory_holds_is_refused() -> None:
    image = Volume(np.zeros((8, 9, 10), np.float32), np.eye(4))
    with pytest.raises(VolumeError, match="c7 extends over 8 x 9 x 10 mm.*grid of 0.001 mm"):
        model_grid(image, 0.001, name="c7")
    with pytest.raises(VolumeError, match="too small for a model grid of 3000 mm"):
        model_grid(image, 3000.0)
    assert model_grid(Volume(np.zeros((2048, 1, 1)), np.eye(4)), 1.0).shape == (2048, 1, 1)
    wide = Volume(np.zeros((20, 20, 20)), np.diag([100.0, 100.0, 100.0, 1]))
    with pytest.raises(VolumeError, match="2000 x 2000 x 2000 mm, which is too large for a model"):
        model_grid(wide, 1.0)  # no axis is, but 8e9 voxels are


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 4.0)] * 3),
    target=st.floats(0.5, 4.0),
)
def test_model_grid_is_isotropic_and_covers_the_field_of_view(shape, spacing, target) -> None:
    affine = oblique(spacing)
    grid = model_grid(Volume(np.zeros(shape), affine), target)
    np.testing.assert_allclose(np.linalg.norm(grid.affine[:3, :3], axis=0), target)
    turned = np.linalg.inv(affine) @ grid.affine
    np.testing.assert_allclose(turned[:3, :3], np.diag(np.diag(turned)[:3]), atol=1e-9)
    edge = np.diag(turned)[:3]  # of a model voxel, in image voxels
    low = turned[:3, 3] - 0.5 * edge
    high = low + edge * grid.shape
    slack = 1e-3 * edge
    assert (low <= -0.5 + slack).all() and (high >= np.array(shape) - 0.5 - slack).all()
    assert (high - low < shape + edge).all()  # and not a voxel more


@settings(deadline=None, max_examples=25)
@given(target=st.floats(0.8, 3.0), slope=st.tuples(*[st.floats(-3, 3)] * 3))
def test_resampling_keeps_world_positions(target: float, slope) -> None:
    """On an oblique anisotropic image every inner model voxel has the value of its world point."""
    slope = np.array(slope) + 0.1
    affine = oblique((1.0, 1.5, 2.5))
    shape = (14, 11, 9)
    grid = model_grid(Volume(np.zeros(shape), affine), target)
    native = Volume(linear_field(shape, affine, slope), affine)
    on_grid = to_native(native.array, Grid(shape, affine), grid)
    wanted = linear_field(grid.shape, grid.affine, slope)
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    source = Grid(shape, affine).to_index(grid.to_world(index))
    inner = ((source >= 0) & (source <= np.array(shape) - 1)).all(-1)
    assert inner.any()
    np.testing.assert_allclose(on_grid[inner], wanted[inner], atol=2e-3)


def test_grid_index_and_world_are_inverse() -> None:
    grid = Grid((4, 5, 6), oblique((1.5, 1.5, 1.5)))
    index = np.random.default_rng(0).uniform(0, 5, (7, 3))
    np.testing.assert_allclose(grid.to_index(grid.to_world(index)), index)
    np.testing.assert_allclose(grid.to_world(np.zeros(3)), grid.affine[:3, 3])


def test_equal_spacing_round_trip_is_voxel_exact() -> None:
    rng = np.random.default_rng(0)
    affine = oblique((1.0, 1.0, 1.0)).astype(np.float32).astype(np.float64)  # as read from a file
    array = rng.normal(size=(7, 8, 9)).astype(np.float32)
    label = Volume(rng.random((7, 8, 9)) < 0.3, affine)
    grid = model_grid(label, 1.0)
    assert grid.shape == (7, 8, 9)
    on_grid = to_native(array, Grid((7, 8, 9), affine), grid)
    np.testing.assert_array_equal(on_grid, array)
    np.testing.assert_array_equal(to_native(on_grid, grid, label), array)
    np.testing.assert_array_equal(label_to_grid(label, grid), label.array)


def test_to_native_is_zero_outside_the_model_grid() -> None:
    grid = Grid((4, 4, 4), np.eye(4))
    shift = np.eye(4)
    shift[:3, 3] = -2.0
    native = to_native(np.ones((4, 4, 4), np.float32), grid, Grid((8, 8, 8), shift))
    truth = np.zeros((8, 8, 8))
    truth[2:6, 2:6, 2:6] = 1
    np.testing.assert_array_equal(native, truth)


def test_only_the_image_is_smoothed_and_only_where_it_gets_coarser() -> None:
    """A checkerboard finer than the model voxel must not survive as an alias."""
    shape = (24, 24, 24)
    board = np.indices(shape).sum(0) % 2
    image = Volume((1000.0 * board + 1).astype(np.float32), np.eye(4))
    dose = ct_and_dose(shape=shape)[1]
    same = preprocess(image, dose, "MR", SPEC, name="c1").image
    coarse = preprocess(image, dose, "MR", PreprocessSpec(3.0, 0.5), name="c1").image
    assert same.std() > 0.99
    assert coarse[1:-1, 1:-1, 1:-1].std() < 0.05
    fine = preprocess(image, dose, "MR", PreprocessSpec(0.5, 0.5), name="c1").image
    assert fine.max() > 0.4  # corners of linear interpolation, no smoothing


def test_share_outside_the_dose_grid() -> None:
    image, dose = ct_and_dose(shape=(10, 10, 10))
    half = Volume(dose.array[:, :, 2:7], np.eye(4))
    half.affine[2, 3] = 2.0
    result = preprocess(image, half, "CT", SPEC, name="c1")
    assert result.fraction_outside_dose == pytest.approx(0.5)
    assert not result.roi[:, :, :2].any() and not result.roi[:, :, 7:].any()


def test_misaligned_dose_grid_lands_where_the_world_says() -> None:
    shape, affine = (20, 18, 16), oblique((1.0, 1.0, 1.0))
    image = Volume(np.random.default_rng(0).normal(0, 300, shape).astype(np.float32), affine)
    dose_affine = np.diag([2.5, 2.5, 3.0, 1.0])
    dose_affine[:3, 3] = affine[:3, 3] - 15
    index = np.stack(np.meshgrid(*map(np.arange, (24, 24, 18)), indexing="ij"), -1)
    centre = affine[:3, :3] @ np.array([10, 9, 8]) + affine[:3, 3]
    distance = np.linalg.norm(index @ dose_affine[:3, :3].T + dose_affine[:3, 3] - centre, axis=-1)
    dose = Volume((70 - distance).clip(0).astype(np.float32), dose_affine)
    result = preprocess(image, dose, "CT", PreprocessSpec(1.0, 0.92), name="c1")
    found = result.grid.to_world(np.argwhere(result.roi).mean(0))
    np.testing.assert_allclose(found, centre, atol=0.6)


def test_errors_of_image_and_dose_name_the_case() -> None:
    image, dose = ct_and_dose()
    air = Volume(np.full((10, 11, 9), -1000, np.float32), np.eye(4))
    flat = Volume(np.full((10, 11, 9), 40, np.float32), np.eye(4))
    with pytest.raises(VolumeError, match="image of c1 has no voxel above -900 HU"):
        preprocess(air, dose, "CT", SPEC, name="c1")
    for modality in ("CT", "MR"):
        with pytest.raises(VolumeError, match="image of c1 has one and the same value"):
            preprocess(flat, dose, modality, SPEC, name="c1")
    with pytest.raises(VolumeError, match="c1 is of modality 'PET'"):
        preprocess(image, dose, "PET", SPEC, name="c1")
    with pytest.raises(ZeroDose, match="c1"):
        preprocess(image, Volume(0 * dose.array, dose.affine), "CT", SPEC, name="c1")
    far = np.eye(4)
    far[0, 3] = 100.0
    with pytest.raises(NoOverlap, match="c1"):
        preprocess(image, Volume(dose.array, far), "CT", SPEC, name="c1")
    near = np.eye(4)
    near[0, 3] = 8.0
    with pytest.raises(EmptyROI, match="c1"):
        preprocess(image, Volume(dose.array, near), "CT", SPEC, name="c1")


@pytest.mark.parametrize(("spacing", "tau"), [(3.0, 0.5), (3.0, 0.8)])
def test_openkbp_case_of_the_pack(data_pack: Path, spacing: float, tau: float) -> None:
    folder = min((data_pack / "openkbp" / "val").glob("pt_*"))
    image, dose, organs = (read_volume(folder / f"{n}.nii.gz") for n in ("ct", "dose", "oar"))
    result = preprocess(image, dose, "CT", PreprocessSpec(spacing, tau), name=folder.name)
    native_ml = (dose.array >= tau * dose.array.max()).sum() * np.prod(image.spacing) / 1000
    ml = result.roi.sum() * spacing**3 / 1000
    assert ml == pytest.approx(native_ml, rel=0.1)
    mandible = Volume(organs.array == 7, organs.affine)
    there = label_to_grid(mandible, result.grid)
    back = to_native(there.astype(np.float32), result.grid, mandible) >= 0.5
    dice = 2 * (back & mandible.array).sum() / (back.sum() + mandible.array.sum())
    assert dice > 0.85
