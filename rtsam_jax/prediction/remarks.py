"""What a reader of a prediction should know before believing it: sentences, each with its numbers.

A remark refuses nothing; what cannot be used at all is an error elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rtsam_jax.data.nifti import Volume
from rtsam_jax.evaluation.scoring import THRESHOLD
from rtsam_jax.prediction.opened import Opened
from rtsam_jax.prediction.predicted import Prediction
from rtsam_jax.report.case_warnings import CT_AIR_HU, DOSE_RANGE_GY, DOSE_RIM, percent


def guess_modality(image: Volume) -> str:
    """CT where values reach down to those of air in HU, else MR."""
    return "CT" if image.array.min() <= CT_AIR_HU else "MR"


def remarks(prediction: Prediction, image: Volume, *, empty: bool) -> tuple[str, ...]:
    """All that there are on a case's image, dose and, unless its mask is empty, that.

    Args:
        prediction: of the case.
        image: on its original grid.
        empty: whether the mask on that grid is, though on the model grid it may not be.
    """
    opened = prediction.opened
    edges = () if empty else _at_edges(prediction)
    return (*_on_image(image, opened), *_on_dose(opened), *edges)


def _on_image(image: Volume, opened: Opened) -> Iterator[str]:
    least, task = float(image.array.min()), opened.task
    if task.modality == "CT" and least > CT_AIR_HU:
        yield (
            f"Task {task.name} is for CT, but the image's smallest value is {least:.4g}, while air "
            "is near -1000 HU: check that it is a CT, in HU."
        )
    if task.modality == "MR" and least < 0:
        yield (
            f"Task {task.name} is for MR, but the image's smallest value is {least:.4g}, while "
            "magnitude images have none below zero: check that it is an MR image, not normalised."
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


def _at_edges(prediction: Prediction) -> Iterator[str]:
    """Whether the mask reaches where the crops or the image end."""
    tiles = prediction.opened.tiles
    mask = prediction.probability >= THRESHOLD
    low = np.maximum(tiles.origins.min(0), 0)
    high = np.minimum(tiles.origins.max(0) + tiles.size, tiles.shape)
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
