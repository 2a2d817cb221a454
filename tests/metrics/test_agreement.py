"""Hundreds of random and awkward pairs of masks, measured by other people's tools as well."""

from __future__ import annotations

import numpy as np
import pytest

from rtsam_jax.metrics.nsd import surface_elements
from rtsam_jax.metrics.surface import surface_distances
from rtsam_jax.metrics.surface_area import element_areas
from tests.metrics.masks import SPACINGS, UNEQUAL, awkward, ball, pairs

# What the tools' own calls are warned of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Please import:DeprecationWarning", "ignore:monai:FutureWarning"
)
by_spacing = pytest.mark.parametrize("spacing", SPACINGS, ids=str)
Spacing = tuple[float, float, float]


def monai_pair(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing) -> tuple[float, float]:
    """(HD95, ASSD) by MONAI."""
    metrics = pytest.importorskip("monai.metrics", reason="MONAI is not installed")
    a, b = prediction[None, None], truth[None, None]
    distance = metrics.compute_hausdorff_distance(
        a, b, include_background=True, percentile=95, spacing=spacing
    )
    average = metrics.compute_average_surface_distance(
        a, b, include_background=True, symmetric=True, spacing=spacing
    )
    return float(distance), float(average)


@by_spacing
def test_monai_agrees_on_hd95_and_assd(spacing: Spacing) -> None:
    found, expected = {}, {}
    for name, (a, b) in pairs().items():
        ours = surface_distances(a, b, spacing_mm=spacing)
        found[name] = ours.hd95, ours.assd
        expected[name] = monai_pair(a, b, spacing)
    assert len(found) > 180
    for name in found:  # MONAI computes in float32
        assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name


@by_spacing
def test_medpy_agrees_on_assd_and_directed_means(spacing: Spacing) -> None:
    binary = pytest.importorskip("medpy.metric.binary", reason="medpy is not installed")
    for name, (a, b) in pairs().items():
        ours = surface_distances(a, b, spacing_mm=spacing)
        expected = binary.assd(a, b, voxelspacing=spacing)
        assert ours.assd == pytest.approx(expected, rel=1e-9, abs=1e-12), name
        directed = (binary.asd(x, y, voxelspacing=spacing) for x, y in ((a, b), (b, a)))
        assert ours.masd == pytest.approx(sum(directed) / 2, rel=1e-9, abs=1e-12), name


@by_spacing
def test_surface_distance_agrees_on_nsd(spacing: Spacing) -> None:
    deepmind = pytest.importorskip("surface_distance", reason="surface-distance is not installed")
    tolerances = (0.0, 0.5, 1.0, 2.0, 5.0)
    for name, (a, b) in pairs().items():
        theirs = deepmind.compute_surface_distances(b, a, spacing)
        ours = surface_elements(a, b, spacing_mm=spacing)
        for tolerance in tolerances:
            expected = deepmind.compute_surface_dice_at_tolerance(theirs, tolerance)
            assert ours.nsd(tolerance) == pytest.approx(expected, rel=1e-9), (name, tolerance)
        assert ours.area_truth.sum() == pytest.approx(theirs["surfel_areas_gt"].sum()), name


@by_spacing
def test_surface_distance_has_the_same_area_for_every_code(spacing: Spacing) -> None:
    tables = pytest.importorskip("surface_distance.lookup_tables", reason="not installed")
    theirs = tables.create_table_neighbour_code_to_surface_area(spacing)
    # Its codes count the corners from the other end.
    backwards = [int(f"{code:08b}"[::-1], 2) for code in range(256)]
    np.testing.assert_allclose(element_areas(np.array(spacing)), theirs[backwards], rtol=1e-12)


def test_hd95_of_an_island_depends_on_the_definition() -> None:
    # A ball, and the same with a small island far away: pooling both directions, as medpy does,
    # hides the island that the directed maximum shows.
    spacing = (3.0, 0.7, 0.7)
    truth = ball(12, spacing, extent=60)
    prediction = truth.copy()
    prediction[1:4, 2:22, 2:22] = True
    both = surface_distances(prediction, truth, spacing_mm=spacing)
    pooled = np.percentile(np.concatenate([both.from_prediction, both.from_truth]), 95)
    assert both.hd95 == pytest.approx(monai_pair(prediction, truth, spacing)[0], rel=1e-5)
    assert both.hd95 > pooled + 1
    voxels = surface_distances(prediction, truth, spacing_mm=(1, 1, 1))
    assert both.hd95 != pytest.approx(voxels.hd95, rel=0.1)


def test_assd_and_masd_are_different_numbers() -> None:
    kinds = awkward()
    ours = surface_distances(kinds["voxel"], kinds["full"], spacing_mm=UNEQUAL)
    assert ours.assd > 1.5 * ours.masd
