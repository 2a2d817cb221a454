"""The crops of a scan: where they lie, what is seen in each, and one probability of them all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rtsam_jax.data.crops import Blending, crop_origins, extract, insert
from rtsam_jax.data.grid import Grid, Space
from rtsam_jax.data.neighbourhood import anchor_box
from rtsam_jax.data.preprocess import Preprocessed, to_native
from rtsam_jax.errors import PromptOutside
from rtsam_jax.evaluation.scoring import THRESHOLD
from rtsam_jax.geometry import index_map

_FRINGE = 1  # voxels around the crops, so that probability falls to 0 within the window

Place = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Tiles:
    """Crops of a scan, and the window of its grid that they reach.

    Attributes:
        scan: on the model grid.
        roi: uint8 [X, Y, Z], what the model's boxes are taken of.
        low: int [3], the window's first voxel.
        shape: of the window.
        origins: int [n, 3], of the crops in the window; a crop may reach beyond the volume.
        size: a crop's edge in voxels.
    """

    scan: Preprocessed
    roi: np.ndarray
    low: np.ndarray
    shape: tuple[int, int, int]
    origins: np.ndarray
    size: int

    def __len__(self) -> int:
        return len(self.origins)

    @property
    def place(self) -> Place:
        """The window in the scan's arrays."""
        x, y, z = (slice(a, a + n) for a, n in zip(self.low.tolist(), self.shape, strict=True))
        return x, y, z

    @property
    def window(self) -> Grid:
        """The window's grid."""
        return part_of(self.scan.grid, self.low, self.low + self.shape)

    @property
    def covered(self) -> tuple[np.ndarray, np.ndarray]:
        """The cuboid of the window that crops fill: its first voxel and that after its last."""
        low = np.maximum(self.origins.min(0), 0)
        return low, np.minimum(self.origins.max(0) + self.size, self.shape)

    def image(self, row: int) -> np.ndarray:
        """A crop of the image: float32 [S, S, S]."""
        origin = self.origins[row] + self.low
        return extract(self.scan.image, origin, self.size, self.scan.background)

    def region(self, row: int) -> np.ndarray:
        """A crop of the ROI: uint8 [S, S, S]."""
        return extract(self.roi, self.origins[row] + self.low, self.size, 0)

    def holding(self, voxel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which crops hold a voxel of the window, int [r], and where in each, int [r, 3]."""
        at = np.asarray(voxel) - self.origins
        rows = np.flatnonzero(((at >= 0) & (at < self.size)).all(1))
        return rows, at[rows]

    def blended(self, crops: Iterable[np.ndarray]) -> np.ndarray:
        """Crops of a probability [S, S, S], row by row, as one: float32, on the window."""
        if len(self) == 1:  # the same bits; a click waits for it, and weighing is most of the wait
            [crop], [origin] = crops, self.origins
            return insert(crop, origin, self.shape)
        blending = Blending(self.shape, self.size)
        for crop, origin in zip(crops, self.origins, strict=True):
            blending.add(crop, origin)
        return blending.average()


def tile(scan: Preprocessed, size: int, *, name: str, box: np.ndarray | None = None) -> Tiles:
    """The crops that prediction takes: one where what it is centred on fits, else overlapping ones.

    They lie where training draws its own from (`rtsam_jax.data.neighbourhood.training_origins`).

    Args:
        scan: with a dose, unless a box is given.
        size: a crop's edge in voxels.
        name: of the case, for errors.
        box: int (2, 3), inclusive voxels of the scan's grid, instead of the dose's: it is then the
            ROI, and crops lie around it.

    Raises:
        IncompleteCase: there is neither dose nor box.
        PromptOutside: the box is not inside the image.
    """
    if box is None:
        roi, _ = scan.require_dose(name=name, purpose="prediction")
        around = anchor_box(scan, None)
    else:
        around = np.sort(np.asarray(box, np.int64), axis=0)
        if (around[0] < 0).any() or (around[1] >= scan.image.shape).any():
            raise PromptOutside(
                f"The box of {name} reaches from voxel {_said(around[0])} to {_said(around[1])} of "
                f"the model grid, but the image has voxels up to "
                f"{_said(np.array(scan.image.shape) - 1)}; give a box inside the image."
            )
        roi = np.zeros(scan.image.shape, np.uint8)
        roi[tuple(slice(a, b + 1) for a, b in around.T.tolist())] = 1
    origins = crop_origins(around, size)
    low = np.maximum(origins.min(0) - _FRINGE, 0)
    high = np.minimum(origins.max(0) + size + _FRINGE, scan.image.shape)
    x, y, z = (high - low).tolist()
    return Tiles(scan, roi, low, (x, y, z), origins - low, size)


def part_of(grid: Space, low: np.ndarray, high: np.ndarray) -> Grid:
    """The grid of the voxels from `low` up to but without `high`."""
    affine = grid.affine.copy()
    affine[:3, 3] += grid.affine[:3, :3] @ low
    x, y, z = (high - low).tolist()
    return Grid((x, y, z), affine)


def resample_window(
    probability: np.ndarray, window: Grid, native: Space
) -> tuple[Place, np.ndarray]:
    """A probability on the part of another grid that its window reaches; it is 0 on all the rest.

    As `to_native` does from the whole model grid, had it zeros around the window.

    Args:
        probability: float32, on `window`.
        window: of the model grid.
        native: the label's or the image's grid.

    Returns:
        The part's place in `native`, and the probability on it, float32.
    """
    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in window.shape], indexing="ij"), -1)
    matrix = index_map(native.affine, window.affine)
    position = corners.reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3]
    low = np.clip(np.floor(position.min(0)), 0, native.shape).astype(int)
    high = np.clip(np.ceil(position.max(0)) + 1, 0, native.shape).astype(int)
    x, y, z = (slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    return (x, y, z), to_native(probability, window, part_of(native, low, high))


def whole_mask(place: Place, part: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """What `resample_window` gives as a mask on all of the other grid: bool, of that shape."""
    mask = np.zeros(shape, bool)
    mask[place] = part >= THRESHOLD
    return mask


def _said(voxel: np.ndarray) -> str:
    return f"({', '.join(map(str, voxel.tolist()))})"
