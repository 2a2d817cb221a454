"""From a case's image and dose to model input, and from a prediction back. Takes no label.

The model grid keeps the image's own (closest RAS+) axes, is isotropic, and shares the image's
centre, so that at equal spacing it is the image's grid. Everything else is resampled onto it.

Intensity: statistics are those of the whole image on its native grid, before any cropping. CT is
clipped to [-1000, 1000] HU and uses the voxels above -900 HU, since most of a cropped
head-and-neck CT is blank air; MR uses the non-zero voxels (Sec. 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import ndimage

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.nifti import Volume
from rtsam_jax.errors import NonFiniteVoxels, NoOverlap, VolumeError
from rtsam_jax.geometry import index_map, inside_extent, resample
from rtsam_jax.prompts.dose import box_corners, roi_on_grid

__all__ = [
    "Grid",
    "PreprocessSpec",
    "Preprocessed",
    "Space",
    "label_to_grid",
    "model_grid",
    "preprocess",
    "require_overlap",
    "to_native",
]

_CT_RANGE = (-1000.0, 1000.0)  # HU
_CT_FOREGROUND = -900.0  # HU
_FWHM = 2 * np.sqrt(2 * np.log(2))  # of a Gaussian, in sigmas
_LARGEST = 2048  # voxels along an axis, or along a voxel of the other grid: else a unit is wrong
_HALF = 0.5 - 1e-5  # interpolation weights of thirds miss one half by rounding


class Space(Protocol):
    """Anything with a voxel grid: a `Volume` or a `Grid`."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def affine(self) -> np.ndarray: ...


@dataclass(frozen=True)
class PreprocessSpec:
    """What preprocessing depends on; part of a cache's key."""

    spacing_mm: float = 1.0  # isotropic model grid
    tau: float = 0.8  # share of Dmax
    component: str = "largest"  # "largest" | "all"
    roi: str = "dose"  # "dose" | "mask"

    @classmethod
    def from_config(cls, cfg: ExperimentConfig) -> PreprocessSpec:
        """Takes the fields from `cfg.data` and `cfg.dose`."""
        return cls(cfg.data.spacing_mm, cfg.dose.tau, cfg.dose.component, cfg.dose.roi)


@dataclass(frozen=True, eq=False)
class Grid:
    """The model grid: [4, 4] float64 affine, voxel index -> world RAS+ mm."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    def to_world(self, index: np.ndarray) -> np.ndarray:
        """Voxel indices [..., 3] -> world mm [..., 3]."""
        return np.asarray(index) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, world: np.ndarray) -> np.ndarray:
        """World mm [..., 3] -> voxel indices [..., 3], not rounded."""
        offset = np.asarray(world) - self.affine[:3, 3]
        return np.linalg.solve(self.affine[:3, :3], offset[..., None])[..., 0]


@dataclass(frozen=True, eq=False)
class Preprocessed:
    """One case on the model grid."""

    image: np.ndarray  # float32 [X, Y, Z], normalised
    roi: np.ndarray  # uint8 [X, Y, Z], the high-dose region
    box: np.ndarray  # int64 (2, 3), its inclusive corners
    dmax: float  # of the native dose grid, in its unit
    grid: Grid
    modality: str  # "CT" | "MR"
    fraction_outside_dose: float  # share of the model grid that the dose grid does not cover
    background: float  # what air (CT) or zero (MR) became: fills crops beyond the volume


def preprocess(
    image: Volume, dose: Volume, modality: str, spec: PreprocessSpec, *, name: str
) -> Preprocessed:
    """Brings an image and its dose to the model grid.

    Where the model grid is coarser than the image, the image (and only it) is smoothed first,
    with a Gaussian that widens the full width at half maximum of a native voxel to that of a
    model voxel, sigma = sqrt(ratio^2 - 1) / 2.355 voxels per axis (Cardoso et al., MICCAI 2015).

    Args:
      image: in HU (CT) or any unit (MR).
      dose: on any grid, in any unit.
      modality: "CT" or "MR".
      spec: grid and ROI.
      name: of the case, for errors.

    Raises:
      NonFiniteVoxels, VolumeError: an image that cannot be used, is far too large or small for the
        model's spacing, or has no foreground contrast.
      NoOverlap: the dose grid covers no voxel of the image.
      ZeroDose: no positive dose.
      EmptyROI: no model voxel reaches the threshold.
    """
    _require_usable(image, f"image of {name}")
    _require_usable(dose, f"dose of {name}")
    grid = model_grid(image, spec.spacing_mm, name=name)
    covered = require_overlap(dose, grid, what="dose", name=name)
    roi, dmax = roi_on_grid(
        dose.array,
        dose.affine,
        grid.shape,
        grid.affine,
        tau=spec.tau,
        component=spec.component,
        roi=spec.roi,
        name=name,
    )
    box = box_corners(roi)
    assert box is not None  # roi_on_grid never returns an empty ROI
    values, mean, std = _intensity(image.array, modality, name)
    values = _smooth(values, image.spacing, spec.spacing_mm)
    values = resample(values, index_map(image.affine, grid.affine), grid.shape)
    air = _CT_RANGE[0] if modality == "CT" else 0.0
    return Preprocessed(
        image=((values - np.float32(mean)) / np.float32(std)).astype(np.float32),
        roi=roi.astype(np.uint8),
        box=box,
        dmax=dmax,
        grid=grid,
        modality=modality,
        fraction_outside_dose=float(1 - covered.mean()),
        background=float((np.float32(air) - np.float32(mean)) / np.float32(std)),
    )


def model_grid(image: Space, spacing_mm: float, *, name: str = "this case") -> Grid:
    """The isotropic grid along the image's axes that covers its field of view and its centre.

    Raises:
      VolumeError: an axis, or a model voxel along it, would have over 2048 voxels; `name` says
        whose.
    """
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    extent = np.array(image.shape) * spacing
    # A thousandth of a voxel is rounding, not field of view.
    count = np.maximum(1, np.ceil(extent / spacing_mm - 1e-3))
    scale = spacing_mm / spacing
    if not (np.maximum(count, scale) <= _LARGEST).all():
        raise VolumeError(
            f"The image of {name} extends over {' x '.join(f'{mm:g}' for mm in extent)} mm, which "
            f"is too {'large' if (count > _LARGEST).any() else 'small'} for a model grid of "
            f"{spacing_mm:g} mm; check its file's affine and unit of length, or set "
            "config.data.spacing_mm to suit."
        )
    size = count.astype(int)
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag(scale)
    matrix[:3, 3] = (np.array(image.shape) - 1) / 2 - scale * (size - 1) / 2
    x, y, z = size.tolist()
    return Grid((x, y, z), image.affine @ matrix)


def require_overlap(volume: Space, grid: Space, *, what: str, name: str) -> np.ndarray:
    """Which voxels of the grid lie inside a volume, `what` of case `name`: bool `[X, Y, Z]`.

    Raises:
      NoOverlap: none does.
    """
    covered = inside_extent(volume.shape, index_map(volume.affine, grid.affine), grid.shape)
    if not covered.any():
        raise NoOverlap(
            f"The {what} of {name} covers no voxel of its image; check that both belong together, "
            f"or register the {what} to the image."
        )
    return covered


def label_to_grid(label: Volume, grid: Grid, *, name: str = "label") -> np.ndarray:
    """A mask on the model grid: linear interpolation, cut at one half; uint8 [X, Y, Z].

    A lesion (26-connected component) that would leave no voxel is kept: the model voxels nearest
    to its own are marked. Parts of the label outside the model grid are lost.

    Raises:
      NoOverlap: the label's and the model's grids share no space; `name` says whose.
    """
    matrix = index_map(label.affine, grid.affine)
    require_overlap(label, grid, what="label", name=name)
    result = resample(label.array != 0, matrix, grid.shape) >= _HALF
    lesions, count = ndimage.label(label.array != 0, np.ones((3, 3, 3), bool))
    present = _lesions_at(lesions, np.argwhere(result), matrix)
    lost = np.setdiff1d(np.arange(1, count + 1), present)
    if lost.size:
        voxels = np.argwhere(np.isin(lesions, lost))
        inverse = index_map(grid.affine, label.affine)
        nearest = np.rint(voxels @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
        nearest = nearest[((nearest >= 0) & (nearest < grid.shape)).all(axis=1)]
        result[tuple(nearest.T)] = True
    return result.astype(np.uint8)


def to_native(probability: np.ndarray, grid: Grid, native: Space) -> np.ndarray:
    """A prediction on another grid by linear interpolation: float32 [*native.shape], 0 outside.

    Args:
      probability: [X, Y, Z] on `grid`.
      grid: the model grid.
      native: where to: the label's or the image's `Volume`, or a `Grid`.
    """
    return resample(probability, index_map(grid.affine, native.affine), native.shape)


def _lesions_at(lesions: np.ndarray, voxels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Numbers of the lesions that model voxels [n, 3] show.

    A voxel shows the lesion that its centre lies in; where that is background, every lesion among
    the corners it was interpolated from.
    """
    last = np.array(lesions.shape) - 1
    position = np.clip(voxels @ matrix[:3, :3].T + matrix[:3, 3], 0, last)
    nearest = lesions[tuple(np.rint(position).astype(int).T)]
    between = position[nearest == 0]
    low, high = np.floor(between).astype(int), np.ceil(between).astype(int)
    corners = [
        lesions[tuple(np.where(upper, high, low).T)]
        for upper in np.stack(np.meshgrid(*[[False, True]] * 3), -1).reshape(-1, 3)
    ]
    return np.unique(np.concatenate([nearest, *corners]))


def _require_usable(volume: Volume, what: str) -> None:
    if volume.array.ndim != 3 or volume.array.size == 0:
        raise VolumeError(
            f"The {what} has shape {volume.array.shape}, but one 3-D frame with voxels is needed; "
            "export it again."
        )
    if not np.isfinite(volume.array).all():
        raise NonFiniteVoxels(
            f"The {what} has NaN or infinite voxels; replace them with real values first."
        )


def _intensity(array: np.ndarray, modality: str, name: str) -> tuple[np.ndarray, float, float]:
    """Clipped float32 values, and mean and standard deviation of their foreground."""
    values = array.astype(np.float32)
    if modality == "CT":
        values = np.clip(values, *_CT_RANGE)
        foreground = values[values > _CT_FOREGROUND]
        rule = f"above {_CT_FOREGROUND:g} HU"
    elif modality == "MR":
        foreground = values[values != 0]
        rule = "other than zero"
    else:
        raise VolumeError(f"The image of {name} is of modality {modality!r}; use 'CT' or 'MR'.")
    if foreground.size == 0:
        raise VolumeError(
            f"The image of {name} has no voxel {rule}; check its scaling and its task's modality."
        )
    mean, std = (float(f(foreground, dtype=np.float64)) for f in (np.mean, np.std))
    if std <= 1e-6 * abs(mean):  # no contrast that float32 could express
        raise VolumeError(
            f"The image of {name} has one and the same value in all voxels {rule}, so it cannot be "
            "normalised; check that the right file was exported."
        )
    return values, mean, std


def _smooth(values: np.ndarray, spacing: np.ndarray, target: float) -> np.ndarray:
    ratio = target / spacing
    sigma = np.sqrt(np.maximum(ratio**2 - 1, 0)) / _FWHM
    if (sigma < 0.01).all():
        return values
    return ndimage.gaussian_filter(values, sigma, mode="nearest", truncate=3.0)
