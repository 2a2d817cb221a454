"""A language model of a few thousand random parameters that reads any text, letter by letter."""

from __future__ import annotations

import dataclasses
import json
import string
from pathlib import Path

import numpy as np
from flax import nnx

from rtsam_jax.models.text_encoder import TextEncoder, TextSpec
from rtsam_jax.text.language_model import TOKENIZER, digest_of
from rtsam_jax.weights import LANGUAGE_MODEL, model_variables, save_weights

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_SIGNS = list(string.ascii_lowercase + string.digits + ".,-:()")
VOCABULARY = _SPECIAL + _SIGNS + [f"##{sign}" for sign in _SIGNS]
WIDTH = 24


def write_language_model(
    folder: Path, *, seed: int = 0, max_tokens: int = 512, vocabulary: list[str] = VOCABULARY
) -> Path:
    """Writes a folder as converters.clinical_bert does; another seed, other weights and digest."""
    spec = TextSpec(len(VOCABULARY), WIDTH, 2, 3, 2 * WIDTH, max_tokens)
    model = nnx.eval_shape(lambda: TextEncoder(spec, rngs=nnx.Rngs(0)))
    draw = np.random.default_rng(seed)
    params = {
        name: draw.standard_normal(variable.shape).astype(np.float32) * 0.3
        for name, variable in sorted(model_variables(model).items())
    }
    files = {
        f"{TOKENIZER}/vocab.txt": "\n".join(vocabulary).encode(),
        f"{TOKENIZER}/tokenizer_config.json": json.dumps(
            {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
        ).encode(),
    }
    digest = digest_of(params, spec, {Path(name).name: data for name, data in files.items()})
    meta = {"preset": "tiny", "spec": dataclasses.asdict(spec), "digest": digest}
    save_weights(folder, params, meta, kind=LANGUAGE_MODEL, files=files)
    return folder
