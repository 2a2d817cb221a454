"""A frozen language model from disk, and the features it gives for texts."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from rtsam_jax.errors import (
    CheckpointError,
    ConfigError,
    ExtraMissing,
    MissingFile,
    UnreadableFile,
)
from rtsam_jax.models.text_encoder import TextEncoder, TextSpec, pool
from rtsam_jax.weights import (
    LANGUAGE_MODEL,
    MODEL_FILE,
    PARAMS_FOLDER,
    flatten,
    load_into,
    load_weights,
    read_meta,
)

TOKENIZER = "tokenizer"  # the tokenizer's folder beside the weights
VOCABULARIES = ("tokenizer.json", "vocab.txt")  # either is enough
_AGAIN = "write the folder again with converters.clinical_bert"
_BATCH = 32  # texts per call; fixed, as is the rounding of lengths, so that little is compiled
_ROUND = 16  # tokens


class TextFeature(NamedTuple):
    """What is known of one text.

    Attributes:
        feature: `[l, C]` float32; l is 1 where tokens are pooled, else the text's own length.
        lost: tokens beyond the longest text that the model reads.
    """

    feature: np.ndarray
    lost: int


@dataclass(frozen=True)
class LanguageModel:
    """A tokenizer and an encoder with its weights."""

    tokenizer: Any
    graphdef: nnx.GraphDef[TextEncoder]
    params: nnx.State
    max_tokens: int

    def features(self, texts: Sequence[str], pooling: str) -> list[TextFeature]:
        """Encodes texts, prints how far it is, and truncates what is too long.

        Args:
            pooling: "mean" over a text's tokens, "cls", or "tokens" (all of them).
        """
        ids = self.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        lost = [max(0, len(row) - self.max_tokens) for row in ids]
        # A tokenizer ends a text with a special token, which truncation keeps.
        ids = [row if len(row) <= self.max_tokens else self._cut(row) for row in ids]
        order = np.argsort([len(row) for row in ids], kind="stable")
        found: dict[int, np.ndarray] = {}
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            length = max(len(ids[i]) for i in chosen)
            length = min(-(-length // _ROUND) * _ROUND, self.max_tokens)
            tokens = np.zeros((_BATCH, length), np.int32)
            valid = np.zeros((_BATCH, length), bool)
            valid[:, 0] = True  # rows that fill up the last batch
            for row, i in enumerate(chosen):
                tokens[row, : len(ids[i])] = ids[i]
                valid[row, : len(ids[i])] = True
            out = np.asarray(_encode(self.graphdef, self.params, tokens, valid, pooling))
            for row, i in enumerate(chosen):
                found[int(i)] = out[row, : len(ids[i]) if pooling == "tokens" else 1].copy()
            done = start + len(chosen)
            if len(texts) >= 20 * _BATCH and (start // _BATCH) % 20 == 19:
                print(f"text features {done}/{len(texts)}", flush=True)
        return [TextFeature(found[i], lost[i]) for i in range(len(texts))]

    def _cut(self, row: list[int]) -> list[int]:
        return row[: self.max_tokens - 1] + row[-1:]


@functools.partial(jax.jit, static_argnums=(0, 4))
def _encode(
    graphdef: nnx.GraphDef[TextEncoder],
    params: nnx.State,
    ids: jax.Array,
    valid: jax.Array,
    pooling: str,
) -> jax.Array:
    tokens = nnx.merge(graphdef, params)(ids, valid)
    return pool(tokens, valid, pooling)


@dataclass(frozen=True)
class Description:
    """What a language model's folder says of itself, without reading its weights."""

    digest: str  # SHA-256 of all that decides a feature, see `digest_of`
    spec: TextSpec


def digest_of(
    params: Mapping[str, np.ndarray], spec: TextSpec, tokenizer: Mapping[str, bytes]
) -> str:
    """SHA-256 of all that decides a text's features, whatever file format it came from.

    Args:
        params: by dotted name.
        tokenizer: the tokenizer's files by name.
    """
    total = hashlib.sha256(json.dumps(asdict(spec), sort_keys=True).encode())
    for name in sorted(params):
        array = np.ascontiguousarray(params[name], np.dtype("<f4"))
        total.update(f"\n{name} {array.shape}\n".encode())
        total.update(array.data)
    for name in sorted(tokenizer):
        total.update(f"\n{name} {len(tokenizer[name])}\n".encode())
        total.update(tokenizer[name])
    return total.hexdigest()


def describe(folder: Path) -> Description:
    """Reads `model.json` of a folder that `converters.clinical_bert` wrote.

    Raises:
        MissingFile: no such folder, or a part of it is missing.
        CheckpointIncomplete, UnreadableFile, CheckpointError: it is damaged or something else.
    """
    if not folder.is_dir():
        source = "minilm" if folder.name == "minilm" else "SOURCE"
        raise MissingFile(
            f"The language model {folder} does not exist; make it with `python -m "
            f"converters.clinical_bert {source} {folder}` (docs/text.md), or set "
            f"config.prompt.task to 'embedding'."
        )
    meta = read_meta(folder, kind=LANGUAGE_MODEL)
    for part in (PARAMS_FOLDER, TOKENIZER):
        if not (folder / part).is_dir():
            raise MissingFile(f"{folder} has no folder {part}; {_AGAIN}.")
    digest = meta.get("digest")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise CheckpointError(f"{folder}/{MODEL_FILE} has no digest of the weights; {_AGAIN}.")
    try:
        return Description(digest, TextSpec.from_dict(meta.get("spec")))
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{folder}/{MODEL_FILE} makes no sense: {error}") from error


def load_language_model(folder: Path) -> LanguageModel:
    """Reads weights and tokenizer, and checks that they are those that `model.json` is about.

    Raises:
        MissingFile, CheckpointIncomplete, UnreadableFile, CheckpointError: of the folder.
        ExtraMissing: transformers, which holds the tokenizer's code, is not installed.
    """
    about = describe(folder)
    params, _ = load_weights(folder, None, kind=LANGUAGE_MODEL)
    place = folder / TOKENIZER
    files = {file.name: file.read_bytes() for file in place.iterdir() if file.is_file()}
    if not files.keys() & set(VOCABULARIES):
        raise MissingFile(f"{place} has neither {' nor '.join(VOCABULARIES)}; {_AGAIN}.")
    if digest_of(flatten(params), about.spec, files) != about.digest:
        raise CheckpointError(
            f"weights or tokenizer in {folder} are not those that its {MODEL_FILE} is about: a "
            f"file was changed, lost or added; {_AGAIN}."
        )
    model = nnx.eval_shape(lambda: TextEncoder(about.spec, rngs=nnx.Rngs(0)))
    load_into(model, params)
    tokenizer = load_tokenizer(place, place)
    largest = max(tokenizer.get_vocab().values())
    if largest >= about.spec.vocab_size:
        raise CheckpointError(
            f"{place} has token ids up to {largest}, but the model has embeddings for "
            f"{about.spec.vocab_size}; {_AGAIN}."
        )
    return LanguageModel(tokenizer, *nnx.split(model), about.spec.max_positions)


def load_tokenizer(folder: Path, where: Path) -> Any:
    """The tokenizer of a folder that holds its files, by `transformers`, without network.

    Args:
        folder: that holds the files.
        where: the folder to name in messages.

    Raises:
        ExtraMissing: `transformers` is not installed.
        UnreadableFile: a file of it is truncated or corrupt.
    """
    # Else it says, where PyTorch is missing, that models will not be available: none is wanted.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        import transformers
    except ImportError as error:
        raise ExtraMissing(
            f"Texts cannot be tokenized ({error}); install transformers with "
            f"pip install -e '.[text]', or set config.prompt.task to 'embedding'."
        ) from error
    try:
        return transformers.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # of many kinds, also of the Rust library below
        reason = " ".join(str(error).split()).rstrip(".")[:160]
        raise UnreadableFile(
            f"The tokenizer in {where} cannot be loaded ({reason}); bring its files back from "
            f"their source."
        ) from error
