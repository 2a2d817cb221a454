"""Distances between the surfaces of two masks, in mm.

Tools disagree on these numbers, so the definitions are fixed here. The surface of a mask is the set
of its voxels that a 6-connected erosion removes, everything beyond the volume being background: a
mask that touches the border has a surface there. Distances run between voxel centres.

* HD95 is the maximum of the two directed 95th percentiles (linear interpolation).
* ASSD is the mean over both directed distance sets pooled.
* MASD, the mean of the two directed means, is another number and has its own name.

One mask empty: infinite. Both empty: NaN, which aggregation excludes and counts
(`rtsam_jax.metrics.summary`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rtsam_jax.errors import VolumeError
from rtsam_jax.metrics.crop import union_box
from rtsam_jax.metrics.overlap import as_masks


class SurfaceDistances(NamedTuple):
    """Directed distances in mm: one number per surface voxel of the mask they start from."""

    from_prediction: NDArray[np.float64]  # to the nearest surface voxel of the truth
    from_truth: NDArray[np.float64]  # to the nearest surface voxel of the prediction

    @property
    def hd95(self) -> float:
        """Maximum of the two directed 95th percentiles, mm."""
        return self._reduce(lambda a, b: max(np.percentile(a, 95), np.percentile(b, 95)))

    @property
    def assd(self) -> float:
        """Mean over both sets pooled, mm."""
        return self._reduce(lambda a, b: np.concatenate([a, b]).mean())

    @property
    def masd(self) -> float:
        """Mean of the two directed means, mm."""
        return self._reduce(lambda a, b: (a.mean() + b.mean()) / 2)

    def _reduce(self, reduction: Any) -> float:
        if not self.from_prediction.size and not self.from_truth.size:
            return float("nan")
        if not self.from_prediction.size or not self.from_truth.size:
            return float("inf")
        return float(reduction(self.from_prediction, self.from_truth))


def checked_spacing(spacing_mm: Sequence[float] | NDArray[Any], axes: int) -> NDArray[np.float64]:
    """The spacing as `axes` positive float64 lengths.

    Raises:
      VolumeError: Another number of lengths, or one that is not positive and finite.
    """
    try:
        spacing = np.asarray(spacing_mm, dtype=np.float64)
    except (TypeError, ValueError):  # no numbers, or lists of unequal length
        spacing = np.empty(0)
    if spacing.shape != (axes,) or not np.all(np.isfinite(spacing)) or np.any(spacing <= 0):
        raise VolumeError(
            f"spacing_mm is {spacing_mm!r}, but it must be {axes} positive lengths in mm, "
            "one per axis of the masks."
        )
    return spacing


def border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The voxels that a 6-connected erosion removes; beyond the volume is background."""
    # border_value=0 is exactly the padding by one voxel of background.
    return mask & ~ndimage.binary_erosion(mask, border_value=0)


def surface_distances(
    prediction: Any, truth: Any, *, spacing_mm: Sequence[float] | NDArray[Any]
) -> SurfaceDistances:
    """Both directed sets of surface distances.

    Args:
      prediction: Mask [X,Y,Z].
      truth: Mask [X,Y,Z].
      spacing_mm: Voxel size along each axis in mm. Required: without it the unit would be voxels.

    Returns:
      Two sets, each empty if the mask it starts from is empty. If only the other mask is empty the
      distances are infinite.

    Raises:
      VolumeError: The shapes differ, a mask holds NaN, or the spacing is not usable.
    """
    prediction, truth = as_masks(prediction, truth)
    spacing = checked_spacing(spacing_mm, prediction.ndim)
    box = union_box(prediction, truth)
    borders = border(prediction[box]), border(truth[box])
    return SurfaceDistances(
        directed_distances(borders[0], borders[1], spacing),
        directed_distances(borders[1], borders[0], spacing),
    )


def directed_distances(
    start: NDArray[np.bool_], end: NDArray[np.bool_], spacing: NDArray[np.float64]
) -> NDArray[np.float64]:
    """From each voxel of `start` to the nearest of `end`, mm; infinite if `end` is empty."""
    if not end.any():
        return np.full(np.count_nonzero(start), np.inf)
    # Only where the nearest voxel is: distances are then computed where they are asked for, not in
    # the whole box.
    nearest = ndimage.distance_transform_edt(
        ~end, sampling=spacing, return_distances=False, return_indices=True
    )
    squared = np.zeros(np.count_nonzero(start))
    for index, at, length in zip(nearest, start.nonzero(), spacing, strict=True):
        squared += ((index[start] - at) * length) ** 2
    return np.sqrt(squared)


def hd95(prediction: Any, truth: Any, *, spacing_mm: Sequence[float] | NDArray[Any]) -> float:
    """Maximum of the two directed 95th percentiles in mm; see `surface_distances`."""
    return surface_distances(prediction, truth, spacing_mm=spacing_mm).hd95


def assd(prediction: Any, truth: Any, *, spacing_mm: Sequence[float] | NDArray[Any]) -> float:
    """Mean of both directed distance sets pooled, in mm; see `surface_distances`."""
    return surface_distances(prediction, truth, spacing_mm=spacing_mm).assd


def masd(prediction: Any, truth: Any, *, spacing_mm: Sequence[float] | NDArray[Any]) -> float:
    """Mean of the two directed means in mm; see `surface_distances`."""
    return surface_distances(prediction, truth, spacing_mm=spacing_mm).masd
