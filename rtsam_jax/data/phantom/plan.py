"""Lesion and dose of one case, drawn until they fit each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rtsam_jax.data.nifti import Volume
from rtsam_jax.data.phantom import lesions
from rtsam_jax.data.phantom.anatomy import Anatomy
from rtsam_jax.data.phantom.dose import choose_target, dose_volume
from rtsam_jax.data.phantom.geometry import Canvas, Frame

TAU = 0.8  # lesions are placed in the region above this share of Dmax
SHARE = 0.9  # of a lesion, at least, that lies there
# Where the primary lay, prescription in Gy, fractions: by task, for the brain by height as well.
_SITES = {
    "orn": (("oropharynx", 70.0, 35), ("oral cavity", 66.0, 33), ("oral cavity", 60.0, 30)),
    "low": (("nasopharynx", 70.0, 33), ("nasopharynx", 70.0, 35), ("skull base", 66.0, 33)),
    "high": (("glioma", 60.0, 30), ("meningioma", 60.0, 30), ("glioma", 60.0, 33)),
}
_TEMPORAL_Z = 20.0  # mm; below lie the temporal lobes, where skull-base fields pass


@dataclass(frozen=True)
class Plan:
    """What happened to one patient.

    Attributes:
      lesions: those to paint: one, or twins.
      distance: see `lesions.grow`; of twins, the lesser, float32 `[X, Y, Z]`.
      dose: in Gy, on its own grid.
      site: where the primary lay.
      prescription_gy: dose to the target.
      fractions: it was given in.
    """

    lesions: tuple[lesions.Lesion, ...]
    distance: np.ndarray
    dose: Volume
    site: str
    prescription_gy: float
    fractions: int


def choose_site(rng: np.random.Generator, task: str, height: float) -> tuple[str, float, int]:
    """Site, prescription (Gy) and fractions that fit a place `height` mm up the head."""
    low = height < _TEMPORAL_Z
    sites = _SITES["orn" if task == "orn" else "low" if low else "high"]
    return sites[int(rng.integers(len(sites)))]


def share_inside(lesion: lesions.Lesion, frame: Frame, mask: np.ndarray, dose: Volume) -> float:
    """Share of a lesion's voxels in `mask`, bool on the dose's grid (nearest neighbour)."""
    index = np.argwhere(lesion.label) @ frame.affine[:3, :3].T + frame.affine[:3, 3]
    inverse = np.linalg.inv(dose.affine)
    at = np.round(index @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
    inside = np.all((at >= 0) & (at < mask.shape), axis=1)
    return float(mask[tuple(at[inside].T)].sum() / len(at))


def plan_one(rng: np.random.Generator, canvas: Canvas, anatomy: Anatomy, task: str) -> Plan:
    """Draws lesion and dose until at least 90 % of the lesion receives 0.8 Dmax."""
    frame = canvas.frame
    start = lesions.seeds(canvas, anatomy, task)
    room = lesions.admissible(canvas, anatomy, task)
    for _ in range(60):
        grown = lesions.grow(frame, start, room, task, rng)
        if grown is None:
            continue
        lesion, distance = grown
        site, prescription, fractions = choose_site(rng, task, lesion.centre[2])
        target = choose_target(rng, lesion, frame, anatomy.cavity, task)
        dose = dose_volume(rng, target, frame, anatomy.body, prescription)
        roi = dose.array >= TAU * dose.array.max()
        if share_inside(lesion, frame, roi, dose) >= SHARE:
            return Plan((lesion,), distance, dose, site, prescription, fractions)
    raise AssertionError("no room for a lesion in 60 draws; the phantom's geometry is broken")
