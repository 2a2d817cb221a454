"""The model as a tool that takes clicks: crops are encoded once, and decoded as often as asked.

As in training (`rtsam_jax.prompts.clicks`): the first pass has text and box, no click and a mask of
zeros; a later one has the clicks so far in a buffer whose unused slots are masked, and the pass
before's low-resolution logits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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

    def rows(self, which: np.ndarray) -> Encoded:
        """Some of the crops, in any order and any of them as often as asked."""
        return jax.tree.map(lambda leaf: leaf[which], self)


class Asked(NamedTuple):
    """What the decoder is asked about crops besides their fixed prompts."""

    points: np.ndarray  # [n, K, 3] float32, voxels of the crop
    labels: np.ndarray  # [n, K] int32: 1 / 0 / -2
    mask: np.ndarray  # [n, m, m, m, 1] float32, logits of the turn before


class Turn(NamedTuple):
    """The clicks that crops have been given and what the decoder made of them; on the host."""

    points: np.ndarray  # as asked
    labels: np.ndarray
    low_res: np.ndarray  # [n, m, m, m, 1] float32 logits
    probability: np.ndarray  # [n, S, S, S] float32

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
        leaves = [leaf.copy() for leaf in self]
        for leaf, values in zip(leaves, new, strict=True):
            leaf[rows] = values
        return Turn(*leaves)


class ClickModel:
    """Two programs, compiled for fixed shapes: encode a crop; decode one, or `batch` of them.

    Args:
        params: where the programs run is where they lie.
        cfg: of the run.
        texts: table of the run's texts, or None.
        clicks: slots of the buffer.
        batch: rows per call where more than one crop, or candidate, is decoded.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef[SAM3D],
        params: nnx.State,
        cfg: ExperimentConfig,
        texts: TextTable | None = None,
        *,
        clicks: int,
        batch: int,
    ):
        self.spec, self.accumulate = get_spec(cfg.model.preset), cfg.click.accumulate
        self.clicks, self._batch = clicks, batch
        self._params, self._texts = params, jax.tree.map(jnp.asarray, texts)
        size = self.spec.image_size

        @jax.jit
        def encode(
            params: nnx.State, image: jax.Array, roi: jax.Array
        ) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
            box, box_valid = box_from_roi(roi) if cfg.prompt.box else (None, None)
            return nnx.merge(graphdef, params).encode(image[..., None]), box, box_valid

        @jax.jit
        def decode(
            params: nnx.State, texts: TextTable | None, crops: Any, asked: Any
        ) -> tuple[jax.Array, jax.Array]:  # crops, asked: `Encoded` and `Asked`, traced
            model = nnx.merge(graphdef, params)
            prompts = model.fixed_prompts(crops.box, crops.box_valid, crops.text_id, texts)
            prompts = prompts._replace(
                points=asked.points, point_labels=asked.labels, mask=asked.mask
            )
            low_res = model.decode(crops.embedding, prompts).low_res_logits
            return low_res, jax.nn.sigmoid(upsample(low_res[..., 0], size))

        self._encode, self._decode = encode, decode

    def encode(self, images: np.ndarray, rois: np.ndarray, text_id: int) -> Encoded:
        """Crops `[n, S, S, S]` of one case, one by one, so that every case has the same shape."""
        parts = [
            jax.device_get(self._encode(self._params, image[None], roi[None]))
            for image, roi in zip(images, rois, strict=True)
        ]
        embedding, box, box_valid = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        return Encoded(embedding, box, box_valid, np.full(len(images), text_id, np.int32))

    def first(self, crops: Encoded) -> Turn:
        """The prediction without clicks."""
        n, side = len(crops.text_id), self.spec.mask_size
        nothing = Asked(
            np.zeros((n, self.clicks, 3), np.float32),
            np.full((n, self.clicks), UNUSED, np.int32),
            np.zeros((n, side, side, side, 1), np.float32),
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
            answers.append(
                jax.device_get(self._decode(self._params, self._texts, crops.rows(rows), part))
            )
        low_res, probability = (np.concatenate(x)[:count] for x in zip(*answers, strict=True))
        return Turn(asked.points, asked.labels, low_res, probability)
