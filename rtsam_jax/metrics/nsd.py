"""Normalised surface Dice: the share of both surfaces that lies within a tolerance of the other.

Surface elements stand in the cubes between voxel centres and weigh by their area
(`rtsam_jax.metrics.surface_area`), as in DeepMind's `surface-distance`. An element agrees if the
nearest element of the other surface, centre to centre, is at most the tolerance away.

One mask empty: 0. Both empty: NaN, which aggregation excludes and counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rtsam_jax.errors import VolumeError
from rtsam_jax.metrics.crop import union_box
from rtsam_jax.metrics.overlap import as_masks
from rtsam_jax.metrics.surface import checked_spacing, directed_distances
from rtsam_jax.metrics.surface_area import cube_codes, element_areas, on_surface


class SurfaceElements(NamedTuple):
    """Area of each element of both surfaces (mm2), and how far the other surface is (mm)."""

    area_prediction: NDArray[np.float64]
    area_truth: NDArray[np.float64]
    from_prediction: NDArray[np.float64]  # infinite where the truth is empty
    from_truth: NDArray[np.float64]

    def nsd(self, tolerance_mm: float) -> float:
        """The share of the surfaces' area that agrees; 0 to 1, NaN without any surface."""
        area = np.concatenate([self.area_prediction, self.area_truth])
        near = np.concatenate([self.from_prediction, self.from_truth]) <= tolerance_mm
        return float(area[near].sum() / area.sum()) if area.size else float("nan")


def surface_elements(
    prediction: Any, truth: Any, *, spacing_mm: Sequence[float] | NDArray[Any]
) -> SurfaceElements:
    """The elements of both surfaces.

    Args:
      prediction: Mask [X,Y,Z].
      truth: Mask [X,Y,Z].
      spacing_mm: Voxel size along each axis in mm.

    Raises:
      VolumeError: The masks are not 3-D, their shapes differ, one holds NaN, or the spacing is not
        usable.
    """
    prediction, truth = as_masks(prediction, truth)
    if truth.ndim != 3:
        raise VolumeError(
            f"The masks have shape {truth.shape}, but a surface's area is that of a 3-D mask; "
            "stack the slices."
        )
    spacing = checked_spacing(spacing_mm, 3)
    box = union_box(prediction, truth)
    codes = cube_codes(prediction[box]), cube_codes(truth[box])
    surfaces = on_surface(codes[0]), on_surface(codes[1])
    areas = element_areas(spacing)
    return SurfaceElements(
        areas[codes[0][surfaces[0]]],
        areas[codes[1][surfaces[1]]],
        directed_distances(surfaces[0], surfaces[1], spacing),
        directed_distances(surfaces[1], surfaces[0], spacing),
    )


def nsd(
    prediction: Any,
    truth: Any,
    *,
    spacing_mm: Sequence[float] | NDArray[Any],
    tolerance_mm: float,
) -> float:
    """Normalised surface Dice at a tolerance in mm; see `surface_elements`."""
    return surface_elements(prediction, truth, spacing_mm=spacing_mm).nsd(tolerance_mm)
