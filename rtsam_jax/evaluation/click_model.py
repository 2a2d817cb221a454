"""The model as a tool that takes clicks: crops are encoded once, and decoded as often as asked.

As in training (`rtsam_jax.prompts.clicks`): the first pass has text and box, no click and a mask of
zeros; a later one has the clicks so far in a buffer whose unused slots are masked, and the pass
before's low-resolution logits. A mask from elsewhere stands in for those logits in the first pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.models.layers import upsample
from rtsam_jax.models.presets import get_spec
from rtsam_jax.models.sam3d import SAM3D
from rtsam_jax.models.text_adapter import TextTable
from rtsam_jax.prompts.clicks import NEGATIVE, POSITIVE, UNUSED
from rtsam_jax.prompts.dose import box_from_roi


class Encoded(NamedTuple):
    """Crops whose prompts may change; leaves [n, ...], on the host."""

    embedding: np.ndarray  # [n, g, g, g, C]
    box: np.ndarray | None  # [n, 2, 3]; None where the model is told no box
    box_valid: np.ndarray | None  # [n]
    text_id: np.ndarray  # [n]
    table: TextTable | None = None  # what `text_id` are rows of, the same for all crops

    def rows(self, which: np.ndarray) -> Encoded:
        """Some of the crops, in any order and any of them as often as asked."""
        crops = jax.tree.map(lambda leaf: leaf[which], self._replace(table=None))
        return crops._replace(table=self.table)


class Asked(NamedTuple):
    """What the decoder is asked about crops besides their fixed prompts."""

    points: np.ndarray  # [n, K, 3] float32, voxels of the crop
    labels: np.ndarray  # [n, K] int32: 1 / 0 / -2
    mask: np.ndarray  # [n, m, m, m, 1] float32, logits of the turn before


@dataclass(frozen=True, eq=False)
class Turn:
    """The clicks that crops have been given and what the decoder made of them; on the host.

    Attributes:
        points: as asked.
        labels: as asked.
        low_res: [n, m, m, m, 1] float32 logits.
        iou: [n] float32, predicted, of these masks; it means something where it was trained.
        size: a crop's edge in voxels.
    """

    points: np.ndarray
    labels: np.ndarray
    low_res: np.ndarray
    iou: np.ndarray
    size: int

    def crop(self, row: int) -> np.ndarray:
        """Probability of one crop: [S, S, S] float32. It is not kept, since many take much room."""
        return np.asarray(_enlarged(self.low_res[row], self.size))

    @property
    def probability(self) -> np.ndarray:
        """Of every crop: [n, S, S, S] float32, made anew each time."""
        return np.stack([self.crop(row) for row in range(len(self.low_res))])

    def rows(self, which: np.ndarray | slice) -> Turn:
        """Some of the crops."""
        points, labels, low_res, iou = (leaf[which] for leaf in self._leaves)
        return Turn(points, labels, low_res, iou, self.size)

    def with_room(self, slots: int) -> Turn:
        """The same with a buffer of at least so many slots, doubled as often as that takes."""
        length = self.labels.shape[1]
        while length < slots:
            length *= 2
        more = length - self.labels.shape[1]
        return dataclasses.replace(
            self,
            points=np.pad(self.points, ((0, 0), (0, more), (0, 0))),
            labels=np.pad(self.labels, ((0, 0), (0, more)), constant_values=UNUSED),
        )

    def with_click(
        self, rows: np.ndarray, at: np.ndarray, positive: bool, slot: int, *, keep: bool
    ) -> Asked:
        """What is to be asked of some crops after one more click.

        Args:
            rows: int [r], the crops that hold the click.
            at: int [r, 3], its voxel in each of them.
            positive: its sign.
            slot: of the buffer, this click's own.
            keep: whether earlier clicks are asked with it (`config.click.accumulate`).
        """
        points, labels = self.points[rows], self.labels[rows]  # copies
        if not keep:
            labels[:] = UNUSED
        points[:, slot] = at
        labels[:, slot] = POSITIVE if positive else NEGATIVE
        return Asked(points, labels, self.low_res[rows])

    def updated(self, rows: np.ndarray, new: Turn) -> Turn:
        """All crops, some of them anew."""
        leaves = [leaf.copy() for leaf in self._leaves]
        for leaf, values in zip(leaves, new._leaves, strict=True):
            leaf[rows] = values
        points, labels, low_res, iou = leaves
        return Turn(points, labels, low_res, iou, self.size)

    @property
    def _leaves(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self.points, self.labels, self.low_res, self.iou


@partial(jax.jit, static_argnums=1)
def _enlarged(low_res: jax.Array, size: int) -> jax.Array:
    return jax.nn.sigmoid(upsample(low_res[None, ..., 0], size)[0])


class ClickModel:
    """Two programs, compiled for fixed shapes: encode a crop; decode one, or `batch` of them.

    Args:
        params: where the programs run is where they lie.
        cfg: of the run.
        clicks: slots of the buffer.
        batch: rows per call where more than one crop, or candidate, is decoded.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef[SAM3D],
        params: nnx.State,
        cfg: ExperimentConfig,
        *,
        clicks: int,
        batch: int,
    ):
        self.spec, self.accumulate = get_spec(cfg.model.preset), cfg.click.accumulate
        self.told_box = cfg.prompt.box
        self.clicks, self._batch, self._params = clicks, batch, params

        @jax.jit
        def encode(
            params: nnx.State, image: jax.Array, roi: jax.Array
        ) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
            box, box_valid = box_from_roi(roi) if cfg.prompt.box else (None, None)
            return nnx.merge(graphdef, params).encode(image[..., None]), box, box_valid

        @jax.jit
        def decode(params: nnx.State, crops: Any, asked: Any) -> tuple[jax.Array, jax.Array]:
            model = nnx.merge(graphdef, params)  # crops, asked: `Encoded` and `Asked`, traced
            prompts = model.fixed_prompts(crops.box, crops.box_valid, crops.text_id, crops.table)
            prompts = prompts._replace(
                points=asked.points, point_labels=asked.labels, mask=asked.mask
            )
            masks = model.decode(crops.embedding, prompts)
            return masks.low_res_logits, masks.iou[:, 0]

        self._encode, self._decode = encode, decode

    def encode(
        self,
        images: Iterable[np.ndarray],
        rois: Iterable[np.ndarray],
        text_id: int,
        table: TextTable | None = None,
    ) -> Encoded:
        """Crops [S, S, S] of one case, one by one, so that every case has the same shape.

        Args:
            images: float32.
            rois: uint8, what the boxes are taken of.
            text_id: row of `table`, or index of the task.
            table: of texts; None where the model takes none. Tables of one length compile once.
        """
        parts = [
            jax.device_get(self._encode(self._params, image[None], roi[None]))
            for image, roi in zip(images, rois, strict=True)
        ]
        embedding, box, box_valid = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        return Encoded(embedding, box, box_valid, np.full(len(parts), text_id, np.int32), table)

    def first(self, crops: Encoded, mask: np.ndarray | None = None) -> Turn:
        """The prediction without clicks.

        Args:
            crops: of `encode`.
            mask: [n, m, m, m, 1] float32, logits of another's prediction; None: zeros, as in
                training.
        """
        n, side = len(crops.text_id), self.spec.mask_size
        zeros = np.zeros((n, side, side, side, 1), np.float32)
        nothing = Asked(
            np.zeros((n, self.clicks, 3), np.float32),
            np.full((n, self.clicks), UNUSED, np.int32),
            zeros if mask is None else mask,
        )
        return self.answer(crops, nothing)

    def answer(self, crops: Encoded, asked: Asked) -> Turn:
        """What the decoder says; crops and questions have the same rows."""
        count = len(asked.labels)
        batch = 1 if count == 1 else self._batch
        answers = []
        for start in range(0, count, batch):
            rows = np.minimum(np.arange(start, start + batch), count - 1)  # the last one fills up
            part = Asked(*(leaf[rows] for leaf in asked))
            answers.append(jax.device_get(self._decode(self._params, crops.rows(rows), part)))
        low_res, iou = (np.concatenate(x)[:count] for x in zip(*answers, strict=True))
        return Turn(asked.points, asked.labels, low_res, iou, self.spec.image_size)
