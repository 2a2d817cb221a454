"""Cases to batches: preprocess once, then crops whose order derives from (seed, step).

Batch `i` is a pure function of the config and `i` (grain's random access), so a resumed run sees
exactly the batches that an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import grain
import numpy as np

from rtsam_jax.data.cases import Case
from rtsam_jax.data.crops import crop_origins, extract
from rtsam_jax.data.nifti import read_label, read_volume
from rtsam_jax.data.preprocess import Grid, Preprocessed, PreprocessSpec, label_to_grid, preprocess
from rtsam_jax.data.sample import Sample


@dataclass(frozen=True)
class Neighbourhood:
    """What training needs of a case: the surroundings of its dose box, crop and jitter included.

    `image` and `roi` are shared between the cases of one scan (several tasks on one image).
    """

    image: np.ndarray  # [X, Y, Z] float32
    roi: np.ndarray  # [X, Y, Z] uint8
    label: np.ndarray  # [X, Y, Z] uint8
    origins: np.ndarray  # [n, 3] int, the crops that prediction would take
    background: float  # normalised intensity of what lies outside the volume
    task_id: int


class PromptIds(NamedTuple):
    """The prompts that training may give a case: rows of the table of texts, or tasks.

    Attributes:
        ids: `[1 + V]` int32; first the task alone, then the wordings to choose from.
        mirrored: the same with left and right swapped; None where a side cannot be swapped.
    """

    ids: np.ndarray
    mirrored: np.ndarray | None


ScanKey = tuple[Path, Path, str]


def scan_key(case: Case, modality: Mapping[str, str]) -> ScanKey:
    """What cases of one scan share, so that it is preprocessed once: image, dose, modality."""
    return case.image, case.dose, modality[case.task]


def preprocess_case(case: Case, modality: str, spec: PreprocessSpec) -> Preprocessed:
    """Reads a case's image and dose and brings them to the model grid; no label is touched."""
    image = read_volume(case.image, what="image")
    dose = read_volume(case.dose, what="dose")
    return preprocess(image, dose, modality, spec, name=case.id)


def load_neighbourhoods(
    cases: Sequence[Case],
    modality: dict[str, str],
    tasks: Sequence[str],
    spec: PreprocessSpec,
    *,
    size: int,
    jitter: int,
    progress: bool = False,
) -> list[Neighbourhood]:
    """Preprocesses every case once; scans shared by several tasks are read once.

    Args:
        cases: each with a label.
        modality: per task, "CT" or "MR".
        tasks: names in the order of `task_id`.
        size: crop side in voxels.
        jitter: largest shift of a training crop in voxels.
        progress: print a line per tenth of the cases.
    """
    scans: dict[ScanKey, _Scan] = {}
    out = []
    for i, case in enumerate(cases):
        key = scan_key(case, modality)
        if key not in scans:
            whole = preprocess_case(case, modality[case.task], spec)
            scans[key] = _cut(whole, size, jitter)
        scan = scans[key]
        assert case.label is not None
        label = label_to_grid(read_label(case.label), scan.grid, name=case.id)
        out.append(
            Neighbourhood(
                image=scan.image,
                roi=scan.roi,
                label=label[scan.window].copy(),
                origins=scan.origins,
                background=scan.background,
                task_id=list(tasks).index(case.task),
            )
        )
        if progress and (i + 1) % max(1, len(cases) // 10) == 0:
            print(f"prepared {i + 1}/{len(cases)} cases", flush=True)
    return out


class _Scan(NamedTuple):
    """A scan's neighbourhood and where it lies; the whole volume is not kept."""

    image: np.ndarray
    roi: np.ndarray
    origins: np.ndarray
    background: float
    window: tuple[slice, ...]
    grid: Grid


def _cut(whole: Preprocessed, size: int, jitter: int) -> _Scan:
    origins = crop_origins(whole.box, size)
    low = np.maximum(origins.min(0) - jitter, 0)
    high = np.minimum(origins.max(0) + size + jitter, whole.image.shape)
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    image, roi = whole.image[window].copy(), whole.roi[window].copy()
    return _Scan(image, roi, origins - low, whole.background, window, whole.grid)


def crop(case: Neighbourhood, case_id: int, text_id: int, origin: np.ndarray, size: int) -> Sample:
    """One crop at `origin` (voxels of the neighbourhood; may reach beyond it)."""
    return Sample(
        image=extract(case.image, origin, size, case.background)[..., None],
        label=extract(case.label, origin, size, 0),
        roi=extract(case.roi, origin, size, 0),
        text_id=np.int32(text_id),
        case_id=np.int32(case_id),
    )


def training_batches(
    cases: Sequence[Neighbourhood],
    prompts: Sequence[PromptIds],
    *,
    size: int,
    jitter: int,
    batch_size: int,
    seed: int,
    flip_axes: Sequence[int] = (),
    intensity_jitter: float = 0.0,
    record_dropout: float = 0.0,
) -> grain.MapDataset:
    """An endless dataset of batches; `[step]` is random access, iteration prefetches.

    Every epoch visits each case once in a new order; its crop is one of those that prediction
    would take, shifted by up to `jitter` voxels along each axis, each of `flip_axes` reversed with
    probability one half, and its intensities scaled and shifted by up to `intensity_jitter`. It is
    told one of its case's wordings, or with probability `record_dropout` the task alone. A reversed
    axis 0 (left-right) takes the mirrored prompt; where there is none it is not reversed.

    Args:
        prompts: what each case may be told.
    """

    def draw(case_id: int, rng: np.random.Generator) -> Sample:
        case, told = cases[case_id], prompts[case_id]
        origin = case.origins[rng.integers(len(case.origins))]
        origin = origin + rng.integers(-jitter, jitter + 1, size=3)
        flipped = tuple(axis for axis in flip_axes if rng.integers(2))
        scale, shift = rng.uniform(-intensity_jitter, intensity_jitter, size=2)
        wording = rng.integers(1, len(told.ids))
        chosen = 0 if rng.random() < record_dropout else wording
        ids = told.ids
        if told.mirrored is None:
            flipped = tuple(axis for axis in flipped if axis != 0)
        elif 0 in flipped:
            ids = told.mirrored
        sample = crop(case, case_id, int(ids[chosen]), origin, size)
        return sample._replace(
            image=np.flip(sample.image, flipped) * np.float32(1 + scale) + np.float32(shift),
            label=np.flip(sample.label, flipped),
            roi=np.flip(sample.roi, flipped),
        )

    return (
        grain.MapDataset.range(len(cases))
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(draw)
        .batch(batch_size)
    )


def batches_from(dataset: grain.MapDataset, start: int, stop: int) -> Iterator[Sample]:
    """Batches `start .. stop - 1`, read ahead by threads."""
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(dataset[start:stop].to_iter_dataset(options))
