"""What `prediction.json` says of a prediction: measures, region, prompts, confidence, provenance.

Lengths are mm, volumes mL; voxels are indices of the image file's own array, counted from 0; world
mm are RAS+. NaN is null.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from rtsam_jax.data.file_grid import FileGrid
from rtsam_jax.data.grid import Grid
from rtsam_jax.data.json_file import finite
from rtsam_jax.data.nifti import Volume
from rtsam_jax.data.preprocess import voxels_reached
from rtsam_jax.errors import PromptOutside
from rtsam_jax.evaluation.scoring import THRESHOLD
from rtsam_jax.evaluation.tiles import part_of
from rtsam_jax.geometry import index_map, inside_extent, resample
from rtsam_jax.metrics.diameter import longest_diameter
from rtsam_jax.prediction.confidence import Confidence
from rtsam_jax.prediction.inputs import GivenClick, Inputs, Request, Triple, said_of
from rtsam_jax.prediction.opened import Opened
from rtsam_jax.prediction.predicted import Click, Prediction
from rtsam_jax.prediction.trained import Trained
from rtsam_jax.prompts.dose import box_corners
from rtsam_jax.training.run import environment

SCHEMA_VERSION = 1
_environment = functools.cache(environment)  # which asks git
_TOUCHING = np.ones((3, 3, 3), bool)  # faces, edges and corners


@dataclass(frozen=True, eq=False)
class Result:
    """A case's prediction for a task, on the image's original grid.

    Attributes:
        probability: float32 [X, Y, Z] in RAS+ axes, calibrated where the model is.
        mask: bool [X, Y, Z].
        entropy: float32 [X, Y, Z], bits.
        clicks: as they were given to the model.
        repeats: augmented, that the confidence had.
        seed: of the repeats.
        warnings: sentences.
        key: digest of all that the result depends on.
        contents: what the key is made of, of the case: see `Request.contents`.
        origin: dataset, kind and split the case is from; "" where it was given by paths.
    """

    request: Request
    inputs: Inputs
    prediction: Prediction
    probability: np.ndarray
    mask: np.ndarray
    entropy: np.ndarray
    clicks: tuple[Click, ...]
    confidence: Confidence
    repeats: int
    seed: int
    warnings: tuple[str, ...]
    key: str
    contents: Mapping[str, Any]
    origin: str

    @property
    def opened(self) -> Opened:
        return self.prediction.opened

    @property
    def empty(self) -> str | None:
        """Why there is no voxel in the mask; None where there is one."""
        if self.mask.any():
            return None
        return (
            f"no voxel reached {THRESHOLD:g}; the largest probability on the image's grid is "
            f"{self.probability.max():.2g}"
        )


def describe(result: Result, trained: Trained) -> dict[str, Any]:
    """The document: JSON, without NaN."""
    task, scan = result.opened.task, result.opened.scan
    document = {
        "schema": SCHEMA_VERSION,
        "kind": "prediction",
        "key": result.key,
        "case": result.request.case,
        "from": result.origin or None,
        "task": dataclasses.asdict(task),
        "threshold": THRESHOLD,
        "probability": _probability_of(trained),
        "mask": _mask_facts(result),
        "dose": _dose_facts(result, trained),
        "region": region_facts(result.opened, result.inputs.grid, given=bool(result.request.box)),
        "confidence": {
            **dataclasses.asdict(result.confidence),
            "repeats": result.repeats,
            "seed": result.seed,
        },
        "prompts": _prompts(result),
        "inputs": _inputs(result),
        "normalised_by": {"mean": scan.mean, "std": scan.std},
        "model": {
            "folder": str(trained.folder),
            "preset": trained.cfg.model.preset,
            "step": trained.step,
            "weights": trained.weights,
            "language_model": trained.about.language_model,
            "spacing_mm": trained.spec.spacing_mm,
            "crop_voxels": trained.size,
        },
        "warnings": list(result.warnings),
        **_environment(),
    }
    return finite(document)


def _probability_of(trained: Trained) -> str:
    if trained.calibration is None:
        return "as the model gives it, not calibrated"
    return "calibrated by a temperature, which leaves the mask as it is"


def _mask_facts(result: Result) -> dict[str, Any]:
    affine = result.inputs.image.affine
    mask, voxels = _held(result.mask), int(np.count_nonzero(result.mask))
    return {
        "empty": result.empty,
        "voxels": voxels,
        "volume_ml": voxels * abs(float(np.linalg.det(affine[:3, :3]))) / 1000,
        "lesions": int(ndimage.label(mask, _TOUCHING)[1]),
        "longest_diameter_mm": longest_diameter(mask, affine),
        "longest_diameter_is": "the largest distance between two voxel centres of the mask, all "
        "lesions together; 0 for a single voxel",
        "largest_probability": float(result.probability.max()),
    }


def _held(mask: np.ndarray) -> np.ndarray:
    """The part of a mask that its box holds; one voxel of an empty one."""
    box = box_corners(mask)
    low, high = np.zeros((2, 3), int) if box is None else box
    return mask[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))]


def _dose_facts(result: Result, trained: Trained) -> dict[str, Any] | None:
    """Of the dose and of what the mask gets of it, in the dose file's own unit."""
    dose, scan, spec = result.inputs.dose, result.opened.scan, trained.spec
    if dose is None:
        return None
    mean, largest, outside = _dose_within(result.mask, result.inputs.image, dose)
    cut = scan.threshold_gy is not None  # else the dose did not make the region
    return {
        "unit": "of the dose file: Gy where the file is in Gy",
        "dmax": scan.dmax,
        "threshold_is": spec.threshold if cut else None,
        "tau": spec.tau if cut and spec.threshold != "absolute" else None,
        "threshold": scan.threshold_gy,
        "mean_in_mask": mean,
        "max_in_mask": largest,
        "mask_outside_dose": outside,
        "image_outside_dose": scan.fraction_outside_dose,
        "in_mask_is": "the dose by linear interpolation at the mask's voxel centres; 0 outside the "
        "dose grid",
    }


def _dose_within(mask: np.ndarray, image: Volume, dose: Volume) -> tuple[float, float, float]:
    """Mean and largest dose in a mask, and the share of it outside the dose grid; NaN if empty."""
    box = box_corners(mask)
    if box is None:
        return math.nan, math.nan, math.nan
    part = part_of(image, box[0], box[1] + 1)
    inside = mask[tuple(slice(a, b + 1) for a, b in box.T.tolist())]
    there = index_map(dose.affine, part.affine)
    values = resample(dose.array, there, part.shape)[inside]
    covered = inside_extent(dose.shape, there, part.shape)[inside]
    return float(values.mean()), float(values.max()), float(1 - covered.mean())


def region_facts(opened: Opened, image: FileGrid, *, given: bool) -> dict[str, Any]:
    """The box, and the region that the crops cover: outside of it nothing is predicted."""
    tiles, scan = opened.tiles, opened.scan
    low, high = tiles.covered
    covered = _place(tiles.window, low - 0.5, high - 0.5, image)
    box = box_of(opened)
    total = float(np.prod(scan.grid.shape))
    return {
        "box": {
            "from": "given" if given else "dose" if scan.box is not None else "image",
            **_place(scan.grid, box[0] - 0.5, box[1] + 0.5, image),
        },
        "crops": len(tiles),
        "crop_mm": tiles.size * float(scan.grid.spacing[0]),
        "covered": {
            **covered,
            "share_of_image": float(np.prod(high - low)) / total,
            "note": "nothing is predicted outside of this region: what a lesion has there is not "
            "in the mask, and how much that is cannot be known",
        },
    }


def box_of(opened: Opened) -> np.ndarray:
    """What the model's boxes are parts of: (2, 3) inclusive voxels of the model grid."""
    box = box_corners(opened.tiles.roi)
    assert box is not None  # a case without a region is not opened
    return box


def check_shown(given: GivenClick, click: Click, opened: Opened, image: FileGrid) -> None:
    """Raises `PromptOutside`, in the frame a click was given in, if it is in none of the crops.

    Args:
        given: the click as a user gave it.
        click: the same, in the world.
        image: the grid of the image's file.
    """
    try:
        opened.hold(click.at_mm)
    except PromptOutside:
        shown = region_facts(opened, image, given=opened.boxed)["covered"]
        voxels = given.frame == "voxel"
        first, last = map(tuple, shown["voxels" if voxels else "world_mm"])
        raise PromptOutside(
            f"The click {said_of(given)} on {opened.name} is outside the region that the model is "
            f"shown, which reaches from {'voxel ' if voxels else ''}{first} to {last}"
            f"{'' if voxels else ' mm'}; give one in it, or a region that holds it with --box."
        ) from None


def _place(grid: Grid, low: np.ndarray, high: np.ndarray, image: FileGrid) -> dict[str, Any]:
    """A cuboid between two indices of a grid, as voxels of the image file and in the world.

    `voxels` are the first and the last that it reaches into; `world_mm` the least and the largest
    coordinates of its corners, so that on a tilted image that is more than itself.
    """
    corners = grid.to_world(np.array([*itertools.product(*zip(low, high, strict=True))]))
    return {
        "voxels": voxels_reached(image.to_index(corners), image.shape).tolist(),
        "world_mm": [_rounded(corners.min(0)), _rounded(corners.max(0))],
    }


def _prompts(result: Result) -> dict[str, Any]:
    grid, box = result.inputs.grid, result.request.box
    return {
        "text": result.opened.table is not None,
        "record": dict(result.inputs.record),
        "box": None if box is None else dataclasses.asdict(box),  # as given
        "initial_mask": result.request.mask and str(result.request.mask),
        "clicks": [
            {
                "at_mm": _rounded(click.at_mm),
                "voxel": _rounded(grid.to_index(np.array(click.at_mm))),
                "positive": click.positive,
            }
            for click in result.clicks
        ],
    }


def _inputs(result: Result) -> dict[str, Any]:
    def of(part: str, path: Path | None) -> dict[str, Any] | None:
        return None if path is None else {"file": str(path), "sha256": result.contents[part]}

    request, grid = result.request, result.inputs.grid
    image = {"shape": list(grid.shape), "spacing_mm": _rounded(grid.spacing), "axes": grid.axes}
    return {
        "image": {**(of("image", request.image) or {}), **image},
        "dose": of("dose", request.dose),
        "initial_mask": of("mask", request.mask),
    }


def _rounded(values: Sequence[float] | np.ndarray | Triple) -> list[float]:
    return [round(float(value), 4) for value in values]
