"""Which key of a BERT checkpoint is which parameter of `models.text_encoder`.

Placeholders as in `converters.sam_med3d_table`. Keys are matched after `own_key`, which undoes what
depends on the class and the year a checkpoint was saved with.
"""

from __future__ import annotations

import re

from converters.sam_med3d_table import IDENTITY, LINEAR, Rule, layer

PREFIX = "bert."  # of BertForMaskedLM, BertForPreTraining and the other classes with a head
_OLD_NORM = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def own_key(key: str) -> str:
    """A key of any BERT checkpoint -> the key that the table knows."""
    key = key.removeprefix(PREFIX)
    for old, new in _OLD_NORM.items():  # names of before 2019, still in Bio_ClinicalBERT's file
        if key.endswith(old):
            return key.removesuffix(old) + new
    return key


WORDS = "embeddings.word_embeddings.weight"
_TORCH, _OURS = "encoder.layer.<n>", "layers.<n>"

TABLE: tuple[Rule, ...] = (
    Rule(WORDS, "embeddings.word_embed", IDENTITY),
    Rule("embeddings.position_embeddings.weight", "embeddings.position_embed", IDENTITY),
    Rule("embeddings.token_type_embeddings.weight", "embeddings.type_embed", IDENTITY),
    *layer("embeddings.LayerNorm", "embeddings.norm", IDENTITY),
    *layer(f"{_TORCH}.attention.self.query", f"{_OURS}.attn.q_proj", LINEAR),
    *layer(f"{_TORCH}.attention.self.key", f"{_OURS}.attn.k_proj", LINEAR),
    *layer(f"{_TORCH}.attention.self.value", f"{_OURS}.attn.v_proj", LINEAR),
    *layer(f"{_TORCH}.attention.output.dense", f"{_OURS}.attn.out_proj", LINEAR),
    *layer(f"{_TORCH}.attention.output.LayerNorm", f"{_OURS}.norm1", IDENTITY),
    *layer(f"{_TORCH}.intermediate.dense", f"{_OURS}.mlp.lin1", LINEAR),
    *layer(f"{_TORCH}.output.dense", f"{_OURS}.mlp.lin2", LINEAR),
    *layer(f"{_TORCH}.output.LayerNorm", f"{_OURS}.norm2", IDENTITY),
)

_SKIPPED = (
    (r"embeddings\.position_ids", "a buffer that counts 0, 1, 2 and so on"),
    (r"pooler\..*", "trained for next-sentence prediction; tokens are pooled without it"),
    (r"cls\..*", "head of the pre-training; only hidden states are used"),
    (r"(classifier|qa_outputs)\..*", "head of a fine-tuned task; only hidden states are used"),
)


def skip_reason(key: str) -> str | None:
    """Why a key is not needed, or None where it is."""
    return next((reason for pattern, reason in _SKIPPED if re.fullmatch(pattern, key)), None)
