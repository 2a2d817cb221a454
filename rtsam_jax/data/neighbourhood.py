"""What training needs of a scan: the surroundings of its box, as a record on disk and in memory.

One record holds a scan with all its labels, so that a volume is stored once however many structures
are outlined on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rtsam_jax.data.crops import crop_origins, extract
from rtsam_jax.data.packing import pack, pack_mask, unpack, unpack_mask
from rtsam_jax.data.preprocess import Preprocessed
from rtsam_jax.prompts.dose import box_corners

Box = np.ndarray  # int (2, 3), inclusive corners


@dataclass(frozen=True)
class Neighbourhood:
    """A case around its crops, jitter and affine margin included."""

    image: np.ndarray  # [X, Y, Z] float32 or float16, normalised; read-only
    roi: np.ndarray  # [X, Y, Z] uint8
    label: np.ndarray  # [X, Y, Z] uint8
    origins: np.ndarray  # [n, 3] int, of the crops that prediction would take; may repeat
    background: float  # normalised intensity of what lies outside the volume
    task_id: int


def anchor_box(scan: Preprocessed, label: np.ndarray | None) -> Box:
    """What crops lie around: the dose's or body's box; else the label's; else the whole image."""
    if scan.anchor is not None:
        return scan.anchor
    box = box_corners(label) if label is not None else None
    return box if box is not None else np.array([(0, 0, 0), scan.image.shape]) - [[0], [1]]


def training_origins(
    scan: Preprocessed, label: np.ndarray | None, size: int, *, crop: str
) -> np.ndarray:
    """Origins of the crops that training draws from, each as often as it stands there: int [n, 3].

    Of crops that tile a body few hold any of a small label: these are repeated until they are about
    half of all.

    Args:
        scan: with or without dose.
        label: `[X, Y, Z]` on its grid, or None.
        size: the crop's edge in voxels.
        crop: config.data.crop.
    """
    origins = crop_origins(anchor_box(scan, label), size)
    if crop == "dose" or label is None:
        return origins
    holds = np.array([extract(label, origin, size, 0).any() for origin in origins])
    hits = np.count_nonzero(holds)
    more = round((len(origins) - hits) / hits) - 1 if hits else 0
    return np.concatenate([origins, np.repeat(origins[holds], max(0, more), axis=0)])


def encode(
    scan: Preprocessed,
    labels: Sequence[np.ndarray | None],
    *,
    size: int,
    reach: int,
    dtype: str,
    crop: str = "dose",
) -> bytes:
    """One record of a scan and its labels.

    Args:
        scan: with or without dose.
        labels: `[X, Y, Z]` uint8 on its grid; None stands for a case without label.
        size: the crop's edge in voxels.
        reach: voxels that jitter and affine may go beyond the crops.
        dtype: of the image on disk.
        crop: config.data.crop.
    """
    anchors = [anchor_box(scan, label) for label in labels]
    origins = [training_origins(scan, label, size, crop=crop) for label in labels]
    every = np.concatenate(origins)
    low = np.maximum(every.min(0) - reach, 0)
    high = np.minimum(every.max(0) + size + reach, scan.image.shape)
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    image = np.ascontiguousarray(scan.image[window], dtype)
    about: dict[str, Any] = {
        "background": scan.background,
        "roi": None if scan.roi is None else pack_mask(scan.roi[window]),
        "labels": [None if label is None else pack_mask(label[window]) for label in labels],
        "boxes": [anchor - low for anchor in anchors],
        "origins": [origin - low for origin in origins],
    }
    return pack(image, about)


def decode(content: bytes, view: int, task_id: int, source: str) -> Neighbourhood:
    """The neighbourhood of one of a record's labels.

    Args:
        content: of `encode`.
        view: which label.
        task_id: of the case.
        source: config.dose.source: "dose", or where the ROI comes from without one: "label", the
            label's box filled; "none", everywhere.
    """
    image, record = unpack(content)  # seen in place: it is large, and read for every crop
    label, shape = record["labels"][view], image.shape
    if source == "dose":
        roi = (
            np.zeros(shape, np.uint8)
            if record["roi"] is None
            else unpack_mask(record["roi"], shape)
        )
    elif source == "label":
        roi = np.zeros(shape, np.uint8)
        low, high = record["boxes"][view]
        roi[tuple(slice(max(a, 0), b + 1) for a, b in zip(low, high, strict=True))] = 1
    else:
        roi = np.ones(shape, np.uint8)
    return Neighbourhood(
        image=image,
        roi=roi,
        label=np.zeros(shape, np.uint8) if label is None else unpack_mask(label, shape),
        origins=record["origins"][view],
        background=record["background"],
        task_id=task_id,
    )
