"""What a reader of a prediction should know before believing it: sentences, each with its numbers.

A remark refuses nothing; what cannot be used at all is an error elsewhere. One on the values of the
image or the dose is a doubt: no mask is accepted that rests on such.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from rtsam_jax.data.grid import Grid
from rtsam_jax.data.nifti import Volume
from rtsam_jax.evaluation.scoring import THRESHOLD
from rtsam_jax.prediction.confidence import ACCEPT, REVIEW, Confidence
from rtsam_jax.prediction.opened import Opened
from rtsam_jax.prediction.predicted import Click, Prediction
from rtsam_jax.report.case_warnings import CT_AIR_HU, DOSE_RANGE_GY, DOSE_RIM, MOSTLY, percent

# Scanners store -1024 to 3071, write down to -3024 where they did not look, and a metal's values
# beyond. HU times ten begin near -10000.
_CT_RANGE_HU = (-3100.0, 6200.0)
_SHEAR = np.sin(np.deg2rad(1))  # cosine between two axes


def guess_modality(image: Volume) -> str:
    """CT where values reach down to those of air in HU, else MR."""
    return "CT" if image.array.min() <= CT_AIR_HU else "MR"


def doubts(opened: Opened, image: Volume) -> tuple[str, ...]:
    """What there is on the values of a case's image, on its original grid, and on its dose."""
    return (*_on_image(image, opened), *_on_dose(opened))


def doubted(confidence: Confidence, doubts: Sequence[str]) -> Confidence:
    """The same, where nothing is doubted; else what was accepted is to be reviewed for that."""
    if confidence.flag != ACCEPT or not doubts:
        return confidence
    why = [doubt.rstrip(".") for doubt in doubts]
    return dataclasses.replace(confidence, flag=REVIEW, reasons=(*why, *confidence.reasons))


def remarks(
    prediction: Prediction, image: Volume, mask: np.ndarray, clicks: Sequence[Click] = ()
) -> tuple[str, ...]:
    """What there is besides on the image's axes, on the clicks and, unless it is empty, the mask.

    Args:
        prediction: of the case.
        image: on its original grid.
        mask: bool, on that grid: it may be empty there, though it is not on the model grid.
        clicks: that the mask should follow.
    """
    edges = _at_edges(prediction) if mask.any() else ()
    return (*_on_axes(image), *_on_clicks(mask, image, clicks), *edges)


def _on_axes(image: Volume) -> Iterator[str]:
    axes = image.affine[:3, :3] / image.spacing
    cosine = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if cosine > _SHEAR:
        degrees = np.rad2deg(np.arcsin(min(cosine, 1.0)))
        yield (
            f"The image's axes are {degrees:.3g} degrees from right angles, as after a gantry "
            "tilt or from a wrong header: check that it is not distorted."
        )


def _on_clicks(mask: np.ndarray, image: Volume, clicks: Sequence[Click]) -> Iterator[str]:
    grid = Grid(image.shape, image.affine)
    last = np.array(mask.shape) - 1
    apart = 0
    for click in clicks:
        at = np.rint(grid.to_index(np.array(click.at_mm)))
        apart += bool(mask[tuple(np.clip(at, 0, last).astype(int))]) != click.positive
    if apart:
        yield (
            f"{apart} of {len(clicks)} clicks {'is' if apart == 1 else 'are'} not as the mask has "
            "them: positive ones lie outside of it, or negative ones inside."
        )


def _on_image(image: Volume, opened: Opened) -> Iterator[str]:
    least, task = float(image.array.min()), opened.task
    if task.modality == "CT":
        yield from _on_hu(image, f"Task {task.name} is for CT, but the image's")
    if task.modality == "MR" and least < 0:
        yield (
            f"Task {task.name} is for MR, but the image's smallest value is {least:.4g}, while "
            "magnitude images have none below zero: check that it is an MR image, not normalised."
        )


def _on_hu(image: Volume, begin: str) -> Iterator[str]:
    least, largest = float(image.array.min()), float(image.array.max())
    low, high = _CT_RANGE_HU
    if least > CT_AIR_HU:
        yield (
            f"{begin} smallest value is {least:.4g}, while air is near -1000 HU: check that it is "
            "a CT, in HU."
        )
    elif np.count_nonzero(image.array > -CT_AIR_HU) > np.count_nonzero(image.array < CT_AIR_HU):
        yield (
            f"{begin} values are more often above {-CT_AIR_HU:g} than below {CT_AIR_HU:g}, though "
            "there is less dense bone than air: check that they are not inverted."
        )
    if least < low or largest > high:
        yield (
            f"{begin} values reach from {least:.4g} to {largest:.4g}, while a CT's lie between "
            "-1024 and 3071 HU: check its scaling."
        )


def _on_dose(opened: Opened) -> Iterator[str]:
    scan = opened.scan
    if scan.dmax is None or scan.fraction_outside_dose is None:
        return
    low, high = DOSE_RANGE_GY
    if not low <= scan.dmax <= high:
        yield (
            f"The largest dose is {scan.dmax:.4g}, implausible in Gy ({low:g} to {high:g}): check "
            "the dose's unit and scaling."
        )
    if scan.fraction_outside_dose > DOSE_RIM:
        yield (
            f"{percent(scan.fraction_outside_dose)} of the image lies outside the dose grid, where "
            "the dose counts as 0."
        )
    dosed = 1 - scan.fraction_outside_dose  # above 0, or preprocessing had refused the dose
    region = float(np.mean(opened.tiles.roi, dtype=np.float64)) / dosed
    if opened.tiles.roi is scan.roi and region > MOSTLY:
        yield (
            f"{percent(region)} of the image inside the dose grid is in the high-dose region, "
            "which should be a part of it: check the dose's unit, and the threshold."
        )


def _at_edges(prediction: Prediction) -> Iterator[str]:
    """Whether the mask reaches where the crops or the image end."""
    tiles = prediction.opened.tiles
    mask = prediction.probability >= THRESHOLD
    low, high = tiles.covered
    ends = tiles.low + high == prediction.opened.scan.grid.shape
    starts = tiles.low + low == 0
    reached = {
        bool(image_ends)
        for axis in range(3)
        for at, image_ends in ((low[axis], starts[axis]), (high[axis] - 1, ends[axis]))
        if mask.take(int(at), axis).any()
    }
    if False in reached:
        yield (
            "The mask reaches the edge of the region that the model is shown: it may go on beyond, "
            "where nothing is predicted."
        )
    if True in reached:
        yield "The mask reaches the image's border: a part of the lesion may be cut off."
