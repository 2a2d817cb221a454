from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rtsam_jax.errors import (
    CheckpointError,
    CheckpointIncomplete,
    ExtraMissing,
    MissingFile,
)
from rtsam_jax.models.text_encoder import TextEncoder
from rtsam_jax.text import language_model
from rtsam_jax.text.language_model import LanguageModel, describe, load_language_model
from rtsam_jax.weights import save_weights
from tests.text.tiny_language_model import VOCABULARY, WIDTH, write_language_model

pytest.importorskip("transformers", reason="needs the tokenizers of the extra `text`")

TEXTS = [f"{'a bone, ' * n}{n} Gy." for n in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("lm") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return load_language_model(folder)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def direct(model: LanguageModel, text: str) -> np.ndarray:
    """The tokens of one text alone, without padding: `[T, C]`."""
    from flax import nnx

    ids = jnp.array([model.tokenizer(text)["input_ids"]])
    module: TextEncoder = nnx.merge(model.graphdef, model.params)
    return np.asarray(module(ids, jnp.ones(ids.shape, bool))[0])


def test_features_are_those_of_each_text_alone(model: LanguageModel) -> None:
    """More texts than a batch holds, of all lengths: neither order nor padding matters."""
    tokens = model.features(TEXTS, "tokens")
    mean, cls = model.features(TEXTS, "mean"), model.features(TEXTS[::-1], "cls")[::-1]
    for i in (0, 1, 7, 33, 39):
        expected = direct(model, TEXTS[i])
        assert tokens[i].feature.shape == expected.shape
        np.testing.assert_allclose(tokens[i].feature, expected, atol=2e-5)
        np.testing.assert_allclose(mean[i].feature, expected.mean(0)[None], atol=2e-5)
        np.testing.assert_allclose(cls[i].feature, expected[:1], atol=2e-5)
        assert mean[i].feature.dtype == np.float32
    assert {row.lost for row in tokens + mean + cls} == {0}


def test_a_long_text_is_cut_and_says_how_much(tmp_path: Path, folder: Path) -> None:
    model = load_language_model(write_language_model(tmp_path / "short", max_tokens=20))
    text = "abcdefgh " * 5  # 40 letters, CLS and SEP
    short, long = model.features(["abc", text], "tokens")
    assert (short.lost, long.lost) == (0, 22)
    assert long.feature.shape == (20, WIDTH)
    whole = model.tokenizer(text)["input_ids"]
    kept = model._cut(whole)
    assert kept == whole[:19] + [VOCABULARY.index("[SEP]")]


def test_describe_reads_no_weights(folder: Path, copy: Path) -> None:
    found = describe(copy)
    assert found.width == WIDTH and found.digest == describe(folder).digest
    shutil.rmtree(copy / "params")
    assert describe(copy) == found
    with pytest.raises(CheckpointIncomplete, match="clinical_bert|damaged"):
        load_language_model(copy)


def test_a_missing_folder_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="converters.clinical_bert minilm .*nowhere"):
        describe(tmp_path / "nowhere")


def test_other_weights_are_no_language_model(tmp_path: Path) -> None:
    save_weights(tmp_path / "sam", {"a": np.zeros(1)}, {"preset": "test"})
    with pytest.raises(CheckpointError, match="not a language model"):
        describe(tmp_path / "sam")


def test_no_digest(copy: Path) -> None:
    meta = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps({**meta, "digest": ""}))
    with pytest.raises(CheckpointError, match="digest"):
        describe(copy)


def test_missing_tokenizer_file(copy: Path) -> None:
    (copy / "tokenizer" / "vocab.txt").unlink()
    with pytest.raises(MissingFile, match="neither tokenizer.json nor vocab.txt"):
        load_language_model(copy)


def test_damaged_tokenizer_file(copy: Path) -> None:
    (copy / "tokenizer" / "tokenizer.json").write_text('{"version": "1.0", "mod')
    with pytest.raises(CheckpointError, match="tokenizer in .* cannot be read"):
        load_language_model(copy)


def test_a_tokenizer_of_a_larger_model(tmp_path: Path) -> None:
    words = [*VOCABULARY, "bone", "dose"]
    with pytest.raises(CheckpointError, match=f"knows {len(words)} tokens"):
        load_language_model(write_language_model(tmp_path / "more", vocabulary=words))


def test_without_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ExtraMissing, match=r"\[text\]"):
        language_model._load_tokenizer(folder / "tokenizer")
