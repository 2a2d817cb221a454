"""The high-dose ROI and its box: hand-made grids with known answers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from rtsam_jax.errors import (
    ConfigError,
    DoseUnit,
    EmptyROI,
    IncompleteCase,
    NegativeDose,
    ZeroDose,
)
from rtsam_jax.prompts.dose import (
    box_corners,
    box_from_roi,
    dmax,
    dose_level,
    grown,
    jitter_box,
    largest_component,
    near_maximum,
    roi_on_grid,
    threshold_mask,
)


def masks(side: int = 5) -> st.SearchStrategy[np.ndarray]:
    """Random masks from a seed and a density, empty and full ones among them."""
    densities = st.sampled_from([0.0, 0.02, 0.2, 0.6, 1.0])
    return st.builds(
        lambda seed, density: (
            np.random.default_rng(seed).random((side, side + 1, side + 2)) < density
        ),
        st.integers(0, 10_000),
        densities,
    )


def roi_of(
    dose: np.ndarray,
    affine: np.ndarray,
    shape: tuple[int, ...],
    grid: np.ndarray,
    *,
    tau: float,
    name: str = "dose",
    **how: object,
) -> np.ndarray:
    level = dose_level(dose, tau=tau, name=name)
    return roi_on_grid(dose, affine, shape, grid, level=level, name=name, **how)


def test_dmax_is_the_largest_positive_voxel() -> None:
    assert dmax(np.array([[[-0.03, 0.0, 3.5]]], np.float32)) == 3.5
    for nothing in (np.zeros((2, 2, 2)), np.zeros((0, 2, 2))):
        with pytest.raises(ZeroDose, match="case7"):
            dmax(nothing, name="case7")


@pytest.mark.parametrize("low", [-0.61, -80.0])
def test_a_negative_dose_is_refused_beyond_what_resampling_makes(low: float) -> None:
    assert dmax(np.array([low / abs(low) * 0.59, 60.0])) == 60.0
    with pytest.raises(NegativeDose, match=f"case7 falls to {low:g} .*60"):
        dmax(np.array([low, 60.0]), name="case7")
    with pytest.raises(NegativeDose):
        dmax(np.array([low, 0.0]))


def test_small_negatives_count_as_zero() -> None:
    """Halfway to a negative voxel the dose is half its neighbour's, no less."""
    dose = np.zeros((4, 3, 3), np.float32)
    dose[1] = 60.0
    dose[2:] = -0.5
    half = np.eye(4)
    half[0, 3] = 0.5
    roi = roi_of(dose, np.eye(4), (3, 3, 3), half, tau=0.5)
    assert roi[0].all() and roi[1].all() and not roi[2].any()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 160), steps=st.sampled_from([3, 20, 7000]))
def test_d2_is_the_largest_dose_that_two_percent_of_the_irradiated_voxels_reach(
    seed: int, size: int, steps: int
) -> None:
    rng = np.random.default_rng(seed)
    dose = rng.integers(-1, steps, size).astype(np.float32)
    dose[rng.random(size) < 0.6] = 0  # what is not irradiated does not count
    dose[0] = 1.0
    positive = dose[dose > 0]
    reached = [d for d in positive if 50 * (positive >= d).sum() >= positive.size]
    assert near_maximum(dose) == max(reached)
    assert near_maximum(dose * 128) == 128 * near_maximum(dose)


def test_d2_ignores_a_spike_that_dmax_follows() -> None:
    dose = np.full((10, 10, 10), 50.0, np.float32)
    dose[0, 0, 0] = 90.0
    assert dmax(dose) == 90.0 and near_maximum(dose) == 50.0


def test_every_threshold_against_its_definition() -> None:
    dose = np.arange(1, 101, dtype=np.float32).reshape(4, 5, 5)

    def reached(**how: object) -> float:
        level = dose_level(dose, **how)
        roi = roi_on_grid(dose, np.eye(4), dose.shape, np.eye(4), level=level, component="all")
        np.testing.assert_array_equal(roi, dose >= np.float32(level.value))
        return float(dose[roi].min())

    assert reached(threshold="dmax", tau=0.5) == 50
    assert reached(threshold="d2", tau=0.5) == 50  # D2% is 99
    assert reached(threshold="d2", tau=1.0) == 99
    assert reached(threshold="prescription", tau=0.5, prescription_gy=70.0) == 35
    assert reached(threshold="absolute", gy=42.5, tau=0.1) == 43
    with pytest.raises(ConfigError, match="'d5'"):
        dose_level(dose, threshold="d5")


def test_a_threshold_in_gray_refuses_other_units_and_a_missing_prescription() -> None:
    gray = np.full((2, 2, 2), 200.0, np.float32)
    assert dose_level(gray, threshold="absolute", gy=30.0).value == 30.0
    for kind in ("absolute", "prescription"):
        with pytest.raises(DoseUnit, match="case7 reaches 7000.*by 0.01 from cGy"):
            dose_level(35 * gray, threshold=kind, gy=30.0, prescription_gy=70.0, name="case7")
    with pytest.raises(IncompleteCase, match="case7 has no prescription_gy"):
        dose_level(gray, threshold="prescription", name="case7")


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(["dmax", "d2"]),
    roi=st.sampled_from(["dose", "mask"]),
    tau=st.floats(0.2, 0.55),
    unit=st.sampled_from([100.0, 0.01, 2.0**-7]),
)
def test_a_relative_roi_does_not_depend_on_the_unit(
    seed: int, kind: str, roi: str, tau: float, unit: float
) -> None:
    dose = np.random.default_rng(seed).uniform(0, 70, (6, 7, 8)).astype(np.float32)
    fine = np.diag([0.7, 0.7, 0.7, 1.0])
    masks = []
    for scaled in (dose, dose * np.float32(unit)):
        level = dose_level(scaled, threshold=kind, tau=tau)
        masks.append(roi_on_grid(scaled, np.eye(4), (8, 10, 11), fine, level=level, roi=roi))
    np.testing.assert_array_equal(*masks)


@settings(deadline=None, max_examples=25)
@given(
    mask=masks(),
    margin=st.one_of(st.sampled_from([0.0, 1.0, 1.5, 3.0]), st.floats(0, 6)),
    spacing=st.sampled_from([(1.0, 1.0, 1.0), (1.5, 1.5, 1.5), (0.8, 1.0, 2.5)]),
)
def test_a_margin_is_a_euclidean_ball(mask: np.ndarray, margin: float, spacing) -> None:
    every = np.argwhere(np.ones(mask.shape)) * spacing
    gaps = np.linalg.norm(every[:, None] - np.argwhere(mask)[None] * spacing, axis=-1)
    wanted = (gaps.min(axis=1, initial=np.inf) <= margin + 1e-4).reshape(mask.shape)
    np.testing.assert_array_equal(grown(mask, margin, np.array(spacing)), wanted)


def test_the_margin_is_in_millimetres_of_the_model_grid_and_comes_last() -> None:
    dose = np.zeros((11, 11, 11), np.float32)
    dose[1, 1, 1:4] = dose[8, 8, 8] = 60.0  # the smaller component grows no margin
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    roi = roi_of(dose, affine, dose.shape, affine, tau=0.5, margin_mm=4.0)
    np.testing.assert_array_equal(box_corners(roi), [[0, 0, 0], [3, 3, 5]])
    core = roi_of(dose, affine, dose.shape, affine, tau=0.5)
    np.testing.assert_array_equal(roi, grown(core, 4.0, np.full(3, 2.0)))


@pytest.mark.parametrize(("tau", "peak"), [(0.5, 60.0), (0.8, 60.0), (0.6, 10.6), (0.6, 11.2)])
def test_a_voxel_exactly_at_the_threshold_belongs(tau: float, peak: float) -> None:
    edge = round(tau * peak, 2)  # doses are stored in steps of 0.01 Gy
    dose = np.array([edge - 0.01, edge, peak], np.float32).reshape(3, 1, 1)
    assert threshold_mask(dose, tau * dmax(dose)).ravel().tolist() == [False, True, True]


def test_components_touch_by_their_corners() -> None:
    mask = np.zeros((6, 6, 6), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True  # three voxels, joined by corners
    mask[4:6, 5, 5] = True  # two voxels, joined by a face
    kept = largest_component(mask)
    assert kept.sum() == 3 and kept[0, 0, 0] and kept[2, 2, 2]


def test_of_equal_components_the_first_is_kept() -> None:
    mask = np.zeros((5, 5, 5), bool)
    mask[0, 4, 4] = mask[4, 0, 0] = True
    assert np.argwhere(largest_component(mask)).tolist() == [[0, 4, 4]]


@settings(deadline=None, max_examples=40)
@given(mask=masks())
def test_largest_component_is_an_idempotent_part(mask: np.ndarray) -> None:
    kept = largest_component(mask)
    assert not (kept & ~mask).any()
    assert kept.any() == mask.any()
    np.testing.assert_array_equal(largest_component(kept), kept)


@settings(deadline=None, max_examples=40)
@given(mask=masks())
def test_both_boxes_are_the_tight_inclusive_one(mask: np.ndarray) -> None:
    points = np.argwhere(mask)
    box, valid = BOX(jnp.asarray(mask, jnp.uint8))
    assert box.shape == (2, 3) and box.dtype == jnp.float32 and valid.dtype == bool
    corners = box_corners(mask)
    if len(points) == 0:
        assert corners is None and not valid
        np.testing.assert_array_equal(box, np.zeros((2, 3)))
    else:
        truth = np.stack([points.min(0), points.max(0)])
        np.testing.assert_array_equal(corners, truth)
        np.testing.assert_array_equal(box, truth)
        assert valid


BOX = jax.jit(box_from_roi)


def test_boxes_of_a_batch_are_those_of_its_members() -> None:
    rng = np.random.default_rng(0)
    rois = rng.random((2, 3, 4, 5, 6)) < 0.05
    rois[1, 2] = False
    box, valid = BOX(jnp.asarray(rois))
    assert box.shape == (2, 3, 2, 3) and valid.shape == (2, 3)
    for index in np.ndindex(2, 3):
        one, ok = box_from_roi(jnp.asarray(rois[index]))
        np.testing.assert_array_equal(box[index], one)
        assert bool(valid[index]) == bool(ok) == bool(rois[index].any())


def blob() -> tuple[np.ndarray, np.ndarray]:
    """A 2 mm dose grid with a Gaussian hot spot and one hotter voxel apart from it."""
    axes = np.ogrid[:12, :12, :12]
    squared = sum((a - 5) ** 2 for a in axes)
    dose = (60 * np.exp(-squared / 30)).astype(np.float32)
    dose[11, 11, 11] = 61.0
    affine = np.diag([2.0, 2, 2, 1])
    return dose, affine


def test_both_orders_agree_on_the_doses_own_grid() -> None:
    dose, affine = blob()
    by_dose = roi_of(dose, affine, dose.shape, affine, tau=0.8, roi="dose")
    by_mask = roi_of(dose, affine, dose.shape, affine, tau=0.8, roi="mask")
    np.testing.assert_array_equal(by_dose, by_mask)
    np.testing.assert_array_equal(by_dose, largest_component(dose >= np.float32(0.8 * 61)))


def test_dmax_is_the_native_grids_even_where_resampling_loses_the_peak() -> None:
    dose, affine = blob()
    dose[5, 5, 5] = 70.0
    shifted = affine.copy()
    shifted[:3, 3] = 1.0  # model voxels halfway between the dose's
    roi = roi_of(dose, affine, (11, 11, 11), shifted, tau=0.7)
    assert dmax(dose) == 70.0
    axes = [np.arange(11) + 0.5] * 3
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    truth = RegularGridInterpolator([np.arange(12)] * 3, dose.astype(np.float64))(points)
    assert truth.max() < 0.9 * 70  # the peak is gone on the model grid
    np.testing.assert_array_equal(roi, largest_component(truth >= 49.0))


def test_component_largest_or_all() -> None:
    dose, affine = blob()
    largest = roi_of(dose, affine, dose.shape, affine, tau=0.8)
    everything = roi_of(dose, affine, dose.shape, affine, tau=0.8, component="all")
    assert not largest[11, 11, 11] and everything[11, 11, 11]
    assert everything.sum() == largest.sum() + 1


@pytest.mark.parametrize("order", ["dose", "mask"])
def test_outside_its_grid_the_dose_is_zero(order: str) -> None:
    dose = np.full((4, 4, 4), 50.0, np.float32)
    shift = np.eye(4)
    shift[:3, 3] = -3.0
    roi = roi_of(dose, np.eye(4), (12, 12, 12), shift, tau=0.5, roi=order)
    truth = np.zeros((12, 12, 12), bool)
    truth[3:7, 3:7, 3:7] = True
    np.testing.assert_array_equal(roi, truth)


@pytest.mark.parametrize("order", ["dose", "mask"])
def test_a_dose_voxel_reaches_half_its_edge_beyond_its_centre(order: str) -> None:
    dose = np.full((2, 2, 2), 50.0, np.float32)
    fine = np.diag([0.5, 0.5, 0.5, 1.0])
    fine[:3, 3] = -0.75 - 0.5  # centres from -1.25; the dose fills -0.5 to 1.5
    roi = roi_of(dose, np.eye(4), (8, 8, 8), fine, tau=0.5, roi=order)
    truth = np.zeros((8, 8, 8), bool)
    truth[2:6, 2:6, 2:6] = True
    np.testing.assert_array_equal(roi, truth)


@pytest.mark.parametrize("order", ["dose", "mask"])
def test_a_hot_spot_outside_the_image_is_an_empty_roi(order: str) -> None:
    dose = np.ones((10, 4, 4), np.float32)
    dose[9] = 60.0
    with pytest.raises(EmptyROI, match="case7.*0.8.*60.*check"):
        roi_of(dose, np.eye(4), (5, 4, 4), np.eye(4), tau=0.8, roi=order, name="case7")


@pytest.mark.parametrize("wrong", [{"roi": "paper"}, {"component": "biggest"}])
def test_unknown_choices(wrong: dict[str, str]) -> None:
    dose, affine = blob()
    with pytest.raises(ConfigError, match=next(iter(wrong.values()))):
        roi_of(dose, affine, dose.shape, affine, tau=0.8, **wrong)


def test_a_turned_dose_grid_gives_the_same_region() -> None:
    """The axes of the dose grid are no property of the dose."""
    dose, affine = blob()
    grid = np.diag([1.5, 1.5, 1.5, 1.0])
    straight = roi_of(dose, affine, (16, 16, 16), grid, tau=0.6)
    turned = dose.transpose(2, 0, 1)[:, ::-1]
    move = np.zeros((4, 4))  # index in the turned array -> index in the straight one
    move[0, 1], move[0, 3] = -1, 11
    move[1, 2] = move[2, 0] = move[3, 3] = 1
    moved = roi_of(turned, affine @ move, (16, 16, 16), grid, tau=0.6)
    assert straight.any()
    np.testing.assert_array_equal(moved, straight)


@given(voxels=st.integers(0, 9), seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_a_jittered_box_stays_a_box_near_the_one_it_was(voxels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = 16
    box = np.sort(rng.integers(0, size, (5, 2, 3)), axis=1).astype(np.float32)
    keys = jax.random.split(jax.random.key(seed), 5)
    moved = np.asarray(jitter_box(jnp.asarray(box), keys, voxels, size))
    assert (moved[:, 0] <= moved[:, 1]).all() and 0 <= moved.min() and moved.max() <= size - 1
    assert np.array_equal(moved, np.round(moved)) and abs(moved - box).max() <= voxels
    alone = jitter_box(jnp.asarray(box[:1]), keys[:1], 0, size)
    np.testing.assert_array_equal(alone, box[:1])


def test_every_side_of_a_box_is_moved_by_a_draw_of_its_own() -> None:
    box = jnp.tile(jnp.array([[8.0] * 3, [24.0] * 3]), (200, 1, 1))
    keys = jax.random.split(jax.random.key(0), 200)
    moved = np.asarray(jitter_box(box, keys, 2, 32)) - np.asarray(box)
    shifts = moved.reshape(200, 6).astype(int)
    assert {*shifts.ravel()} == {-2, -1, 0, 1, 2}
    assert len({tuple(row) for row in shifts}) > 150
    assert abs(np.corrcoef(shifts.T) - np.eye(6)).max() < 0.25
