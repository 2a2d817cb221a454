"""The one pytree that travels from the input pipeline to the training step."""

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
