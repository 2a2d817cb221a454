"""Text features, computed once per distinct text and kept on disk.

    CACHE/<digest>-<pooling>-<format>/<random>.npz    rows that one run added; never changed

The folder's name holds the language model's SHA-256, a row's key is its text's: nothing else
decides a feature. Texts themselves are not stored, since they may be records of patients.
"""

from __future__ import annotations

import hashlib
import uuid
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rtsam_jax.data.user_cache import user_cache
from rtsam_jax.text.language_model import TextFeature, describe, load_language_model

# Raised when the same model and text come to give another feature: a mended encoder, say.
_FORMAT = 1


def cache_folder(named: str) -> Path:
    """`named`, or where it is empty the user's cache folder."""
    return Path(named).expanduser() if named else user_cache("text_features")


def text_features(
    texts: Sequence[str], model: Path, pooling: str, cache: Path
) -> list[TextFeature]:
    """A feature per text; the language model is read only for texts that the cache lacks.

    Args:
        model: folder of the language model.
        pooling: "mean", "cls" or "tokens".
        cache: see `cache_folder`.

    Raises:
        RTSamError: as `load_language_model`.
    """
    about = describe(model)
    place = cache / f"{about.digest[:32]}-{pooling}-{_FORMAT}"
    keys = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    known = _read(place, set(keys), about.spec.width)
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    if missing:
        print(f"{model}: features of {len(missing)} texts", flush=True)
        found = load_language_model(model).features(list(missing.values()), pooling)
        new = dict(zip(missing, found, strict=True))
        _write(place, new)
        known |= new
    return [known[key] for key in keys]


def _read(place: Path, wanted: set[str], width: int) -> dict[str, TextFeature]:
    known: dict[str, TextFeature] = {}
    for file in sorted(place.glob("*.npz")):
        try:
            with np.load(file, allow_pickle=False) as stored:
                keys, lengths, lost = stored["keys"], stored["lengths"], stored["lost"]
                features = stored["features"]
            if features.shape != (lengths.sum(), width) or not np.isfinite(features).all():
                raise ValueError("its features are not of this language model")
            rows = np.split(features, np.cumsum(lengths)[:-1])
            found = dict(zip(keys.tolist(), zip(rows, lost.tolist(), strict=True), strict=True))
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            print(f"{file} is damaged ({error}) and not used: its texts are encoded again")
            continue
        known |= {key: TextFeature(*row) for key, row in found.items() if key in wanted}
    return known


def _write(place: Path, rows: dict[str, TextFeature]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex
    beside = place / f".{name}.part"
    try:
        with beside.open("wb") as stream:
            np.savez(
                stream,
                keys=np.array(list(rows)),
                lengths=np.array([len(row.feature) for row in rows.values()]),
                lost=np.array([row.lost for row in rows.values()]),
                features=np.concatenate([row.feature for row in rows.values()]),
            )
        beside.rename(place / f"{name}.npz")
    finally:
        beside.unlink(missing_ok=True)
