"""Scans: what cases share, and a key of everything that a prepared one depends on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import scipy

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.augment import margin
from rtsam_jax.data.cases import Case
from rtsam_jax.data.content import Content, Stamp
from rtsam_jax.data.failure import Failure
from rtsam_jax.data.nifti import read_volume
from rtsam_jax.data.preprocess import Preprocessed, PreprocessSpec, preprocess
from rtsam_jax.errors import RTSamError

# Part of every key: raise it where the same files and settings would give another record.
FORMAT = 2

View = tuple[Path | None, int | None]  # a label file and the value that is inside


class ScanSource(NamedTuple):
    """What cases of one scan share, so that it is preprocessed once."""

    image: Path
    dose: Path | None
    modality: str  # "CT" | "MR"
    prescription_gy: float | None  # the record's, where the ROI depends on it


def scan_source(
    case: Case, modality: Mapping[str, str], spec: PreprocessSpec, *, dose: bool = True
) -> ScanSource:
    """The scan of a case.

    Args:
        modality: by task.
        dose: whether its dose is used; where config.dose.source is another it is not even read.
    """
    if not dose:
        return ScanSource(case.image, None, modality[case.task], None)
    prescription = spec.prescription_gy(case.record)
    return ScanSource(case.image, case.dose, modality[case.task], prescription)


def preprocess_scan(scan: ScanSource, spec: PreprocessSpec, *, name: str) -> Preprocessed:
    """Reads image and dose and brings them to the model grid; no label is touched.

    Args:
        name: of the case or cases, for errors.
    """
    image = read_volume(scan.image, what="image")
    dose = None if scan.dose is None else read_volume(scan.dose, what="dose")
    return preprocess(
        image, dose, scan.modality, spec, name=name, prescription_gy=scan.prescription_gy
    )


def preprocessed(
    cases: Sequence[Case], modality: Mapping[str, str], spec: PreprocessSpec, *, dose: bool = True
) -> Iterator[tuple[Case, Preprocessed]]:
    """Yields cases with their scans, one by one, so that volumes need not be held.

    A scan that stands beside the one before, as tasks of one scan do, is not prepared again.

    Args:
        modality: by task.
        dose: as in `scan_source`.
    """
    before: tuple[ScanSource, Preprocessed] | None = None
    for case in cases:
        source = scan_source(case, modality, spec, dose=dose)
        if before is None or before[0] != source:
            before = source, preprocess_scan(source, spec, name=case.id)
        yield case, before[1]


@dataclass(frozen=True)
class CacheSettings:
    """What a prepared record depends on besides its files."""

    spec: PreprocessSpec
    source: str  # config.dose.source
    size: int  # edge of the model's crop in voxels
    reach: int  # voxels that jitter and affine may go beyond it
    dtype: str  # of the image on disk

    @classmethod
    def from_config(cls, cfg: ExperimentConfig, size: int) -> CacheSettings:
        """Takes the fields from `cfg.data`, `cfg.dose` and `cfg.augment`."""
        return cls(
            spec=PreprocessSpec.from_config(cfg),
            source=cfg.dose.source,
            size=size,
            reach=cfg.data.jitter + margin(cfg.augment, size),
            dtype=cfg.data.cache_dtype,
        )

    def to_json(self) -> str:
        """For people, and for the name of the folder."""
        # Another scipy may interpolate to other digits.
        about = {"format": FORMAT, "scipy": scipy.__version__, **dataclasses.asdict(self)}
        return json.dumps(about, indent=1, sort_keys=True)

    @property
    def digest(self) -> str:
        """Of the settings and the format."""
        return _sha256(self.to_json())


@dataclass(frozen=True)
class Scan:
    """One image with its dose, and every label that cases have on it."""

    key: str  # of settings, contents, modality
    source: ScanSource
    stamps: tuple[tuple[Path, Stamp], ...]  # of its files, when the key was made
    views: tuple[View, ...]  # distinct, sorted by content
    cases: tuple[str, ...]  # ids
    view_of: tuple[int, ...]  # by case: which view is its own


def group_scans(
    cases: Sequence[Case],
    modality: Mapping[str, str],
    settings: CacheSettings,
    contents: Mapping[Path, Content | RTSamError],
) -> tuple[list[Scan], list[Failure]]:
    """Groups cases that share image, dose, modality and, where it matters, prescription.

    Args:
        modality: by task.
        contents: of every file of every case; a case with an unreadable one becomes a failure.
    """
    groups: dict[ScanSource, list[Case]] = {}
    failures = []
    dose = settings.source == "dose"
    for case in cases:
        if error := _unreadable(case if dose else dataclasses.replace(case, dose=None), contents):
            failures.append(Failure(case.id, error.code, str(error)))
            continue
        groups.setdefault(scan_source(case, modality, settings.spec, dose=dose), []).append(case)

    def digest(path: Path | None) -> str | None:
        found = None if path is None else contents[path]
        return found.digest if isinstance(found, Content) else None

    scans = []
    for source, members in groups.items():

        def content(view: View) -> tuple[str, int]:
            path, value = view
            return (digest(path) or "", value or 0)

        views = sorted({(case.label, case.label_value) for case in members}, key=content)
        parts = {
            "settings": settings.digest,
            "image": digest(source.image),
            "dose": digest(source.dose),
            "modality": source.modality,
            "prescription_gy": source.prescription_gy,
            "views": [content(view) for view in views],
        }
        place = {view: at for at, view in enumerate(views)}
        scans.append(
            Scan(
                key=_sha256(json.dumps(parts, sort_keys=True)),
                source=source,
                stamps=tuple(
                    (path, found.stamp)
                    for path in (source.image, source.dose, *(path for path, _ in views))
                    if path is not None and isinstance(found := contents[path], Content)
                ),
                views=tuple(views),
                cases=tuple(case.id for case in members),
                view_of=tuple(place[case.label, case.label_value] for case in members),
            )
        )
    return scans, failures


def _unreadable(case: Case, contents: Mapping[Path, Content | RTSamError]) -> RTSamError | None:
    """Why a case's files have no key, in the words of the reader of volumes if it finds them."""
    for what in ("image", "dose", "label"):
        path = getattr(case, what)
        if path is None or not isinstance(error := contents[path], RTSamError):
            continue
        try:
            read_volume(path, what=what)
        except RTSamError as said:
            return said
        return error
    return None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
