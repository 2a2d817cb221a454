"""Surface distances: closed forms, edges of the volume, and agreement with MONAI and medpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from rtsam_jax.errors import VolumeError
from rtsam_jax.metrics.surface import assd, hd95, masd, surface_distances

ISOTROPIC, ANISOTROPIC = (1.0, 1.0, 1.0), (3.0, 0.7, 1.3)


def blob(seed: int, shape: tuple[int, int, int] = (17, 19, 14)) -> np.ndarray:
    """A random smooth mask, often in several pieces and cut by the border."""
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, 2, mode="wrap")
    return smooth > np.quantile(smooth, 0.75)


def ball(radius: float, spacing: tuple[float, float, float], extent: float = 30.0) -> np.ndarray:
    """A ball around the centre of a volume of `extent` mm."""
    axes = [np.arange(round(extent / s)) * s for s in spacing]
    grid = np.meshgrid(*[axis - axis.mean() for axis in axes], indexing="ij")
    return sum(g**2 for g in grid) <= radius**2


def test_two_voxels() -> None:
    a, b = np.zeros((2, 9, 9, 9), bool)
    a[1, 2, 3] = b[3, 2, 7] = True
    expected = math.hypot(2 * 3.0, 4 * 1.3)
    for measure in (hd95, assd, masd):
        assert measure(a, b, spacing_mm=ANISOTROPIC) == pytest.approx(expected)


def test_parallel_plates() -> None:
    a, b = np.zeros((2, 12, 6, 6), bool)
    a[2], b[9] = True, True
    assert hd95(a, b, spacing_mm=ANISOTROPIC) == pytest.approx(21.0)
    assert assd(a, b, spacing_mm=ANISOTROPIC) == pytest.approx(21.0)


def test_shifted_cubes() -> None:
    # Two planes of edge 2 (all surface), shifted by one within the plane: half the voxels coincide.
    a, b = np.zeros((2, 5, 8, 8), bool)
    a[2, 2:4, 2:4], b[2, 3:5, 2:4] = True, True
    assert assd(a, b, spacing_mm=(1, 2, 1)) == pytest.approx(1.0)  # half 0 mm, half 2 mm
    assert hd95(a, b, spacing_mm=(1, 2, 1)) == pytest.approx(2.0)


def test_concentric_balls() -> None:
    inner, outer = ball(8, (0.5, 0.5, 0.5)), ball(12, (0.5, 0.5, 0.5))
    assert hd95(inner, outer, spacing_mm=(0.5, 0.5, 0.5)) == pytest.approx(4, abs=0.5)
    assert assd(inner, outer, spacing_mm=(0.5, 0.5, 0.5)) == pytest.approx(4, abs=0.25)


def test_percentile_is_linear_and_the_maximum_of_both_directions() -> None:
    # From a single voxel to a rod along one axis, and back: distances 0, 1, ..., 10.
    point, rod = np.zeros((2, 15, 3, 3), bool)
    point[2, 1, 1], rod[2:13, 1, 1] = True, True
    assert hd95(point, rod, spacing_mm=ISOTROPIC) == pytest.approx(9.5)
    assert hd95(rod, point, spacing_mm=ISOTROPIC) == pytest.approx(9.5)
    # Pooled: (0 + 0 + 1 + ... + 10) / 12; the mean of the directed means is (0 + 5) / 2.
    assert assd(point, rod, spacing_mm=ISOTROPIC) == pytest.approx(55 / 12)
    assert masd(point, rod, spacing_mm=ISOTROPIC) == pytest.approx(2.5)


def test_a_mask_has_a_surface_where_the_volume_ends() -> None:
    full, core = np.ones((5, 5, 5), bool), np.zeros((5, 5, 5), bool)
    core[2, 2, 2] = True
    assert surface_distances(full, core, spacing_mm=ISOTROPIC).from_prediction.size == 125 - 27
    assert hd95(full, core, spacing_mm=ISOTROPIC) == pytest.approx(math.sqrt(12))


def test_the_surroundings_do_not_matter() -> None:
    a, b = blob(0), blob(1)
    wide = [np.pad(mask, ((9, 2), (0, 7), (5, 5))) for mask in (a, b)]
    for measure in (hd95, assd):
        assert measure(*wide, spacing_mm=ANISOTROPIC) == measure(a, b, spacing_mm=ANISOTROPIC)


def test_empty_masks() -> None:
    empty, full = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    for measure in (hd95, assd, masd):
        assert math.isinf(measure(empty, full, spacing_mm=ISOTROPIC))
        assert math.isinf(measure(full, empty, spacing_mm=ISOTROPIC))
        assert math.isnan(measure(empty, empty, spacing_mm=ISOTROPIC))


def test_spacing_is_required_and_checked() -> None:
    mask = np.ones((3, 3, 3), bool)
    with pytest.raises(TypeError, match="spacing_mm"):
        hd95(mask, mask)  # type: ignore[call-arg]
    for spacing in ((1, 1), (1, 1, 0), (1, 1, -2), (1, 1, math.nan)):
        with pytest.raises(VolumeError, match="spacing_mm"):
            hd95(mask, mask, spacing_mm=spacing)


def monai_pair(
    prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, float, float]
) -> tuple[float, float]:
    """(HD95, ASSD) by MONAI."""
    metrics = pytest.importorskip("monai.metrics")
    a, b = prediction[None, None], truth[None, None]
    distance = metrics.compute_hausdorff_distance(
        a, b, include_background=True, percentile=95, spacing=spacing
    )
    average = metrics.compute_average_surface_distance(
        a, b, include_background=True, symmetric=True, spacing=spacing
    )
    return float(distance), float(average)


@pytest.mark.parametrize("spacing", [ISOTROPIC, ANISOTROPIC, (0.9, 0.9, 2.5)])
@pytest.mark.parametrize("seed", range(4))
def test_monai_agrees_on_blobs(seed: int, spacing: tuple[float, float, float]) -> None:
    a, b = blob(2 * seed), blob(2 * seed + 1)
    ours = surface_distances(a, b, spacing_mm=spacing)
    assert (ours.hd95, ours.assd) == pytest.approx(monai_pair(a, b, spacing), rel=1e-5)


@pytest.mark.parametrize("spacing", [ISOTROPIC, ANISOTROPIC])
def test_monai_agrees_on_awkward_masks(spacing: tuple[float, float, float]) -> None:
    shape = (10, 11, 12)
    voxel, corner, slab, full = np.zeros((4, *shape), bool)
    voxel[4, 5, 6] = corner[0, 0, 0] = True
    slab[:, :, :3] = True
    full[:] = True
    noise = np.random.default_rng(3).random(shape) < 0.1
    for a in (voxel, corner, slab, full, noise):
        for b in (voxel, slab, noise):
            ours = surface_distances(a, b, spacing_mm=spacing)
            assert (ours.hd95, ours.assd) == pytest.approx(
                monai_pair(a, b, spacing), rel=1e-5, abs=1e-6
            )


def test_hd95_of_an_island_depends_on_the_definition() -> None:
    # A ball, and the same with a small island far away (measures-and-dicom.md): pooling both
    # directions, as medpy does, hides the island that the directed maximum shows.
    spacing = (3.0, 0.7, 0.7)
    truth = ball(12, spacing, extent=60)
    prediction = truth.copy()
    prediction[1:4, 2:22, 2:22] = True
    both = surface_distances(prediction, truth, spacing_mm=spacing)
    ours = both.hd95
    pooled = np.percentile(np.concatenate([both.from_prediction, both.from_truth]), 95)
    assert ours == pytest.approx(monai_pair(prediction, truth, spacing)[0], rel=1e-5)
    assert ours > pooled + 1
    assert ours != pytest.approx(hd95(prediction, truth, spacing_mm=(1, 1, 1)), rel=0.1)


@pytest.mark.parametrize("spacing", [ISOTROPIC, ANISOTROPIC])
@pytest.mark.parametrize("seed", range(3))
def test_medpy_agrees_on_assd(seed: int, spacing: tuple[float, float, float]) -> None:
    binary = pytest.importorskip("medpy.metric.binary", reason="medpy (ASSD) is optional")
    a, b = blob(seed), blob(seed + 50)
    expected = binary.assd(a, b, voxelspacing=spacing)
    assert assd(a, b, spacing_mm=spacing) == pytest.approx(expected, rel=1e-9)
    directed = binary.asd(a, b, voxelspacing=spacing), binary.asd(b, a, voxelspacing=spacing)
    assert masd(a, b, spacing_mm=spacing) == pytest.approx(sum(directed) / 2, rel=1e-9)


MASK = arrays(np.bool_, (4, 3, 5), elements=st.booleans()).filter(np.any)


@settings(deadline=None, max_examples=30)
@given(MASK, MASK, st.sampled_from([0.25, 2.0, 10.0]))
def test_laws(a: np.ndarray, b: np.ndarray, scale: float) -> None:
    ours = surface_distances(a, b, spacing_mm=ANISOTROPIC)
    assert ours.hd95 == hd95(b, a, spacing_mm=ANISOTROPIC)
    assert ours.assd == pytest.approx(assd(b, a, spacing_mm=ANISOTROPIC))
    scaled = surface_distances(a, b, spacing_mm=scale * np.array(ANISOTROPIC))
    assert scaled.hd95 == pytest.approx(scale * ours.hd95)
    assert scaled.assd == pytest.approx(scale * ours.assd)
    assert hd95(a, a, spacing_mm=ANISOTROPIC) == 0
