"""PyTorch files in and out, as NumPy arrays; a file's pickle never gets to run code (trap 10)."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rtsam_jax.errors import CheckpointError, ExtraMissing, MissingFile, UnreadableFile

STATE_KEYS = ("model_state_dict", "state_dict")
DATA_PARALLEL = "module."  # DistributedDataParallel's prefix
_TRAINING_STATE = "state of the run that trained the source, not weights"


def load_torch() -> Any:
    """The package `torch`; `ExtraMissing` where it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise ExtraMissing(
            f"PyTorch files cannot be read or written ({error}); install torch with "
            f"pip install -e '.[convert]'."
        ) from error
    return torch


def read_state_dict(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """The float32 arrays of a training checkpoint or a bare state dict.

    Returns:
        PyTorch key -> array; skipped entries of the checkpoint -> reason; remarks for a report.

    Raises:
        MissingFile: no such file.
        UnreadableFile: truncated, corrupt, or not a PyTorch file.
        CheckpointError: it asks for other classes than tensors, or holds no state dict.
        ExtraMissing: torch is not installed.
    """
    content = load_file(file)
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not a state dict.")
    skipped: dict[str, str] = {}
    state = content
    for key in STATE_KEYS:
        if isinstance(content.get(key), dict):
            state = content[key]
            skipped = {str(name): _TRAINING_STATE for name in content if name != key}
            break
    arrays, notes = _arrays(file, state)
    return arrays, skipped, notes


def write_state_dict(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes `{"model_state_dict": ...}`, the form in which the original loads weights.

    Raises:
        ExtraMissing: torch is not installed.
    """
    torch = load_torch()
    tensors = {key: torch.from_numpy(np.array(array)) for key, array in arrays.items()}
    torch.save({"model_state_dict": tensors}, file)


def _arrays(file: Path, state: dict[Any, Any]) -> tuple[dict[str, np.ndarray], list[str]]:
    torch = load_torch()
    arrays: dict[str, np.ndarray] = {}
    prefixed, cast = 0, 0
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise CheckpointError(
                f"{name} in {file} is {kind}, but a state dict of SAM-Med3D holds floating-point "
                f"tensors, bare or under one of {', '.join(STATE_KEYS)}."
            )
        if tensor.layout != torch.strided or tensor.is_meta:
            kind = "without values" if tensor.is_meta else f"stored as {tensor.layout}"
            raise CheckpointError(f"{name} in {file} is {kind}; save it as a dense tensor.")
        key = str(name).removeprefix(DATA_PARALLEL)
        if key in arrays:
            raise CheckpointError(f"{key} occurs with and without {DATA_PARALLEL!r} in {file}.")
        prefixed += key != name
        cast += tensor.dtype != torch.float32
        arrays[key] = tensor.detach().to(torch.float32).contiguous().numpy()
    notes = []
    if prefixed:
        notes.append(f"stripped the prefix {DATA_PARALLEL!r} from {prefixed} keys")
    if cast:
        notes.append(f"cast {cast} tensors to float32")
    return arrays, notes


def load_file(file: Path) -> Any:
    """The content of a PyTorch file, read with `weights_only=True`.

    Raises:
        MissingFile, UnreadableFile, CheckpointError, ExtraMissing: see `read_state_dict`.
    """
    if not file.is_file():
        raise MissingFile(f"The PyTorch checkpoint {file} does not exist.")
    torch = load_torch()
    try:
        # Published files keep their command line in an argparse.Namespace: the one class let in.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted:
            raise CheckpointError(
                f"{file} asks for {wanted[1]}, which is not allowed because loading it could run "
                "code; save its model_state_dict alone and convert that."
            ) from error
        raise UnreadableFile(f"{file} is not a PyTorch file or is corrupt.") from error
    except Exception as error:  # re-raised: noise makes the unpickler fail in many ways
        raise UnreadableFile(f"{file} is truncated, corrupt or not a PyTorch file.") from error
