"""A frozen language model from disk, and the features it gives for texts."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from rtsam_jax.errors import CheckpointError, ExtraMissing, MissingFile
from rtsam_jax.models.text_encoder import TextEncoder, TextSpec, pool
from rtsam_jax.weights import LANGUAGE_MODEL, load_into, load_weights, read_meta

TOKENIZER = "tokenizer"  # the tokenizer's folder beside the weights
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

    folder: Path
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

    digest: str  # SHA-256 of its parameters and its tokenizer
    width: int  # channels of a feature


def describe(folder: Path) -> Description:
    """Reads `model.json` of a folder that `converters.clinical_bert` wrote.

    Raises:
        MissingFile: no such folder; the message says how to make one.
        CheckpointIncomplete, UnreadableFile, CheckpointError: it is damaged or something else.
    """
    if not folder.is_dir():
        raise MissingFile(
            f"The language model {folder} does not exist; make it with `python -m "
            f"converters.clinical_bert minilm {folder}` (or another source, see the README), or "
            f"set config.prompt.task to 'embedding'."
        )
    meta = read_meta(folder, kind=LANGUAGE_MODEL)
    digest = meta.get("digest")
    if not isinstance(digest, str) or not digest:
        raise CheckpointError(
            f"{folder}/model.json has no digest; write the folder again with "
            f"converters.clinical_bert."
        )
    return Description(digest, TextSpec.from_dict(meta["spec"]).width)


def load_language_model(folder: Path) -> LanguageModel:
    """Reads weights and tokenizer.

    Raises:
        MissingFile, CheckpointIncomplete, UnreadableFile, CheckpointError: of the folder.
        ExtraMissing: transformers, which holds the tokenizer's code, is not installed.
    """
    params, meta = load_weights(folder, None, kind=LANGUAGE_MODEL)
    spec = TextSpec.from_dict(meta["spec"])
    model = nnx.eval_shape(lambda: TextEncoder(spec, rngs=nnx.Rngs(0)))
    load_into(model, params)
    tokenizer = _load_tokenizer(folder / TOKENIZER)
    if len(tokenizer) > spec.vocab_size:
        raise CheckpointError(
            f"{folder / TOKENIZER} knows {len(tokenizer)} tokens, but the model has embeddings for "
            f"{spec.vocab_size}; write the folder again with converters.clinical_bert."
        )
    return LanguageModel(folder, tokenizer, *nnx.split(model), spec.max_positions)


def _load_tokenizer(folder: Path) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ExtraMissing(
            f"Texts cannot be tokenized ({error}); install transformers with "
            f"pip install -e '.[text]', or set config.prompt.task to 'embedding'."
        ) from error
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise MissingFile(
            f"{folder} has neither tokenizer.json nor vocab.txt; write {folder.parent} again with "
            f"converters.clinical_bert."
        )
    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # of many kinds, by the file that is damaged
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be read ({reason}); write {folder.parent} again "
            f"with converters.clinical_bert."
        ) from error
