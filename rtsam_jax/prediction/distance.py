"""How far a case lies from the training cases, as the image encoder sees both.

A case is the mean of its embedding's tokens that touch the dose box. Distance is Mahalanobis's from
the mean of its task's training cases, as in Lee et al., "A Simple Unified Framework for Detecting
Out-of-Distribution Samples" (NeurIPS 2018): tasks differ in their images, and one mean of all would
lie where none is. The covariance around these means is one for all tasks, shrunk as in Ledoit and
Wolf, "A well-conditioned estimator for large-dimensional covariance matrices" (2004). A distance is
told as a percentile among the training cases, each measured against those of the other patients.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import linalg

from rtsam_jax.errors import UnreadableFile
from rtsam_jax.prompts.dose import box_corners
from rtsam_jax.report.files import written_whole

FILE = "calibration.npz"
LEAST_PATIENTS = 3  # below, nothing is left to measure a training case against
# Of the covariance; with fewer cases than channels the estimate may be 0, and nothing inverts.
_LEAST_SHRINKAGE = 0.01
_TINY = 1e-12  # variance of features that are all alike


def pooled(embedding: np.ndarray, rois: np.ndarray, source: str) -> np.ndarray:
    """A case's feature: mean over crops of the mean over the tokens that touch the ROI's box.

    Args:
        embedding: `[n, g, g, g, C]`, of its crops.
        rois: `[n, S, S, S]`; a crop without ROI is left out, unless none has any.
        source: config.dose.source. With "none", for a model that knows no region, every token
            counts.

    Returns:
        float64 `[C]`.
    """
    if source != "none":
        features = [
            _mean_inside(tokens, box * len(tokens) // rois.shape[1])
            for tokens, box in zip(embedding, map(box_corners, rois), strict=True)
            if box is not None
        ]
        if features:
            return np.mean(features, axis=0)
    return embedding.mean((0, 1, 2, 3), dtype=np.float64)


def _mean_inside(tokens: np.ndarray, box: np.ndarray) -> np.ndarray:
    part = tuple(slice(low, high + 1) for low, high in box.T.tolist())
    return tokens[part].mean((0, 1, 2), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Reference:
    """The training cases that others are measured against."""

    tasks: np.ndarray  # str [T], ascending
    centres: np.ndarray  # float64 [T, C], of their cases
    middle: np.ndarray  # float64 [C], of all
    whitening: np.ndarray  # float64 [C, C]: the covariance's inverse is W^T W
    distances: np.ndarray  # float64 [n], ascending, of each from those of the other patients

    @classmethod
    def fit(cls, features: np.ndarray, patients: np.ndarray, tasks: np.ndarray) -> Reference | None:
        """Of features `[n, C]`, with whose and of which task each is.

        None for fewer than three patients.
        """
        names = np.unique(patients)
        if len(names) < LEAST_PATIENTS:
            return None
        distances: list[float] = []
        for name in names:
            own = patients == name
            others = cls._of(features[~own], tasks[~own])
            distances += map(others.distance, features[own], tasks[own])
        return dataclasses.replace(cls._of(features, tasks), distances=np.sort(distances))

    @classmethod
    def _of(cls, features: np.ndarray, tasks: np.ndarray) -> Reference:
        names, index = np.unique(tasks, return_inverse=True)
        centres = np.stack([features[index == at].mean(0) for at in range(len(names))])
        whitening = _whitening(features - centres[index])
        return cls(names, centres, features.mean(0), whitening, distances=np.zeros(0))

    def distance(self, feature: np.ndarray, task: str) -> float:
        """Of a feature `[C]`; for a task without another case, from the middle of all."""
        own = self.centres[self.tasks == task]
        centre = own[0] if len(own) else self.middle
        return float(np.linalg.norm(self.whitening @ (feature - centre)))

    def percentile(self, distance: float) -> float:
        """Per cent of the training cases that lie no farther out."""
        inside = np.searchsorted(self.distances, distance, side="right")
        return 100 * float(inside) / len(self.distances)

    def packed(self) -> bytes:
        """What `calibration.npz` holds; `model.json` has its `sha256`."""
        file = io.BytesIO()
        np.savez(file, **{name: getattr(self, name) for name in self.__dataclass_fields__})
        return file.getvalue()

    @classmethod
    def read(cls, run: Path, digest: str) -> Reference:
        """What `replaced` put into a run's folder.

        Raises:
            UnreadableFile: it is not there, or not of this digest.
        """
        # The second is there where a command was killed before it renamed it to the first.
        for path in (run / FILE, _beside(run, digest)):
            if path.is_file() and sha256(packed := path.read_bytes()) == digest:
                with np.load(io.BytesIO(packed)) as arrays:
                    return cls(*(arrays[name] for name in cls.__dataclass_fields__))
        raise UnreadableFile(
            f"{run / FILE} is {'not the one' if (run / FILE).is_file() else 'not there'} that "
            "model.json was calibrated with; copy it from the run's folder, or calibrate again."
        )


def sha256(packed: bytes) -> str:
    """Of `Reference.packed`, hex."""
    return hashlib.sha256(packed).hexdigest()


@contextmanager
def replaced(run: Path, packed: bytes | None) -> Iterator[None]:
    """Puts `calibration.npz` into a run's folder, around the writing of its `model.json`.

    `Reference.read` finds what `model.json` names at any moment, also after a kill: the new file
    lies beside the old one, under a hidden name with its digest, until the block has ended.

    Args:
        run: its folder.
        packed: of `Reference.packed`; None changes nothing.
    """
    if packed is None:
        yield
        return
    beside = _beside(run, sha256(packed))
    with written_whole(beside) as part:
        part.write_bytes(packed)
    yield  # if it fails, both stay: which of them model.json now names is not known here
    os.replace(beside, run / FILE)
    for left in run.glob(_beside(Path(), "*").name):
        left.unlink(missing_ok=True)


def _beside(run: Path, digest: str) -> Path:
    return run / f".{Path(FILE).stem}.{digest}.npz"


def _whitening(apart: np.ndarray) -> np.ndarray:
    """Of features less their centres, `[n, C]`."""
    count, channels = apart.shape
    covariance = apart.T @ apart / count
    level = np.trace(covariance) / channels
    shrinkage = ledoit_wolf(apart, covariance)
    covariance *= 1 - shrinkage
    covariance[np.diag_indices(channels)] += shrinkage * level + _TINY
    lower = linalg.cholesky(covariance, lower=True)
    return linalg.solve_triangular(lower, np.eye(channels), lower=True)


def ledoit_wolf(apart: np.ndarray, covariance: np.ndarray) -> float:
    """The share of a multiple of the identity that estimates a covariance best, 0.01 to 1.

    Args:
        apart: `[n, C]`, features less their centres.
        covariance: `[C, C]`, `apart.T @ apart / n`.
    """
    count, channels = apart.shape
    squared = (covariance**2).sum()
    # Of the estimate from a multiple of the identity, and of single cases from the estimate.
    spread = squared - np.trace(covariance) ** 2 / channels
    error = (((apart**2).sum(1) ** 2).sum() / count - squared) / count
    return float(np.clip(error / spread, _LEAST_SHRINKAGE, 1.0)) if spread > _TINY else 1.0
