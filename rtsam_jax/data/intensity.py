"""What an image's intensities are normalised by, and the smoothing before they get coarser.

Statistics are those of the whole image on its native grid, before any cropping. CT is clipped to
[-1000, 1000] HU and uses the voxels above -900 HU, since most of a cropped head-and-neck CT is
blank air; MR uses the non-zero voxels (Sec. 4.1).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from rtsam_jax.errors import VolumeError
from rtsam_jax.prompts.dose import box_corners

_CT_RANGE = (-1000.0, 1000.0)  # HU
_CT_FOREGROUND = -900.0  # HU
_FWHM = 2 * np.sqrt(2 * np.log(2))  # of a Gaussian, in sigmas


def air(modality: str) -> float:
    """What there is outside the patient, in the image's unit."""
    return _CT_RANGE[0] if modality == "CT" else 0.0


def foreground(array: np.ndarray, modality: str, name: str) -> tuple[np.ndarray, float, float]:
    """Clipped float32 values, not to be written to, and mean and deviation of their foreground.

    Args:
      array: [X, Y, Z], in HU (CT) or any unit (MR).
      modality: "CT" or "MR".
      name: of the case, for errors.

    Raises:
      VolumeError: no foreground, or one without contrast.
    """
    values = np.asarray(array, np.float32)
    if modality == "CT":
        values = np.clip(values, *_CT_RANGE)
        inside = values[values > _CT_FOREGROUND]
        rule = f"above {_CT_FOREGROUND:g} HU"
    elif modality == "MR":
        inside = values[values != 0]
        rule = "other than zero"
    else:
        raise VolumeError(f"The image of {name} is of modality {modality!r}; use 'CT' or 'MR'.")
    if inside.size == 0:
        raise VolumeError(
            f"The image of {name} has no voxel {rule}; check its scaling and its task's modality."
        )
    mean, std = (float(f(inside, dtype=np.float64)) for f in (np.mean, np.std))
    if std <= 1e-6 * abs(mean):  # no contrast that float32 could express
        raise VolumeError(
            f"The image of {name} has one and the same value in all voxels {rule}, so it cannot be "
            "normalised; check that the right file was exported."
        )
    return values, mean, std


def body_box(array: np.ndarray, modality: str) -> np.ndarray:
    """First and last voxel of the foreground along each axis, inclusive: (2, 3) int64.

    Args:
      array: [X, Y, Z], in HU (CT) or any unit (MR), that `foreground` accepts.
      modality: "CT" or "MR".
    """
    box = box_corners(array > _CT_FOREGROUND if modality == "CT" else array != 0)
    assert box is not None  # `foreground` refuses such an image
    return box


def smooth(values: np.ndarray, spacing: np.ndarray, target_mm: float) -> np.ndarray:
    """Widens a voxel to a coarser model voxel: a Gaussian per axis, none where it gets no coarser.

    It takes the full width at half maximum of a native voxel to that of a model voxel,
    sigma = sqrt(ratio^2 - 1) / 2.355 voxels (Cardoso et al., MICCAI 2015).

    Args:
      values: [X, Y, Z] float32.
      spacing: (3,), native, mm.
      target_mm: of the model grid.
    """
    ratio = target_mm / spacing
    sigma = np.sqrt(np.maximum(ratio**2 - 1, 0)) / _FWHM
    if (sigma < 0.01).all():
        return values
    return ndimage.gaussian_filter(values, sigma, mode="nearest", truncate=3.0)
