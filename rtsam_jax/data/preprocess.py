"""From a case's image and dose to model input, and from a prediction back. Takes no label.

The model grid keeps the image's own (closest RAS+) axes, is isotropic, and shares the image's
centre, so that at equal spacing it is the image's grid. Everything else is resampled onto it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.grid import Grid, Space, model_grid, require_coverage, require_overlap
from rtsam_jax.data.intensity import air, body_box, foreground, smooth
from rtsam_jax.data.nifti import Volume
from rtsam_jax.errors import IncompleteCase, NonFiniteVoxels, VolumeError, ZeroDose
from rtsam_jax.geometry import HALF, index_map, resample
from rtsam_jax.prompts.dose import box_corners, dmax, dose_level, roi_on_grid
from rtsam_jax.prompts.record import Scalar

__all__ = [
    "Grid",
    "PreprocessSpec",
    "Preprocessed",
    "Space",
    "label_to_grid",
    "model_grid",
    "preprocess",
    "require_coverage",
    "require_overlap",
    "to_native",
    "voxels_reached",
]

_SPLINE_ORDER = {"linear": 1, "bspline": 3}
_TOUCHING = 1e-3  # voxels; a face on that of a voxel does not reach into it


@dataclass(frozen=True)
class PreprocessSpec:
    """What preprocessing depends on; part of a cache's key."""

    spacing_mm: float = 1.0  # isotropic model grid
    tau: float = 0.8  # share of what the threshold names
    component: str = "largest"  # "largest" | "all"
    roi: str = "dose"  # "dose" | "mask"
    threshold: str = "dmax"  # "dmax" | "d2" | "prescription" | "absolute"
    gy: float = 0.0  # the absolute threshold
    margin_mm: float = 0.0  # by which the ROI is grown
    interpolation: str = "linear"  # of the image | "bspline"
    crop: str = "dose"  # what crops lie around | "image": the body

    @classmethod
    def from_config(cls, cfg: ExperimentConfig) -> PreprocessSpec:
        """Takes the fields from `cfg.data` and `cfg.dose`."""
        return cls(
            spacing_mm=cfg.data.spacing_mm,
            tau=cfg.dose.tau,
            component=cfg.dose.component,
            roi=cfg.dose.roi,
            threshold=cfg.dose.threshold,
            gy=cfg.dose.gy,
            margin_mm=cfg.dose.margin_mm,
            interpolation=cfg.data.interpolation,
            crop=cfg.data.crop,
        )

    def prescription_gy(self, record: Mapping[str, Scalar]) -> float | None:
        """A record's prescription where the region depends on it and the record has one."""
        value = record.get("prescription_gy") if self.threshold == "prescription" else None
        return None if value is None else float(value)


@dataclass(frozen=True, eq=False)
class Preprocessed:
    """One case on the model grid; what comes from the dose is None without one.

    ROI, box and threshold are so as well where the dose makes no region; see `preprocess`.
    """

    image: np.ndarray  # float32 [X, Y, Z], normalised
    roi: np.ndarray | None  # uint8 [X, Y, Z], the high-dose region
    box: np.ndarray | None  # int64 (2, 3), its inclusive corners
    dmax: float | None  # of the native dose grid, in its unit
    threshold_gy: float | None  # the dose that made the ROI; in Gy if the dose is
    grid: Grid
    modality: str  # "CT" | "MR"
    fraction_outside_dose: float | None  # share of the model grid that the dose does not cover
    mean: float  # of the native intensities, which normalised the image
    std: float
    background: float  # what air (CT) or zero (MR) became: fills crops beyond the volume
    diagonal_mm: float  # of the original image, corner to corner
    # int64 (2, 3), inclusive corners of the image's foreground where crops lie around that.
    body: np.ndarray | None = None

    @property
    def anchor(self) -> np.ndarray | None:
        """What crops are centred on, or tile where it is larger: the dose's box, or the body's."""
        return self.box if self.body is None else self.body

    def require_dose(self, *, name: str, purpose: str) -> tuple[np.ndarray, np.ndarray]:
        """The ROI and its box.

        Raises:
          IncompleteCase: there was no dose; `name` says whose, `purpose` what for.
        """
        if self.roi is None or self.box is None:
            raise IncompleteCase(
                f"Case {name} has no dose, which {purpose} needs; add one to its dataset, or "
                "leave the case out."
            )
        return self.roi, self.box


def preprocess(
    image: Volume,
    dose: Volume | None,
    modality: str,
    spec: PreprocessSpec,
    *,
    name: str,
    prescription_gy: float | None = None,
    with_roi: bool = True,
) -> Preprocessed:
    """Brings an image and, where there is one, its dose to the model grid.

    Where the model grid is coarser than the image, the image (and only it) is smoothed first.

    Args:
      image: in HU (CT) or any unit (MR).
      dose: on any grid; in Gy where the threshold is, otherwise in any unit.
      modality: "CT" or "MR".
      spec: grid and ROI.
      name: of the case, for errors.
      prescription_gy: of the case's record, for a threshold by prescription.
      with_roi: whether the dose makes an ROI and its box. Where it does not, they and the threshold
        are None, and the dose may be zero or without what a threshold needs.

    Raises:
      NonFiniteVoxels, VolumeError: an image that cannot be used, is far too large or small for the
        model's spacing, or has no foreground contrast.
      NoOverlap: the dose grid covers no voxel of the image.
      ZeroDose, NegativeDose, DoseUnit: no positive dose, a negative one, or not in Gy.
      IncompleteCase: the threshold needs a prescription that the record lacks.
      EmptyROI: no model voxel reaches the threshold.
    """
    _require_usable(image, f"image of {name}")
    grid = model_grid(image, spec.spacing_mm, name=name)
    region = None
    if dose is not None:
        region = _region(dose, grid, spec, name, prescription_gy, with_roi=with_roi)
    values, mean, std = foreground(image.array, modality, name)
    values = smooth(values, image.spacing, spec.spacing_mm)
    matrix = index_map(image.affine, grid.affine)
    values = resample(values, matrix, grid.shape, order=_SPLINE_ORDER[spec.interpolation])
    values -= np.float32(mean)  # in place: a large scan has hundreds of megabytes
    values /= np.float32(std)
    tiled = spec.crop == "image"
    return Preprocessed(
        image=values,
        roi=region and region.roi,
        box=region and region.box,
        dmax=region and region.dmax,
        threshold_gy=region and region.level,
        grid=grid,
        modality=modality,
        fraction_outside_dose=region and region.fraction_outside,
        mean=mean,
        std=std,
        background=float((np.float32(air(modality)) - np.float32(mean)) / np.float32(std)),
        diagonal_mm=float(np.linalg.norm(np.array(image.shape) * image.spacing)),
        body=_box_on(grid, body_box(image.array, modality), image) if tiled else None,
    )


def _box_on(grid: Grid, box: np.ndarray, image: Volume) -> np.ndarray:
    """The voxels of the model grid that a box of an image's voxels reaches into."""
    matrix = index_map(grid.affine, image.affine)  # parallel axes: a box stays a box
    faces = box + [[-0.5], [0.5]]
    return voxels_reached(faces @ matrix[:3, :3].T + matrix[:3, 3], grid.shape)


def voxels_reached(corners: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The voxels of a grid that a cuboid reaches into: (2, 3) int64, inclusive, at least one.

    Args:
      corners: [n, 3], indices of the grid; what lies beyond it is cut off.
      shape: of the grid.
    """
    first = np.floor(corners.min(0) + 0.5 + _TOUCHING)
    last = np.maximum(np.ceil(corners.max(0) - 0.5 - _TOUCHING), first)
    return np.clip([first, last], 0, np.array(shape) - 1).astype(np.int64)


def label_to_grid(label: Volume, grid: Grid, *, name: str = "label") -> np.ndarray:
    """A mask on the model grid: linear interpolation, cut at one half; uint8 [X, Y, Z].

    A lesion (26-connected component) that would leave no voxel is kept: the model voxels nearest
    to its own are marked. Parts of the label outside the model grid are lost.

    Raises:
      NoOverlap: the label's and the model's grids share no space; `name` says whose.
      LabelNotCovering: the label ends inside the model grid.
    """
    matrix = index_map(label.affine, grid.affine)
    require_coverage(label, grid, name=name)
    result = resample(label.array != 0, matrix, grid.shape) >= HALF
    lesions, count = ndimage.label(label.array != 0, np.ones((3, 3, 3), bool))
    present = _lesions_at(lesions, np.argwhere(result), matrix)
    lost = np.setdiff1d(np.arange(1, count + 1), present)
    if lost.size:
        voxels = np.argwhere(np.isin(lesions, lost))
        inverse = index_map(grid.affine, label.affine)
        position = voxels @ inverse[:3, :3].T + inverse[:3, 3]
        last = np.array(grid.shape) - 1
        # A centre on the grid's very edge is inside it, though it may round to the next voxel.
        inside = (np.abs(position - last / 2) <= last / 2 + 0.501).all(axis=1)
        nearest = np.clip(np.rint(position[inside]), 0, last).astype(int)
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


class _Region(NamedTuple):
    """What comes from the dose."""

    roi: np.ndarray | None
    box: np.ndarray | None
    dmax: float
    level: float | None
    fraction_outside: float


def _region(
    dose: Volume,
    grid: Grid,
    spec: PreprocessSpec,
    name: str,
    prescription_gy: float | None,
    *,
    with_roi: bool,
) -> _Region:
    _require_usable(dose, f"dose of {name}")
    covered = require_overlap(dose, grid, what="dose", name=name)
    fraction_outside = float(1 - covered.mean())
    if not with_roi:
        return _Region(None, None, _peak(dose, name), None, fraction_outside)
    level = dose_level(
        dose.array,
        threshold=spec.threshold,
        tau=spec.tau,
        gy=spec.gy,
        prescription_gy=prescription_gy,
        name=name,
    )
    roi = roi_on_grid(
        dose.array,
        dose.affine,
        grid.shape,
        grid.affine,
        level=level,
        component=spec.component,
        roi=spec.roi,
        margin_mm=spec.margin_mm,
        name=name,
    )
    box = box_corners(roi)
    assert box is not None  # roi_on_grid never returns an empty ROI
    return _Region(
        roi=roi.astype(np.uint8),
        box=box,
        dmax=dmax(dose.array, name=name),
        level=level.value,
        fraction_outside=fraction_outside,
    )


def _peak(dose: Volume, name: str) -> float:
    """Dmax; 0 where no voxel is positive, which a dose without a threshold may be."""
    try:
        return dmax(dose.array, name=name)
    except ZeroDose:
        return 0.0


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
