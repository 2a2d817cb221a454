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
    UnreadableFile,
)
from rtsam_jax.models.text_encoder import TextEncoder
from rtsam_jax.text.features import text_features
from rtsam_jax.text.language_model import (
    LanguageModel,
    describe,
    load_language_model,
    load_tokenizer,
)
from rtsam_jax.weights import save_weights
from tests.text.tiny_language_model import VOCABULARY, WIDTH, write_language_model

pytest.importorskip("transformers", reason="needs the tokenizers of the extra `text`")

SPEC = {
    "vocab_size": len(VOCABULARY),
    "width": WIDTH,
    "depth": 2,
    "heads": 3,
    "hidden": 2 * WIDTH,
    "max_positions": 512,
}
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
    assert found.spec.width == WIDTH and found.digest == describe(folder).digest
    for file in (copy / "params").rglob("*"):
        if file.is_file():
            file.unlink()
    assert describe(copy) == found


@pytest.mark.parametrize(("name", "source"), [("minilm", "minilm"), ("clinical_bert", "SOURCE")])
def test_a_missing_folder_says_how_to_make_it(tmp_path: Path, name: str, source: str) -> None:
    """Nobody is told to put MiniLM into a folder of another model's name."""
    with pytest.raises(MissingFile, match=f"converters.clinical_bert {source} .*{name}"):
        describe(tmp_path / name)


def test_other_weights_are_no_language_model(tmp_path: Path) -> None:
    save_weights(tmp_path / "sam", {"a": np.zeros(1)}, {"preset": "test"})
    with pytest.raises(CheckpointError, match="not a language model"):
        describe(tmp_path / "sam")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"digest": ""}, "digest"),
        ({"digest": "../../evil"}, "digest"),
        ({"spec": None}, "spec"),
        ({"spec": {"width": 24}}, "spec"),
        ({"spec": {**SPEC, "width": "24"}}, "width"),
    ],
)
def test_a_damaged_description(copy: Path, changed: dict, named: str) -> None:
    meta = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps({**meta, **changed}))
    with pytest.raises(CheckpointError, match=f"model.json.*{named}"):
        describe(copy)


@pytest.mark.parametrize("part", ["params", "tokenizer"])
def test_a_missing_part_is_said_before_anything_is_read(copy: Path, part: str) -> None:
    shutil.rmtree(copy / part)
    with pytest.raises(MissingFile, match=f"no folder {part}"):
        describe(copy)


def test_missing_tokenizer_file(copy: Path) -> None:
    (copy / "tokenizer" / "vocab.txt").unlink()
    with pytest.raises(MissingFile, match="neither tokenizer.json nor vocab.txt"):
        load_language_model(copy)


def shorten(folder: Path) -> None:
    file = folder / "tokenizer" / "vocab.txt"
    file.write_text("\n".join(VOCABULARY[:20]))


def add(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").write_text('{"version": "1.0", "mod')


def swap(folder: Path) -> None:
    other = write_language_model(folder.with_name("other"), seed=5)
    shutil.rmtree(folder / "params")
    (other / "params").rename(folder / "params")


@pytest.mark.parametrize("change", [shorten, add, swap])
def test_what_is_not_what_was_converted_is_refused(copy: Path, change, tmp_path: Path) -> None:
    """Else its features would stand in the cache under the right model's name for ever."""
    change(copy)
    with pytest.raises(CheckpointError, match="are not those that its model.json is about"):
        text_features(["bone"], copy, "mean", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_half_a_tensor(copy: Path) -> None:
    largest = max((copy / "params").rglob("*"), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with pytest.raises(CheckpointIncomplete, match="damaged or incomplete"):
        load_language_model(copy)


def test_a_tokenizer_of_a_larger_model(tmp_path: Path) -> None:
    words = [*VOCABULARY, "bone", "dose"]
    with pytest.raises(CheckpointError, match=f"token ids up to {len(words) - 1}"):
        load_language_model(write_language_model(tmp_path / "more", vocabulary=words))


def test_a_tokenizer_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "mod')
    with pytest.raises(UnreadableFile, match="cannot be loaded"):
        load_tokenizer(tmp_path, tmp_path)


def test_without_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ExtraMissing, match=r"\[text\]"):
        load_language_model(folder)
