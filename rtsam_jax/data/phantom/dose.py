"""A plausible dose: a conformal target, several beams, a coarser grid that fits nothing.

The target is an ellipsoid whose edge is bent by noise. Inside, the dose is the prescription with a
few percent of unevenness; outside it falls to what the beams leave on their way in.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel
import numpy as np
from scipy import ndimage

from rtsam_jax.data.nifti import Volume
from rtsam_jax.data.phantom.geometry import Frame, ellipsoid, rotation, smooth_noise
from rtsam_jax.data.phantom.lesions import Lesion

PENUMBRA_MM = 3.6
# Axes of the stored dose array: planning systems do not agree either.
ORIENTATIONS = ("RAS", "LPS", "LAS", "PSR", "SAL", "RPI")


@dataclass(frozen=True)
class Target:
    """What is irradiated: centre in head coordinates (mm), half axes (mm), turn (degrees)."""

    centre: np.ndarray
    radii: np.ndarray
    turn: np.ndarray


def choose_target(
    rng: np.random.Generator, lesion: Lesion, frame: Frame, cavity: np.ndarray, task: str
) -> Target:
    """Places the target so that the lesion lies inside, well away from the middle."""
    radii = rng.uniform(20.0, 28.5, 3)
    radii[2] = min(radii[2], 25.0)
    turn = rng.uniform(-35, 35, 3)
    room = max(float(radii.min()) - 3.0 - 1.15 * lesion.radius, 3.0)
    shift = rng.uniform(0.6, 1.0) * min(room, 13.0)
    if task == "orn":
        inner = np.array([0.35 * lesion.centre[0], 22.0, -52.0])  # tongue base and tonsil
        towards = inner - lesion.centre + rng.normal(0, 8, 3)
    else:
        towards = np.zeros(3)
        deepest = np.inf
        for _ in range(6):  # of six directions, the one that leads deepest into the brain
            ray = rng.normal(0, 1, 3)
            ray *= 16.0 / np.linalg.norm(ray)
            at = lesion.centre + ray
            index = np.argmin(((frame.points[:, ::3, ::3, ::3].reshape(3, -1).T - at) ** 2).sum(1))
            depth = float(cavity[::3, ::3, ::3].flat[index])
            if depth < deepest:
                towards, deepest = ray, depth
    towards = towards / max(float(np.linalg.norm(towards)), 1e-6)
    return Target(lesion.centre + shift * towards, radii, turn)


def dose_grid(rng: np.random.Generator, target: Target, frame: Frame) -> tuple[tuple, np.ndarray]:
    """Shape and affine (index -> world mm) of a grid round the target, unlike the image's."""
    spacing = np.array([1.0, 1.0, 1.0]) * rng.choice([2.5, 3.0, 3.0, 3.5])
    spacing[2] = rng.choice([2.5, 3.0])
    extent = rng.uniform([150, 160, 120], [210, 230, 190])
    world = frame.head[:3, :3] @ target.centre + frame.head[:3, 3]
    turn = rotation(rng.uniform(-3, 3, 3) if rng.random() < 0.34 else np.zeros(3))
    shape = np.round(extent / spacing).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    middle = world + rng.uniform(-18, 18, 3) * [1, 1, 0.7]
    affine[:3, 3] = middle - affine[:3, :3] @ ((shape - 1) / 2)
    return tuple(int(n) for n in shape), affine


def dose_volume(
    rng: np.random.Generator, target: Target, frame: Frame, body: np.ndarray, prescription: float
) -> Volume:
    """The dose in Gy (steps of 0.01) on its own grid, 0 outside the patient."""
    shape, affine = dose_grid(rng, target, frame)
    to_image = np.linalg.inv(frame.affine) @ affine
    skin = ndimage.affine_transform(
        body, to_image[:3, :3], to_image[:3, 3], output_shape=shape, order=1, mode="nearest"
    )
    to_head = np.linalg.inv(frame.head) @ affine
    index = np.indices(shape, dtype=np.float32)
    point = np.tensordot(to_head[:3, :3].astype(np.float32), index, axes=1)
    point += (to_head[:3, 3] - target.centre).astype(np.float32)[:, None, None, None]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    turned = np.tensordot(rotation(target.turn).astype(np.float32), point, axes=1)
    edge = ellipsoid(turned, (0, 0, 0), target.radii) + 1.6 * smooth_noise(rng, shape, spacing, 24)
    conformal = 1 / (1 + np.exp(np.clip(edge / PENUMBRA_MM, -30, 30)))
    beams = np.zeros(shape, np.float32)
    count = int(rng.integers(5, 10))
    width = float(target.radii.mean()) + 4.0
    for angle in rng.uniform(0, 360) + np.arange(count) * 360 / count:
        u = np.deg2rad(angle)
        tilt = rng.uniform(-0.25, 0.25)
        ray = np.array([np.cos(u), np.sin(u), tilt]) / np.sqrt(1 + tilt**2)
        along = sum(np.float32(ray[k]) * point[k] for k in range(3))
        across = np.sqrt(np.maximum(sum(point[k] ** 2 for k in range(3)) - along**2, 0))
        open_field = 1 / (1 + np.exp(np.clip((across - width) / 4.0, -30, 30)))
        beams += open_field * np.exp(-0.004 * along) * np.clip(1 - along / 260, 0, 2)
    beams = np.minimum(0.9 * beams / count, 0.62)
    relative = conformal + (1 - conformal) * beams + 0.02 * np.exp(-np.maximum(edge, 0) / 60)
    relative *= 1 + 0.018 * smooth_noise(rng, shape, spacing, 16)
    gray = np.where(skin < 1.0, prescription * np.maximum(relative, 0), 0)
    return Volume(np.round(gray, 2).astype(np.float32), affine)


def reorder(volume: Volume, axes: str) -> Volume:
    """The same content with other array axes, such as "LPS"; world positions do not change."""
    start = nibabel.orientations.io_orientation(volume.affine)
    change = nibabel.orientations.ornt_transform(start, nibabel.orientations.axcodes2ornt(axes))
    array = nibabel.orientations.apply_orientation(volume.array, change)
    undo = nibabel.orientations.inv_ornt_aff(change, volume.array.shape)
    return Volume(np.ascontiguousarray(array), volume.affine @ undo)
