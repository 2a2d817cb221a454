"""From a dose grid to the high-dose ROI and its box (Sec. 3.2.2).

Dmax is the largest positive dose of the native grid, since a resampled maximum loses spikes; the
ROI is where the dose reaches `tau * Dmax`, or another level of `dose_level`; the box is its
inclusive corners. The first half runs once per case in numpy; `box_from_roi` runs under `jit` after
augmentation and crop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from rtsam_jax.errors import (
    ConfigError,
    DoseUnit,
    EmptyROI,
    IncompleteCase,
    NegativeDose,
    ZeroDose,
)
from rtsam_jax.geometry import HALF, index_map, resample

_NEIGHBOURS_26 = np.ones((3, 3, 3), bool)
_NEGATIVE = -0.01  # of Dmax: a dose resampled with splines rings, but not by more
# External beams stay below, hot spots included; in cGy every course of more than 2 Gy is above.
_LARGEST_GY = 200.0
_MARGIN_SLACK = 1e-4  # mm; keeps rounding from dropping voxels exactly a margin away


class DoseLevel(NamedTuple):
    """The dose that makes the ROI."""

    value: float  # in the dose grid's unit
    meaning: str  # "0.8 of its largest dose, 60", for messages


def dmax(dose: np.ndarray, *, name: str = "dose") -> float:
    """Largest dose over the positive voxels of the native grid, in the grid's unit.

    Raises:
      NegativeDose: a voxel is below -1 % of it; `name` says whose.
      ZeroDose: no voxel is positive.
    """
    peak, low = max(0.0, float(dose.max(initial=0.0))), float(dose.min(initial=0.0))
    if low < _NEGATIVE * peak:
        raise NegativeDose(
            f"The dose of {name} falls to {low:g} while its largest value is {peak:g}; a dose is "
            "not negative, so check its scaling or export the plan again."
        )
    if not peak > 0:
        raise ZeroDose(
            f"The dose of {name} has no positive voxel; check its scaling or export the plan again."
        )
    return peak


def near_maximum(dose: np.ndarray) -> float:
    """D2%: the largest dose that at least 2 % of the irradiated voxels reach.

    The near-maximum dose of ICRU Report 83 (2010), of the whole irradiated volume (the voxels with
    positive dose) rather than of one structure: of n of them, the ceil(n / 50)-th largest.

    Args:
      dose: any shape, with a positive voxel.
    """
    irradiated = dose[dose > 0]
    rank = math.ceil(irradiated.size / 50)
    return float(np.partition(irradiated, -rank)[-rank])


def dose_level(
    dose: np.ndarray,
    *,
    threshold: str = "dmax",
    tau: float = 0.8,
    gy: float = 0.0,
    prescription_gy: float | None = None,
    name: str = "dose",
) -> DoseLevel:
    """The level that the ROI's dose reaches.

    Args:
      dose: on its native grid; in Gy where the threshold is in Gy.
      threshold: "dmax", `tau` times Dmax (Sec. 3.2.2); "d2", times the near-maximum dose;
        "prescription", times the record's prescription; or "absolute", `gy` itself.
      prescription_gy: of the case's record, where it has one.
      name: of the case, for errors.

    Raises:
      NegativeDose, ZeroDose: as `dmax`.
      DoseUnit: a threshold in Gy, and a Dmax above 200, which a dose in cGy has.
      IncompleteCase: a threshold by prescription without one.
      ConfigError: an unknown `threshold`.
    """
    peak = dmax(dose, name=name)
    if threshold == "dmax":
        return DoseLevel(tau * peak, f"{tau:g} of its largest dose, {peak:g}")
    if threshold == "d2":
        near = near_maximum(dose)
        return DoseLevel(tau * near, f"{tau:g} of its near-maximum dose D2%, {near:g}")
    if threshold not in ("prescription", "absolute"):
        raise ConfigError(
            f"dose.threshold is {threshold!r}; use 'dmax', 'd2', 'prescription' or 'absolute'."
        )
    if peak > _LARGEST_GY:
        raise DoseUnit(
            f"The dose of {name} reaches {peak:g}, which none in Gy does ({_LARGEST_GY:g} at "
            f"most), but dose.threshold={threshold!r} needs Gy; rescale its file (by 0.01 from "
            "cGy), or set dose.threshold to 'dmax' or 'd2'."
        )
    if threshold == "absolute":
        return DoseLevel(gy, f"{gy:g} Gy")
    if prescription_gy is None:
        raise IncompleteCase(
            f"The record of {name} has no prescription_gy, which dose.threshold='prescription' "
            "needs; add it, or set another threshold."
        )
    return DoseLevel(tau * prescription_gy, f"{tau:g} of the prescription, {prescription_gy:g} Gy")


def threshold_mask(dose: np.ndarray, level: float) -> np.ndarray:
    """Bool, of the dose's shape: where it reaches the level."""
    # In float32, like the dose: in float64, 0.6 times a stored 10.6 Gy is above a stored 6.36 Gy.
    return np.asarray(dose, np.float32) >= np.float32(level)


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


def grown(mask: np.ndarray, margin_mm: float, spacing: np.ndarray) -> np.ndarray:
    """A mask and every voxel whose centre lies within `margin_mm` of one of its own: bool.

    Args:
      mask: bool [X, Y, Z].
      margin_mm: radius of the Euclidean ball; 0 changes nothing.
      spacing: (3,), mm.
    """
    box = box_corners(mask)
    if margin_mm <= 0 or box is None:
        return mask
    reach = np.ceil(margin_mm / spacing).astype(int)  # distances are needed no further out
    low = np.maximum(box[0] - reach, 0)
    window = tuple(slice(a, b) for a, b in zip(low, box[1] + reach + 1, strict=True))
    out = mask.copy()
    distance = ndimage.distance_transform_edt(~mask[window], sampling=spacing)
    out[window] = distance <= margin_mm + _MARGIN_SLACK
    return out


def fill_box(box: jax.Array, valid: jax.Array, size: int) -> jax.Array:
    """Masks of boxes: uint8 [B, size, size, size], empty where a box is not valid.

    Args:
      box: [B, 2, 3], inclusive corners.
      valid: bool [B].
    """
    inside = jnp.ones((box.shape[0], 1, 1, 1), bool) & valid[:, None, None, None]
    for axis in range(3):
        line = jnp.arange(size).reshape([-1 if a == axis else 1 for a in range(3)])
        low, high = box[:, 0, axis], box[:, 1, axis]
        inside &= (line >= low[:, None, None, None]) & (line <= high[:, None, None, None])
    return inside.astype(jnp.uint8)


def jitter_box(box: jax.Array, keys: jax.Array, voxels: int, size: int) -> jax.Array:
    """Moves each side of boxes `[B, 2, 3]` by up to `voxels`, within a crop of edge `size`.

    Whole voxels, corners in order; for training on boxes drawn around a label, which are never so
    tight at test time.

    Args:
        keys: [B], one per box.
    """
    shift = jax.vmap(lambda k: jax.random.randint(k, (2, 3), -voxels, voxels + 1))(keys)
    return jnp.sort(jnp.clip(box + shift, 0, size - 1), axis=1)


def roi_on_grid(
    dose: np.ndarray,
    dose_affine: np.ndarray,
    shape: Sequence[int],
    affine: np.ndarray,
    *,
    level: DoseLevel,
    component: str = "largest",
    roi: str = "dose",
    margin_mm: float = 0.0,
    name: str = "dose",
) -> np.ndarray:
    """The high-dose ROI on the model grid, bool [*shape]; outside its own grid the dose is 0.

    Args:
      dose: [X, Y, Z] on its native grid; what is negative counts as 0.
      dose_affine: [4, 4], dose index -> world mm.
      shape: of the model grid.
      affine: [4, 4], model index -> world mm.
      level: of `dose_level`.
      component: "largest" or "all".
      roi: "dose": the dose is resampled linearly, thresholded, then the component is taken;
        "mask" (the paper's order): threshold and component on the native grid, then the mask is
        resampled linearly and cut at 0.5.
      margin_mm: by which the ROI is grown at the end, within the grid.
      name: of the case, for errors.

    Raises:
      EmptyROI: no model voxel belongs to the ROI.
      ConfigError: an unknown `component` or `roi`.
    """
    if component not in ("largest", "all"):
        raise ConfigError(f"dose.component is {component!r}; use 'largest' or 'all'.")
    if roi not in ("dose", "mask"):
        raise ConfigError(f"dose.roi is {roi!r}; use 'dose' or 'mask'.")
    keep = largest_component if component == "largest" else np.asarray
    matrix = index_map(dose_affine, affine)
    dose = np.maximum(dose, 0)
    if roi == "dose":
        mask = keep(threshold_mask(resample(dose, matrix, shape), level.value))
    else:
        native = keep(threshold_mask(dose, level.value))
        mask = resample(native, matrix, shape) >= HALF
    if not mask.any():
        raise EmptyROI(
            f"No voxel of {name}'s image reaches {level.meaning}; check that the dose belongs to "
            "this image; to train, lower the dose's threshold or data.spacing_mm, and to predict, "
            "give a box."
        )
    return grown(mask, margin_mm, np.linalg.norm(np.asarray(affine)[:3, :3], axis=0))
