"""Simulated users: where the next click goes, given a prediction and the truth.

They look at masks on the model grid, as the clicks of training do: an error finer than its voxels
is none that a click could mend. A click lies where the tool takes one (`reach`: in some crop). On a
missed voxel it is positive, on an excess one negative.

* Centre: the voxel deepest in the largest 26-connected error, as in the CVPR 2025 challenge.
* Ideal: the best of several, by the Dice that follows; the centre's click is one of them.
* Noisy: the centre's click, misplaced, and at a rate with the wrong sign.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from scipy import ndimage

from rtsam_jax.prompts.dose import box_corners, largest_component

Voxel = tuple[int, int, int]


class Click(NamedTuple):
    """A voxel of the grid that the masks are on, and what it says of it."""

    voxel: Voxel
    positive: bool  # True: it belongs to the structure


def error_centre(error: np.ndarray) -> Voxel | None:
    """The voxel deepest in the largest 26-connected component of an error; None without any.

    Depth is the distance to the nearest voxel outside the component, and beyond the volume all is
    outside. Of equals, components or voxels, the first in index order.

    Args:
        error: bool [X, Y, Z], of isotropic voxels.
    """
    box = box_corners(error)
    if box is None:
        return None
    low, high = box
    window = tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))
    depth = ndimage.distance_transform_edt(np.pad(largest_component(error[window]), 1))
    x, y, z = (low + np.unravel_index(depth.argmax(), depth.shape) - 1).tolist()
    return x, y, z


@dataclass(frozen=True)
class User(ABC):
    """Proposes clicks; of several, the one is made after which Dice is highest."""

    name: ClassVar[str]

    @abstractmethod
    def propose(
        self,
        prediction: np.ndarray,
        truth: np.ndarray,
        reach: np.ndarray,
        rng: np.random.Generator,
    ) -> list[Click]:
        """Candidates for the next click; none where no voxel within reach is wrong.

        Args:
            prediction: bool [X, Y, Z].
            truth: bool [X, Y, Z].
            reach: bool [X, Y, Z], where a click may lie.
            rng: everything random about the user.
        """


@dataclass(frozen=True)
class CentreUser(User):
    """Clicks the centre of the largest error."""

    name: ClassVar[str] = "centre"

    def propose(
        self,
        prediction: np.ndarray,
        truth: np.ndarray,
        reach: np.ndarray,
        rng: np.random.Generator,
    ) -> list[Click]:
        voxel = error_centre((prediction != truth) & reach)
        return [] if voxel is None else [Click(voxel, bool(truth[voxel]))]


@dataclass(frozen=True)
class IdealUser(User):
    """Foresees what each of several clicks would do.

    Optimistic, and no bound: it looks one click ahead, among `candidates` clicks.
    """

    candidates: int = 8  # the centre's, and others drawn uniformly from the error
    name: ClassVar[str] = "ideal"

    def propose(
        self,
        prediction: np.ndarray,
        truth: np.ndarray,
        reach: np.ndarray,
        rng: np.random.Generator,
    ) -> list[Click]:
        clicks = CentreUser().propose(prediction, truth, reach, rng)
        if not clicks:
            return []
        error = (prediction != truth) & reach
        error[clicks[0].voxel] = False
        others = np.flatnonzero(error)
        drawn = rng.choice(others, min(self.candidates - 1, len(others)), replace=False)
        for x, y, z in np.stack(np.unravel_index(drawn, error.shape), -1).tolist():
            clicks.append(Click((x, y, z), bool(truth[x, y, z])))
        return clicks


@dataclass(frozen=True)
class NoisyUser(User):
    """Means the centre's click, but misses it and sometimes takes the wrong button.

    The sign is that of the voxel meant, whatever lies where the click fell. A click that fell out
    of reach falls half as far, until it is within.
    """

    spacing_mm: float  # of the masks' isotropic voxels
    shift_mm: float = 3.0  # root mean square of the displacement; each axis is normal
    wrong: float = 0.1  # rate of wrong signs
    name: ClassVar[str] = "noisy"

    def propose(
        self,
        prediction: np.ndarray,
        truth: np.ndarray,
        reach: np.ndarray,
        rng: np.random.Generator,
    ) -> list[Click]:
        meant = CentreUser().propose(prediction, truth, reach, rng)
        if not meant:
            return []
        shift = rng.normal(scale=self.shift_mm / self.spacing_mm / math.sqrt(3), size=3)
        flipped = bool(rng.random() < self.wrong)
        voxel = _moved(meant[0].voxel, shift)
        while not _within(voxel, reach):  # ends: where the shift rounds to nothing it is
            shift = shift / 2
            voxel = _moved(meant[0].voxel, shift)
        return [Click(voxel, meant[0].positive != flipped)]


def _moved(voxel: Voxel, shift: np.ndarray) -> Voxel:
    x, y, z = np.rint(voxel + shift).astype(int).tolist()
    return x, y, z


def _within(voxel: Voxel, reach: np.ndarray) -> bool:
    inside = all(0 <= at < n for at, n in zip(voxel, reach.shape, strict=True))
    return inside and bool(reach[voxel])
