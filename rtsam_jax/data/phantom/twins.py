"""Twins: two look-alike lesions, one per side; the record's `side` names the one asked for.

Right and left are drawn from one distribution, painted in one stroke and both lie in the high-dose
ROI; which is asked for is a coin tossed after everything else, so image, dose and box do not tell.
"""

from __future__ import annotations

import numpy as np

from rtsam_jax.data.phantom import lesions
from rtsam_jax.data.phantom.anatomy import SIDES, Anatomy
from rtsam_jax.data.phantom.dose import Target, dose_volume
from rtsam_jax.data.phantom.geometry import Canvas, ellipsoid, rotation
from rtsam_jax.data.phantom.plan import SHARE, TAU, Plan, choose_site, share_inside
from rtsam_jax.prompts.dose import box_corners, largest_component

# As single lesions, without the smallest: to be recognised at 3 mm per voxel.
SIZES = lesions.Sizes(median=2.6, log_deviation=0.4, smallest=1.2, largest=5.5)
BOX_MM = 69.0  # the ROI fits in a crop of 72 mm
_MIDLINE_MM = 4.0  # no lesion comes nearer, so 8 mm part the two
_NEAR_MM, _FAR_MM = 12.0, 24.0  # from the midline, where a lesion may start
_DEPTH_MM = 7.0  # inside the target, where a lesion may start


def plan_twins(rng: np.random.Generator, canvas: Canvas, anatomy: Anatomy, task: str) -> Plan:
    """Draws a dose across the midline, then a lesion on its right and one on its left.

    At least 90 % of each lies in the largest component of 0.8 Dmax, whose box is at most 69 mm
    long along each axis of the dose grid.
    """
    frame = canvas.frame
    x = frame.points[0]
    seeds = lesions.seeds(canvas, anatomy, task) & (np.abs(x) > _NEAR_MM) & (np.abs(x) < _FAR_MM)
    admissible = lesions.admissible(canvas, anatomy, task)
    for _ in range(60):
        target = _target(rng, canvas, seeds, task)
        from_centre = frame.points - target.centre.astype(np.float32)[:, None, None, None]
        turned = np.tensordot(rotation(target.turn).astype(np.float32), from_centre, axes=1)
        start = seeds & (ellipsoid(turned, (0, 0, 0), target.radii) < -_DEPTH_MM)
        pair = []
        for s in SIDES:
            if (start & (s * x > 0)).any():
                room = admissible & (s * x > _MIDLINE_MM)
                pair.append(lesions.grow(frame, start & (s * x > 0), room, task, rng, SIZES))
        grown = [one for one in pair if one is not None]
        if len(grown) < len(SIDES):
            continue
        site, prescription, fractions = choose_site(rng, task, target.centre[2])
        dose = dose_volume(rng, target, frame, anatomy.body, prescription)
        roi = largest_component(dose.array >= TAU * dose.array.max())
        shares = [share_inside(lesion, frame, roi, dose) for lesion, _ in grown]
        box = box_corners(roi)
        assert box is not None  # the voxel of Dmax belongs to the ROI
        extent = (box[1] - box[0] + 1) * dose.spacing
        if min(shares) >= SHARE and extent.max() <= BOX_MM:
            both, distances = zip(*grown, strict=True)
            return Plan(both, np.minimum(*distances), dose, site, prescription, fractions)
    raise AssertionError("no room for twins in 60 draws; the phantom's geometry is broken")


def _target(rng: np.random.Generator, canvas: Canvas, seeds: np.ndarray, task: str) -> Target:
    """An ellipsoid across the midline, wide enough for a lesion on each side."""
    if task == "orn":
        middle = np.array([0.0, 49.0, -70.0])  # behind the chin, where the jaw's arch bends
        middle += rng.normal(0, [0, 3.0, 3.0])
    else:
        index = np.unravel_index(rng.choice(np.flatnonzero(seeds)), seeds.shape)
        middle = canvas.frame.points[(slice(None), *index)].astype(float)
    middle[0] = rng.normal(0, 2.0)
    return Target(middle, rng.uniform([31, 26, 24], [34, 31, 30]), rng.uniform(-12, 12, 3))
