"""A tiny BERT in a folder of Hugging Face's form, and ways to change it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters import clinical_bert
from rtsam_jax.models.text_encoder import TextSpec
from rtsam_jax.weights import LANGUAGE_MODEL, read_meta

SPEC = TextSpec(vocab_size=200, width=8, depth=2, heads=2, hidden=12, max_positions=16)
CONFIG = {
    "model_type": "bert",
    "vocab_size": 200,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
}
WORDS = [f"w{i}" for i in range(193)]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "brain", "Brain", *WORDS]
QUERY = "encoder.layer.1.attention.self.query.weight"

Arrays = dict[str, np.ndarray]


def random_params() -> Arrays:
    draw = np.random.default_rng(0)
    shapes = clinical_bert.expected_shapes(SPEC)
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def state_of(params: Arrays) -> Arrays:
    """As `transformers` saves a BertModel: with its pooler, without a prefix."""
    arrays = {}
    for path, array in params.items():
        rule, key = clinical_bert.find_rule(path, array.shape)
        arrays[key] = np.ascontiguousarray(rule.transform.to_torch(array))
    arrays["embeddings.position_ids"] = np.arange(16)[None]
    arrays["pooler.dense.weight"] = np.ones((8, 8), np.float32)
    arrays["pooler.dense.bias"] = np.ones(8, np.float32)
    return arrays


def write_source(folder: Path, state: Arrays) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    save_file(state, folder / "model.safetensors")
    return folder


def rewrite(folder: Path, change: Callable[[Arrays], None]) -> None:
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors")


def configure(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text()) | changes
    content = {key: value for key, value in content.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(content))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def convert(source: Path | str, out: Path, **options: Any) -> dict[str, Any]:
    clinical_bert.convert_source(str(source), out, **options)
    return read_meta(out, kind=LANGUAGE_MODEL)


def as_bin(folder: Path, arrays: dict[str, Any], **options: Any) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra `convert`")
    (folder / "model.safetensors").unlink()
    tensors = {key: torch.tensor(array) for key, array in arrays.items()}
    torch.save(tensors, folder / "pytorch_model.bin", **options)
