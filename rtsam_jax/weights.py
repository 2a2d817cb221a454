"""Plain weights on disk: Orbax arrays, and beside them `model.json` that says what they are.

    FOLDER/params/       the arrays, nested as in the model (Orbax)
    FOLDER/model.json    schema, kind, preset, provenance; written last
    FOLDER/tokenizer/    of a language model: the tokenizer's own files

A folder is written under another name and renamed when complete, so one with the final name is
whole. What the converters write is read here without PyTorch.

In memory weights are a nested pure dict, as `nnx.to_pure_dict(nnx.state(model))` gives (list
indices are integers), of float32 NumPy arrays; `flatten` gives them dotted names.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import logging
import shutil
import sys
import textwrap
import time
import uuid
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from orbax.checkpoint import v1 as ocp

from rtsam_jax.errors import (
    CheckpointError,
    CheckpointIncomplete,
    MissingFile,
    OutputExists,
    PresetMismatch,
    UnreadableFile,
)

SCHEMA_VERSION = 1
MODEL_FILE = "model.json"
PARAMS_FOLDER = "params"

# Kind in `model.json` -> what that is, and who writes it.
WEIGHTS, LANGUAGE_MODEL = "weights", "language_model"
KINDS = {
    WEIGHTS: ("plain weights", "converters.sam_med3d"),
    LANGUAGE_MODEL: ("a language model", "converters.clinical_bert"),
}

# What no published SAM-Med3D checkpoint can hold (reference trap 6; text and task are ours).
_ADAPTER = ("centre", "whitening", "norm.bias", "norm.scale") + tuple(
    f"lin{i}.{part}" for i in (1, 2) for part in ("bias", "kernel")
)
OWN_PARAMETERS = frozenset(
    {"prompt_encoder.corner_embed", "prompt_encoder.task_embed"}
    | {f"prompt_encoder.text_adapter.{name}" for name in _ADAPTER}
)


def flatten(params: Mapping[Any, Any]) -> dict[str, Any]:
    """Nested dict -> dotted names, for example `image_encoder.blocks.0.attn.qkv.kernel`."""
    flat: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": leaf for name, leaf in flatten(value).items()}
        else:
            flat[str(key)] = value
    return flat


def nest(flat: Mapping[str, Any], *, indices: bool = True) -> dict[Any, Any]:
    """Dotted names -> nested dict.

    Args:
        indices: a part made of digits is a list index and becomes an integer, as Flax has it;
            otherwise it stays a text, as files have it.
    """
    nested: dict[Any, Any] = {}
    for name, leaf in flat.items():
        *parents, last = [int(x) if indices and x.isdigit() else x for x in name.split(".")]
        place = nested
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = leaf
    return nested


def weights_digest(flat: Mapping[str, Any]) -> str:
    """SHA-256 over parameters' dotted names, shapes and little-endian bytes, hex.

    Args:
        flat: arrays that this process holds whole.
    """
    total = hashlib.sha256()
    for name, leaf in sorted(flat.items()):
        array = np.ascontiguousarray(jax.device_get(leaf))
        total.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        total.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
    return total.hexdigest()


def model_variables(model: nnx.Module) -> dict[str, nnx.Variable[Any]]:
    """Dotted name -> variable, parameters and buffers alike."""
    return {
        ".".join(map(str, path)): variable
        for path, variable in nnx.to_flat_state(nnx.state(model))
        if not isinstance(variable, nnx.RngState)
    }


class ReadFailed(Exception):
    """What Orbax or TensorStore said of a failed read, in short."""


def read_quietly(read: Callable[[], Any]) -> Any:
    """Calls Orbax to read something, and keeps a failure to one exception.

    When one array cannot be read, Orbax abandons the other reads and closes their event loop: each
    would be printed, by asyncio, absl and Python as it is collected, and by TensorStore's threads
    as it ends. After a failure they are waited for here, unheard; then all is as it was.

    Raises:
        ReadFailed: `read` raised anything; without its frames, since those keep the reads alive.
    """
    loggers = [logging.getLogger(name) for name in ("asyncio", "absl")]
    levels, hook = [logger.level for logger in loggers], sys.unraisablehook
    sys.unraisablehook = lambda raised: (
        None if str(raised.exc_value) == "Event loop is closed" else hook(raised)
    )
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            try:
                return read()
            except Exception as error:  # of many kinds; raised below as ReadFailed
                reason = _reason(error)
            for _ in range(50):  # at most some seconds
                gc.collect()
                if not any(issubclass(type(thing), asyncio.Task) for thing in gc.get_objects()):
                    break
                time.sleep(0.1)
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    raise ReadFailed(reason)


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:  # the outer ones only list Orbax's handlers
        error = error.__cause__
    return textwrap.shorten(str(error), 160, placeholder=" ...").rstrip(".") or type(error).__name__


def save_weights(
    folder: Path,
    params: Mapping[Any, Any],
    meta: Mapping[str, Any],
    *,
    kind: str = WEIGHTS,
    documents: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes weights and what is known of them; the folder appears whole or not at all.

    Args:
        folder: must not exist, unless `overwrite` and it holds nothing else than is written here.
        params: nested as the model's state, or flat with dotted names.
        meta: at least `preset`; goes to `model.json` with the schema version.
        kind: one of `KINDS`, which a reader asks for.
        documents: more JSON files to put beside it, by file name.
        files: other files, by name below the folder: `tokenizer/vocab.txt`.
        overwrite: replace a checkpoint of the same name.

    Raises:
        OutputExists: the folder is there, or holds something else.
    """
    folder = Path(folder).absolute()
    documents, files = documents or {}, files or {}
    own = {MODEL_FILE, PARAMS_FOLDER, *documents, *(Path(name).parts[0] for name in files)}
    _check_free(folder, overwrite, own)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{uuid.uuid4().hex[:8]}")
    partial.mkdir()
    try:
        arrays = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
        # Orbax has string keys only; `nest` makes integers of them again.
        ocp.save(partial / PARAMS_FOLDER, nest(arrays, indices=False))
        for name, content in documents.items():
            (partial / name).write_text(json.dumps(content, indent=2) + "\n")
        for name, data in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(data)
        content = {"schema": SCHEMA_VERSION, "kind": kind, **meta}
        (partial / MODEL_FILE).write_text(json.dumps(content, indent=2) + "\n")
        if folder.exists():
            old = folder.with_name(f".{folder.name}.replaced-{uuid.uuid4().hex[:8]}")
            folder.rename(old)
            partial.rename(folder)
            shutil.rmtree(old)
        else:
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_free(folder: Path, overwrite: bool, own: set[str]) -> None:
    if not folder.exists():
        return
    if not overwrite:
        raise OutputExists(f"{folder} exists already; choose another folder or overwrite it.")
    # Overwriting deletes: never anything but a checkpoint, so not a run's folder either.
    strange = {p.name for p in folder.iterdir()} - own if folder.is_dir() else {"a file"}
    if strange:
        raise OutputExists(
            f"{folder} exists and is not a checkpoint ({min(strange)}), so it is not overwritten; "
            "choose another folder."
        )


def read_meta(folder: Path, *, kind: str = WEIGHTS) -> dict[str, Any]:
    """The content of `model.json`.

    Args:
        folder: of the checkpoint.
        kind: that it must be of, one of `KINDS`.

    Raises:
        MissingFile: no such folder.
        CheckpointIncomplete: the folder has no `model.json`, which is written last.
        UnreadableFile: `model.json` is not JSON of this schema.
        CheckpointError: it describes something else, such as a run.
    """
    folder = Path(folder)
    wanted, converter = KINDS[kind]
    if not folder.is_dir():
        raise MissingFile(f"The checkpoint folder {folder} does not exist.")
    file = folder / MODEL_FILE
    if not file.is_file():
        raise CheckpointIncomplete(
            f"{folder} has no {MODEL_FILE}, which is written last: this is not a complete "
            f"checkpoint; write it again with {converter}."
        )
    try:
        meta = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise UnreadableFile(
            f"{file} is not readable JSON ({error}); write the folder again."
        ) from error
    if not isinstance(meta, dict) or (
        meta.get("kind") != "run"  # which has schemas of its own, and is told below
        and (meta.get("schema") != SCHEMA_VERSION or "preset" not in meta)
    ):
        raise UnreadableFile(
            f"{file} is not a model description of schema {SCHEMA_VERSION} with a preset; "
            "write the checkpoint again with this version."
        )
    if (found := meta.get("kind", "run")) != kind:
        held = KINDS[found][0] if found in KINDS else f"a {found}"
        raise CheckpointError(
            f"{folder} holds {held}, not {wanted}; give a folder that {converter} has written."
        )
    return meta


def load_weights(
    folder: Path, preset: str | None, *, kind: str = WEIGHTS
) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Reads what `save_weights` wrote.

    Args:
        folder: of the checkpoint.
        preset: that the weights must be of; None accepts any.
        kind: that they must be of, one of `KINDS`.

    Returns:
        Nested float32 arrays and the content of `model.json`.

    Raises:
        MissingFile, UnreadableFile, CheckpointError: see `read_meta`.
        CheckpointIncomplete: arrays are missing or damaged.
        PresetMismatch: the weights are of another preset.
    """
    folder = Path(folder).absolute()
    meta = read_meta(folder, kind=kind)
    if preset is not None and meta["preset"] != preset:
        raise PresetMismatch(
            f"{folder} holds weights of preset {meta['preset']!r}, but {preset!r} is asked for; "
            f"set config.model.preset to {meta['preset']!r} or give another checkpoint."
        )
    params = folder / PARAMS_FOLDER
    try:
        with by_itself():
            arrays = flatten(read_quietly(lambda: ocp.load(params)))
    except ReadFailed as error:
        raise CheckpointIncomplete(
            f"the arrays in {params} are damaged or incomplete; write {folder} again."
        ) from error
    return nest({name: np.asarray(leaf) for name, leaf in arrays.items()}), meta


def by_itself() -> ocp.Context:
    """Orbax without the run's other processes: each reads weights when it needs them."""
    context, index = ocp.Context(), jax.process_index()
    context.multiprocessing.primary_host = index
    context.multiprocessing.active_processes = {index}
    context.multiprocessing.barrier_sync_key_prefix = f"process_{index}"
    return context


def load_into(
    model: nnx.Module, params: Mapping[Any, Any], *, allow_new: Collection[str] = frozenset()
) -> set[str]:
    """Puts weights into a model in place; every name and shape must fit.

    Args:
        model: its variables' shapes decide; values may be abstract (`nnx.eval_shape`).
        params: nested, or flat with dotted names.
        allow_new: dotted names that may be missing from `params` and then keep their value, for
            example `OWN_PARAMETERS`.

    Returns:
        The names that were not in `params`.

    Raises:
        CheckpointError: a name is missing or superfluous, or a shape differs.
    """
    flat, variables = flatten(params), model_variables(model)
    new = check_fit(model, flat, allow_new=allow_new)
    for name, leaf in flat.items():
        variables[name].set_value(jnp.asarray(leaf, variables[name].dtype))
    return new


def check_fit(
    model: nnx.Module, flat: Mapping[str, Any], *, allow_new: Collection[str] = frozenset()
) -> set[str]:
    """Checks names and shapes of flat weights against a model, which may be abstract.

    Returns and raises as `load_into` does, which checks this way first.
    """
    variables = model_variables(model)
    new = set(variables) - set(flat)
    if missing := sorted(new - set(allow_new)):
        raise CheckpointError(f"The checkpoint lacks {_some(missing)}, which this model needs.")
    if unknown := sorted(set(flat) - set(variables)):
        raise CheckpointError(f"The checkpoint holds {_some(unknown)}, which this model lacks.")
    for name, leaf in flat.items():
        wanted = tuple(variables[name].shape)
        if tuple(leaf.shape) != wanted:
            raise CheckpointError(
                f"{name} has shape {tuple(leaf.shape)} in the checkpoint, but the model "
                f"needs {wanted}."
            )
    return new


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
