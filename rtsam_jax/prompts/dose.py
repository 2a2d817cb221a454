"""From a dose grid to the high-dose ROI and its box (Sec. 3.2.2).

Dmax is the largest positive dose of the native grid, since a resampled maximum loses spikes; the
ROI is where the dose reaches `tau * Dmax`; the box is its inclusive corners. The first half runs
once per case in numpy; `box_from_roi` runs under `jit` after augmentation and crop.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from rtsam_jax.errors import ConfigError, EmptyROI, ZeroDose
from rtsam_jax.geometry import index_map, resample

_NEIGHBOURS_26 = np.ones((3, 3, 3), bool)


def dmax(dose: np.ndarray, *, name: str = "dose") -> float:
    """Largest dose over the positive voxels of the native grid, in the grid's unit.

    Raises:
      ZeroDose: no voxel is positive; `name` says whose.
    """
    peak = float(dose.max(initial=0.0))
    if not peak > 0:
        raise ZeroDose(
            f"The dose of {name} has no positive voxel; check its scaling or export the plan again."
        )
    return peak


def threshold_mask(dose: np.ndarray, tau: float, peak: float) -> np.ndarray:
    """Bool, of the dose's shape: where it reaches `tau * peak`."""
    # In float32, like the dose: in float64, 0.6 times a stored 10.6 Gy is above a stored 6.36 Gy.
    return np.asarray(dose, np.float32) >= np.float32(tau * peak)


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest 26-connected component of a bool [X, Y, Z]; of equals, the first in scan order.

    An empty mask stays empty.
    """
    labels, count = ndimage.label(mask, _NEIGHBOURS_26)
    if count <= 1:
        return np.array(mask, bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def box_corners(mask: np.ndarray) -> np.ndarray | None:
    """First and last voxel of a mask along each axis, inclusive: (2, 3) int64; None if empty."""
    corners = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        (filled,) = np.nonzero(np.asarray(mask).any(axis=others))
        if filled.size == 0:
            return None
        corners.append((filled[0], filled[-1]))
    return np.array(corners, np.int64).T


def box_from_roi(roi: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inclusive box corners of ROI volumes, with static shapes.

    Args:
      roi: [..., X, Y, Z]; a voxel belongs to the ROI where it is positive.

    Returns:
      Corners float32 [..., 2, 3] in voxel indices, zeros where the ROI is empty, and a bool [...]
      that is false there.
    """
    inside_XYZ = roi > 0
    inside_XY = inside_XYZ.any(-1)
    lines = (inside_XY.any(-1), inside_XY.any(-2), inside_XYZ.any((-3, -2)))
    valid = lines[0].any(-1)
    first = jnp.stack([line.argmax(-1) for line in lines], -1)
    last = jnp.stack([line.shape[-1] - 1 - line[..., ::-1].argmax(-1) for line in lines], -1)
    box = jnp.stack([first, last], -2)
    return jnp.where(valid[..., None, None], box, 0).astype(jnp.float32), valid


def roi_on_grid(
    dose: np.ndarray,
    dose_affine: np.ndarray,
    shape: Sequence[int],
    affine: np.ndarray,
    *,
    tau: float,
    component: str = "largest",
    roi: str = "dose",
    name: str = "dose",
) -> tuple[np.ndarray, float]:
    """The high-dose ROI on the model grid; outside its own grid the dose is 0.

    Args:
      dose: [X, Y, Z] on its native grid.
      dose_affine: [4, 4], dose index -> world mm.
      shape: of the model grid.
      affine: [4, 4], model index -> world mm.
      tau: share of Dmax.
      component: "largest" or "all".
      roi: "dose": the dose is resampled linearly, thresholded, then the component is taken;
        "mask" (the paper's order): threshold and component on the native grid, then the mask is
        resampled linearly and cut at 0.5.
      name: of the case, for errors.

    Returns:
      The ROI, bool [*shape], and Dmax of the native grid.

    Raises:
      ZeroDose: no positive dose.
      EmptyROI: no model voxel belongs to the ROI.
      ConfigError: an unknown `component` or `roi`.
    """
    if component not in ("largest", "all"):
        raise ConfigError(f"dose.component is {component!r}; use 'largest' or 'all'.")
    if roi not in ("dose", "mask"):
        raise ConfigError(f"dose.roi is {roi!r}; use 'dose' or 'mask'.")
    keep = largest_component if component == "largest" else np.asarray
    peak = dmax(dose, name=name)
    matrix = index_map(dose_affine, affine)
    if roi == "dose":
        mask = keep(threshold_mask(resample(dose, matrix, shape), tau, peak))
    else:
        native = keep(threshold_mask(dose, tau, peak))
        mask = resample(native, matrix, shape) >= 0.5
    if not mask.any():
        raise EmptyROI(
            f"No voxel of {name}'s image reaches {tau:g} of its largest dose, {peak:g}; check "
            "that the dose belongs to this image, or lower dose.tau or data.spacing_mm."
        )
    return mask, peak
