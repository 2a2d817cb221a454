"""What is measured of a case before training: geometry, intensities, dose, label."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rtsam_jax.data.crops import crop_origins
from rtsam_jax.data.neighbourhood import anchor_box
from rtsam_jax.data.nifti import Volume, read_header
from rtsam_jax.data.preprocess import Preprocessed
from rtsam_jax.prompts.dose import box_corners

Triple = tuple[float, float, float]  # along R, A, S

# Voxels of a lesion three model voxels across: below it, resampling decides on its shape.
SMALL_LESION_VOXELS = 27
_SAMPLED = 2**22  # voxels that percentiles are taken of; a whole CT takes seconds to partition


@dataclass(frozen=True)
class DoseFacts:
    """Of the dose, its high-dose region and the region's box. Doses are in the grid's own unit."""

    spacing_mm: Triple
    dmax: float
    threshold: float  # the dose that made the region
    roi_ml: float
    box_mm: Triple
    crops: int  # of the model's size, that cover the box
    outside: float  # share of the image that the dose grid does not cover


@dataclass(frozen=True)
class LabelFacts:
    """Of the label on its own grid, and of what of it the model can be shown."""

    ml: float
    lesions: int  # 26-connected components
    below_voxel: int  # of them, smaller than a model voxel
    below_small: int  # of them, smaller than `SMALL_LESION_VOXELS` model voxels
    at_border: bool  # it reaches the image's outermost voxels
    outside_roi: float | None  # share; None without a dose or with an empty label
    outside_crops: float | None


@dataclass(frozen=True)
class CaseFacts:
    """Of one case; `dose` and `label` are None where it has none."""

    modality: str
    shape: tuple[int, int, int]  # of the image along R, A, S
    spacing_mm: Triple
    stored_axes: str  # where the file's axes lead: "LPS"
    model_spacing_mm: float
    crop_mm: float  # the model's edge
    intensities: tuple[float, float, float, float, float]  # least, 1 %, median, 99 %, largest
    mean: float  # what normalises them
    std: float
    dose: DoseFacts | None
    label: LabelFacts | None


def measure(
    path: Path,
    image: Volume,
    dose: Volume | None,
    label: Volume | None,
    scan: Preprocessed,
    truth: NDArray[np.uint8] | None,
    *,
    size: int,
) -> CaseFacts:
    """Measures a case.

    Args:
      path: of the image.
      image, dose, label: on their native grids; the label bool.
      scan: image and dose on the model grid.
      truth: the label there.
      size: edge of the model's crop in voxels.
    """
    edge = float(np.linalg.norm(scan.grid.affine[:3, 0]))
    return CaseFacts(
        modality=scan.modality,
        shape=image.shape,
        spacing_mm=_triple(image.spacing),
        stored_axes=stored_axes(path),
        model_spacing_mm=edge,
        crop_mm=size * edge,
        intensities=_intensities(image.array),
        mean=scan.mean,
        std=scan.std,
        dose=None if dose is None else _dose_facts(dose, scan, size, edge),
        label=None if label is None or truth is None else _label_facts(label, truth, scan, size),
    )


def stored_axes(path: Path) -> str:
    """Where the axes of a NIfTI file lead, as it stores them: "RAS", "LPS" ..."""
    return "".join(nibabel.aff2axcodes(read_header(path).get_best_affine()))


def _dose_facts(dose: Volume, scan: Preprocessed, size: int, edge: float) -> DoseFacts:
    assert scan.roi is not None and scan.box is not None  # `preprocess` was given a dose
    assert scan.dmax is not None and scan.threshold_gy is not None
    assert scan.fraction_outside_dose is not None
    return DoseFacts(
        spacing_mm=_triple(dose.spacing),
        dmax=scan.dmax,
        threshold=scan.threshold_gy,
        roi_ml=int(np.count_nonzero(scan.roi)) * edge**3 / 1000,
        box_mm=_triple((scan.box[1] - scan.box[0] + 1) * edge),
        crops=len(crop_origins(scan.box, size)),
        outside=scan.fraction_outside_dose,
    )


def _label_facts(
    label: Volume, truth: NDArray[np.uint8], scan: Preprocessed, size: int
) -> LabelFacts:
    voxel = abs(float(np.linalg.det(label.affine[:3, :3])))
    lesions = _components(label.array) * voxel  # mm^3 each
    model_voxel = abs(float(np.linalg.det(scan.grid.affine[:3, :3])))
    at_border, outside_roi, outside_crops = False, None, None
    box = box_corners(truth)
    if box is not None:
        at_border = bool((box[0] == 0).any() or (box[1] == np.array(truth.shape) - 1).any())
        if scan.roi is not None:
            count = int(np.count_nonzero(truth))
            outside_roi = 1 - int(np.count_nonzero(truth & scan.roi)) / count
            # Crops overlap, so together they fill a cuboid.
            origins = crop_origins(anchor_box(scan, truth), size)
            low, high = np.maximum(origins.min(0), 0), origins.max(0) + size
            seen = truth[tuple(slice(a, max(a, b)) for a, b in zip(low, high, strict=True))]
            outside_crops = 1 - int(np.count_nonzero(seen)) / count
    return LabelFacts(
        ml=float(lesions.sum()) / 1000,
        lesions=len(lesions),
        below_voxel=_below(lesions, model_voxel),
        below_small=_below(lesions, SMALL_LESION_VOXELS * model_voxel),
        at_border=at_border,
        outside_roi=outside_roi,
        outside_crops=outside_crops,
    )


def _components(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Voxels of each 26-connected component."""
    box = box_corners(mask)
    if box is None:
        return np.zeros(0, np.int64)
    window = tuple(slice(a, b + 1) for a, b in zip(*box, strict=True))
    labels, _ = ndimage.label(mask[window], np.ones((3, 3, 3), bool))
    return np.bincount(labels.ravel())[1:]


def _below(volumes: NDArray[np.floating], limit: float) -> int:
    # A lesion of exactly one voxel is not below it, whatever rounding makes of equal spacings.
    return int((volumes < limit * (1 - 1e-6)).sum())


def _intensities(array: NDArray[np.float32]) -> tuple[float, float, float, float, float]:
    # Strided along every axis alike: a stride through the flat array may stay within one column.
    step = math.ceil((array.size / _SAMPLED) ** (1 / 3))
    low, middle, high = np.percentile(array[::step, ::step, ::step], (1, 50, 99))
    return float(array.min()), float(low), float(middle), float(high), float(array.max())


def _triple(values: NDArray[np.float64]) -> Triple:
    x, y, z = (float(value) for value in values)
    return x, y, z
