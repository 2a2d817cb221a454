"""The pytrees of a training step: the sample that comes in, and what the decoder sees of it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Sample(NamedTuple):
    """A batch of crops (or, without the leading axis, one crop).

    S is the model's image size; before `data.augment` it is larger by a margin on either side, so
    that what an affine turns into the crop is there.
    """

    image: Any  # [B, S, S, S, 1] float32, normalised
    label: Any  # [B, S, S, S] uint8
    roi: Any  # [B, S, S, S] uint8: the high-dose region; it moves with the image
    text_id: Any  # [B] int32: row of the table of texts, or the task where it has learned tokens
    mirrored_text_id: Any  # [B] int32: what a left-right flip makes of it; -1: it must not be made
    case_id: Any  # [B] int32, index into the pipeline's cases
    weight: Any  # [B] float32: 1; 0 for a row that only fills a batch up, which nothing counts
    view: Any  # [B] int32: seed of a fixed view (data.views); -1: augmented afresh in every step


class View(NamedTuple):
    """A batch of samples as the decoder gets them: augmented, boxed, encoded."""

    # [B, g, g, g, C], of the image encoder; float32, bfloat16 from disk; None: not encoded yet
    embedding: Any
    label: Any  # [B, S, S, S] uint8
    roi: Any  # [B, S, S, S] uint8
    box: Any  # [B, 2, 3] float32, inclusive corner voxels; None where the model gets no box
    box_valid: Any  # [B] bool; None likewise
    text_id: Any  # [B] int32
    case_id: Any  # [B] int32
    weight: Any  # [B] float32
