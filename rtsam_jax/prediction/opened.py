"""A case whose crops are encoded: prompts may change from here on at the decoder's cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rtsam_jax.data.crops import extract
from rtsam_jax.data.grid import Grid, Space
from rtsam_jax.data.neighbourhood import anchor_box
from rtsam_jax.data.nifti import Volume
from rtsam_jax.data.preprocess import Preprocessed
from rtsam_jax.errors import IncompleteCase, PromptOutside
from rtsam_jax.evaluation.click_model import ClickModel, Encoded, Turn
from rtsam_jax.evaluation.tiles import Tiles, tile
from rtsam_jax.geometry import index_map, resample
from rtsam_jax.models.text_adapter import TextTable
from rtsam_jax.training.model_file import TaskEntry

# The logit of a mask from elsewhere, on whole voxels of the mask prompt's grid: a probability of
# 0.9997, as sure as a trained model is of what it does not doubt.
_SURE = 8.0
_ROUNDING = 1e-3  # voxels


@dataclass(frozen=True, eq=False)
class Opened:
    """A case between its preprocessing and the decoder.

    Attributes:
        name: of the case.
        task: what to segment.
        scan: image and dose on the model grid.
        native: the original image's grid (axes along R, A, S), where masks go back to.
        tiles: its crops.
        crops: what the encoder made of them, with the fixed prompts.
        first: the prediction without clicks or mask.
        boxed: whether a box was given, in the place of the dose's.
    """

    name: str
    task: TaskEntry
    scan: Preprocessed
    native: Space
    tiles: Tiles
    crops: Encoded
    first: Turn
    boxed: bool

    @property
    def window(self) -> Grid:
        """The part of the model grid that the crops reach."""
        return self.tiles.window

    @property
    def origins(self) -> np.ndarray:
        """Of the crops in the window: int [n, 3]."""
        return self.tiles.origins

    @property
    def images(self) -> np.ndarray:
        """Of the crops: float32 [n, S, S, S], cut out anew each time."""
        return np.stack([self.tiles.image(row) for row in range(len(self.tiles))])

    @property
    def rois(self) -> np.ndarray:
        """Of the crops: uint8 [n, S, S, S], cut out anew each time."""
        return np.stack([self.tiles.region(row) for row in range(len(self.tiles))])

    @property
    def table(self) -> TextTable | None:
        """Features of the case's text; None where the model takes none."""
        return self.crops.table

    def probability(self, turn: Turn) -> np.ndarray:
        """All crops blended: float32, on the window."""
        return self.tiles.blended(map(turn.crop, range(len(self.tiles))))

    def hold(self, at_mm: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
        """The crops that hold a point, and the voxel nearest to it in each.

        Args:
            at_mm: world RAS+ mm.

        Returns:
            Rows, int [r], and voxels of these crops, int [r, 3].

        Raises:
            PromptOutside: it is outside the image, or in none of the crops.
        """
        x, y, z = at_mm
        where = f"The click at ({x:g}, {y:g}, {z:g}) mm on {self.name}"
        last = np.array(self.scan.grid.shape) - 1
        position = self.scan.grid.to_index(np.array(at_mm, np.float64))
        if not (np.abs(position - last / 2) <= last / 2 + 0.5 + _ROUNDING).all():  # NaN too
            raise PromptOutside(f"{where} is outside the image; give a point inside it.")
        voxel = np.clip(np.rint(position), 0, last).astype(int)
        rows, at = self.tiles.holding(voxel - self.tiles.low)
        if not len(rows):
            raise PromptOutside(
                f"{where} is outside the region that the model is shown, which lies around the "
                "box; open the case with a box that reaches there."
            )
        return rows, at

    def mask_prompt(self, mask: Volume, side: int) -> np.ndarray:
        """Another's mask as the logits that a pass before would have left: [n, m, m, m, 1] float32.

        The mask comes to the window by linear interpolation, each voxel of the prompt's grid takes
        its mean share of foreground, and that goes linearly from -8 to 8. Outside the mask's own
        grid nothing is marked.

        Args:
            mask: on any grid; what is not zero is marked.
            side: m.

        Raises:
            PromptOutside: it marks nothing, or nothing that the model is shown.
        """
        if not mask.array.any():
            raise PromptOutside(
                f"The initial mask of {self.name} marks no voxel at all; give one that marks the "
                "lesion, or leave it out."
            )
        matrix = index_map(mask.affine, self.window.affine)
        share = resample((mask.array != 0).astype(np.float32), matrix, self.tiles.shape)
        if not share.any():
            raise PromptOutside(
                f"The initial mask of {self.name} marks no voxel of the region that the model is "
                "shown; check that it belongs to this image, or leave it out."
            )
        block = self.tiles.size // side
        prompts = []
        for origin in self.tiles.origins:
            crop = extract(share, origin, self.tiles.size, 0)
            blocks = crop.reshape(side, block, side, block, side, block)
            prompts.append(_SURE * (2 * blocks.mean((1, 3, 5)) - 1))
        return np.stack(prompts)[..., None]


def open_scan(
    model: ClickModel,
    scan: Preprocessed,
    *,
    name: str,
    task: TaskEntry,
    native: Space,
    table: TextTable | None = None,
    text_id: int = 0,
    box: np.ndarray | None = None,
) -> Opened:
    """Encodes a case's crops, once, and predicts without clicks.

    Args:
        model: that will be asked.
        scan: image and, unless there is a box, dose.
        name: of the case, for errors.
        task: what to segment.
        native: the original image's grid.
        table: of the case's text; None where the model takes none.
        text_id: row of the table, or index of the task.
        box: int (2, 3), inclusive voxels of the scan's grid, instead of the dose's.

    Raises:
        IncompleteCase: there is neither dose nor box.
        PromptOutside: the box is not inside the image.
    """
    boxed = box is not None
    if box is None and scan.roi is None:
        if model.told_box:
            raise IncompleteCase(
                f"Case {name} has neither a dose nor a box, and the model needs one of them; give "
                "either."
            )
        box = anchor_box(scan, None)
    tiles = tile(scan, model.spec.image_size, name=name, box=box)
    rows = range(len(tiles))
    crops = model.encode(map(tiles.image, rows), map(tiles.region, rows), text_id, table)
    return Opened(name, task, scan, native, tiles, crops, model.first(crops), boxed)
