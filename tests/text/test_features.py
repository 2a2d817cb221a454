from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rtsam_jax.text import features
from rtsam_jax.text.features import cache_folder, text_features
from tests.text.tiny_language_model import write_language_model

pytest.importorskip("transformers", reason="needs the tokenizers of the extra `text`")

TEXTS = ["One text.", "Another text, 60 Gy.", "A third."]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("lm") / "tiny")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Which texts the language model was given, call by call."""
    calls: list[list[str]] = []
    load = features.load_language_model

    class Counted:
        def __init__(self, folder: Path) -> None:
            self.model = load(folder)

        def features(self, texts, pooling):
            calls.append(list(texts))
            return self.model.features(texts, pooling)

    monkeypatch.setattr(features, "load_language_model", Counted)
    return calls


def same(a, b) -> bool:
    pairs = zip(a, b, strict=True)
    return all(np.array_equal(x.feature, y.feature) and x.lost == y.lost for x, y in pairs)


def test_each_text_is_encoded_once(model: Path, tmp_path: Path, encoded: list) -> None:
    first = text_features([*TEXTS[:2], TEXTS[0]], model, "mean", tmp_path)
    assert encoded == [TEXTS[:2]]
    assert np.array_equal(first[0].feature, first[2].feature)
    assert not np.array_equal(first[0].feature, first[1].feature)
    again = text_features(TEXTS, model, "mean", tmp_path)
    assert encoded == [TEXTS[:2], TEXTS[2:]] and same(first[:2], again[:2])
    assert same(text_features(TEXTS, model, "mean", tmp_path), again) and len(encoded) == 2


def test_features_depend_on_weights_and_pooling(model: Path, tmp_path: Path, encoded: list) -> None:
    other = write_language_model(tmp_path / "other", seed=1)
    found = [
        text_features(TEXTS[:1], folder, pooling, tmp_path / "cache")[0].feature
        for folder in (model, other)
        for pooling in ("mean", "cls")
    ]
    assert len(encoded) == 4 and len(list((tmp_path / "cache").iterdir())) == 4
    for i in range(4):
        assert not any(np.array_equal(found[i], found[k]) for k in range(i))


def test_tokens_keep_their_lengths(model: Path, tmp_path: Path, encoded: list) -> None:
    first = text_features(TEXTS, model, "tokens", tmp_path)
    assert len({len(row.feature) for row in first}) == 3
    assert same(text_features(TEXTS, model, "tokens", tmp_path), first) and len(encoded) == 1


def test_what_was_lost_is_remembered(tmp_path: Path, encoded: list) -> None:
    model = write_language_model(tmp_path / "short", max_tokens=12)
    for _ in range(2):
        found = text_features(TEXTS, model, "mean", tmp_path / "cache")
        assert [row.lost for row in found] == [0, 7, 0]
    assert len(encoded) == 1


@pytest.mark.parametrize("damage", ["half", "empty", "garbage"])
def test_a_damaged_file_is_said_and_encoded_again(
    model: Path, tmp_path: Path, encoded: list, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = text_features(TEXTS, model, "mean", tmp_path)
    (file,) = tmp_path.rglob("*.npz")
    content = file.read_bytes()
    damaged = {"half": content[: len(content) // 2], "empty": b"", "garbage": b"x" * 99}
    file.write_bytes(damaged[damage])
    assert same(text_features(TEXTS, model, "mean", tmp_path), first) and len(encoded) == 2
    assert f"{file} is damaged" in capsys.readouterr().out
    assert same(text_features(TEXTS, model, "mean", tmp_path), first) and len(encoded) == 2


def test_nothing_readable_of_a_text_is_stored(model: Path, tmp_path: Path) -> None:
    """Records may be of patients."""
    text_features(["Unmistakable words."], model, "mean", tmp_path)
    for path in tmp_path.rglob("*"):
        assert "nmistakable" not in path.name
        assert path.is_dir() or b"nmistakable" not in path.read_bytes()


def test_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder("") == Path("/somewhere/rtsam_jax/text_features")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/me")
    assert cache_folder("") == Path("/me/.cache/rtsam_jax/text_features")
    assert cache_folder("here") == Path("here")


@pytest.mark.parametrize(
    "change",
    [
        {"features": np.zeros((3, 5), np.float32)},  # of another width
        {"features": np.zeros((2, 24), np.float32)},  # a row too few
        {"features": np.full((3, 24), np.nan, np.float32)},
        {"lost": np.zeros(2, int)},
        {"keys": np.array(["a"])},
    ],
)
def test_a_file_that_fits_nothing_is_not_used(
    model: Path, tmp_path: Path, encoded: list, change: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    first = text_features(TEXTS, model, "mean", tmp_path)
    (file,) = tmp_path.rglob("*.npz")
    with np.load(file) as stored:
        content = {**stored, **change}
    np.savez(file, **content)
    assert same(text_features(TEXTS, model, "mean", tmp_path), first) and len(encoded) == 2
    assert f"{file} is damaged" in capsys.readouterr().out
