"""Radiation injuries planted into a painted head.

Each lesion is a blob: the voxels that come first when all admissible voxels are ordered by a noisy
distance from a seed, as many as the drawn volume needs. Volumes (mL) are log-normal and clipped,
see `Sizes`; a largest connected component is kept, so that a few lesions come out smaller, never
below 0.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from rtsam_jax.data.phantom.anatomy import Anatomy
from rtsam_jax.data.phantom.geometry import Canvas, Frame, rotation, smooth_noise

SMALLEST_ML = 0.4
CONTRAST = {"orn": "ct", "ce": "flair", "crn": "t1c"}


@dataclass(frozen=True)
class Sizes:
    """A log-normal distribution of volumes, clipped; mL."""

    median: float = 2.2
    log_deviation: float = 0.5
    smallest: float = 0.6
    largest: float = 5.5


SIZES = Sizes()


@dataclass(frozen=True)
class Lesion:
    """A planted lesion.

    Attributes:
      label: its voxels, bool `[X, Y, Z]`.
      centre: head coordinates (mm) of its centroid, `[3]`.
      radius: of the ball of equal volume, mm.
    """

    label: np.ndarray
    centre: np.ndarray
    radius: float


def seeds(canvas: Canvas, anatomy: Anatomy, task: str) -> np.ndarray:
    """Where a lesion may start, bool `[X, Y, Z]`: tooth-bearing bone, or deep white matter."""
    x, y, z = canvas.frame.points
    if task == "orn":
        return (anatomy.jaw < -3.0) & (z < -45) & (np.abs(x) > 8)
    fit = canvas.mask("white") & (anatomy.cavity < -13.0) & (z > -6) & (np.abs(x) > 17)
    return fit & ~((y < -16) & (z < 22))  # cerebellum


def admissible(canvas: Canvas, anatomy: Anatomy, task: str) -> np.ndarray:
    """Where a lesion may spread, bool `[X, Y, Z]`."""
    if task == "orn":
        return (anatomy.jaw < 0.4) & ~canvas.mask("tooth")
    if task == "ce":  # oedema spreads in white matter and spares the cortex
        return canvas.mask("white") & (anatomy.cavity < -5.0)
    return canvas.mask("white", "grey", "deep_grey", "cap") & (anatomy.cavity < -4.0)


def grow(
    frame: Frame,
    start: np.ndarray,
    room: np.ndarray,
    task: str,
    rng: np.random.Generator,
    sizes: Sizes = SIZES,
) -> tuple[Lesion, np.ndarray] | None:
    """Chooses a lesion's voxels.

    Args:
      frame: the grid.
      start: where it may start, bool `[X, Y, Z]`, true somewhere.
      room: where it may spread, bool `[X, Y, Z]`.
      task: which injury; some have rougher edges.
      rng: source of randomness.
      sizes: its volume's distribution.

    Returns:
      The lesion and its blob's noisy distance divided by the value at the rim (below 1 inside),
      float32 `[X, Y, Z]`; None where the blob found no room (draw again).
    """
    drawn = sizes.median * np.exp(sizes.log_deviation * rng.standard_normal())
    target = float(np.clip(drawn, sizes.smallest, sizes.largest))
    index = np.unravel_index(rng.choice(np.flatnonzero(start)), frame.shape)
    seed = frame.points[(slice(None), *index)]
    stretch = rng.uniform(0.75, 1.35, 3)
    size = (target * 3000 / (4 * np.pi)) ** (1 / 3)
    turned = np.tensordot(
        rotation(rng.uniform(-90, 90, 3)).astype(np.float32),
        frame.points - seed[:, None, None, None],
        axes=1,
    )
    distance = np.sqrt(sum((turned[k] / np.float32(size * stretch[k])) ** 2 for k in range(3)))
    rough = {"orn": 0.22, "ce": 0.28, "crn": 0.17}[task]
    distance *= 1 + rough * np.clip(smooth_noise(rng, frame.shape, frame.spacing, 13.0), -2, 2)
    inside = np.flatnonzero(room & (distance < 3.0))
    count = int(round(target / frame.voxel_ml))
    if inside.size < count:
        return None
    ordered = np.sort(distance.flat[inside])
    rim = ordered[count - 1]
    parts, n = ndimage.label(room & (distance <= rim))
    if n == 0:
        return None
    label = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    volume = label.sum() * frame.voxel_ml
    if volume < max(SMALLEST_ML, 0.6 * target):
        return None
    centre = frame.points[:, label].mean(1)
    lesion = Lesion(label, centre, (volume * 3000 / (4 * np.pi)) ** (1 / 3))
    return lesion, (distance / rim).astype(np.float32)


def paint(
    canvas: Canvas, label: np.ndarray, distance: np.ndarray, task: str, rng: np.random.Generator
) -> None:
    """Changes the image inside (and, as in patients, a little around) a lesion, or several alike.

    Args:
      canvas: the painted head.
      label: bool `[X, Y, Z]`.
      distance: see `grow`; of several lesions, the least.
      task: which injury.
      rng: source of randomness.
    """
    {"orn": _lysis, "ce": _oedema, "crn": _necrosis}[task](canvas, label, distance, rng)


def _soft(label: np.ndarray, sigma_mm: float, canvas: Canvas) -> np.ndarray:
    return ndimage.gaussian_filter(label.astype(np.float32), sigma_mm / canvas.frame.spacing)


def _lysis(
    canvas: Canvas, label: np.ndarray, distance: np.ndarray, rng: np.random.Generator
) -> None:
    """Osteoradionecrosis: moth-eaten bone with holes in the cortex and dense sequestra."""
    del distance
    frame = canvas.frame
    holes = smooth_noise(rng, frame.shape, frame.spacing, 6.0)
    eaten = rng.uniform(15, 110) + 45 * smooth_noise(rng, frame.shape, frame.spacing, 8.0)
    keep = np.clip((holes - 0.85) / 0.3, 0, 1)  # what remains of the bone, about a fifth
    new = (1 - keep) * eaten + keep * np.clip(canvas.value, 250, 900)
    gas = np.clip((-1.9 - holes) / 0.2, 0, 1)
    new = (1 - gas) * new - 700 * gas
    share = np.clip(1.6 * _soft(label, 0.8, canvas), 0, 1) * label
    canvas.value += share * (new - canvas.value)


def _oedema(
    canvas: Canvas, label: np.ndarray, distance: np.ndarray, rng: np.random.Generator
) -> None:
    """Oedema: bright in FLAIR, soft at the rim, in white matter only."""
    del distance
    frame = canvas.frame
    share = np.clip(1.25 * _soft(label, 1.8, canvas), 0, 1)
    share *= np.where(canvas.mask("white"), 1.0, 0.15) * ~canvas.mask("csf")
    texture = 1 + 0.10 * smooth_noise(rng, frame.shape, frame.spacing, 8.0)
    canvas.value += share * rng.uniform(0.24, 0.44) * canvas.tissues["white"] * texture


def _necrosis(
    canvas: Canvas, label: np.ndarray, distance: np.ndarray, rng: np.random.Generator
) -> None:
    """Radiation necrosis: an uneven enhancing rim round a dark core, faint oedema round both."""
    frame = canvas.frame
    (box,) = ndimage.find_objects(label.astype(np.uint8))
    depth = np.zeros(frame.shape, np.float32)
    padded = np.pad(label[box], 1)
    depth[box] = ndimage.distance_transform_edt(padded, sampling=frame.spacing)[1:-1, 1:-1, 1:-1]
    patchy = smooth_noise(rng, frame.shape, frame.spacing, 9.0)
    rim = rng.uniform(1.8, 2.8) + 0.6 * patchy
    core = np.clip((depth - rim) / 1.5, 0, 1)
    bright = canvas.tissues["white"] * (rng.uniform(1.2, 1.5) + 0.2 * patchy)
    dark = canvas.tissues["white"] * rng.uniform(0.4, 0.65)
    halo = np.clip((1.9 - distance) / 0.6, 0, 1) * canvas.mask("white") * ~label
    canvas.value *= 1 - rng.uniform(0.06, 0.14) * halo
    share = np.clip(1.7 * _soft(label, 0.7, canvas), 0, 1) * label
    canvas.value += share * ((1 - core) * bright + core * dark - canvas.value)
