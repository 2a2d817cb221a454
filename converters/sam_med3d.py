"""SAM-Med3D weights from PyTorch to this project, and back.

    python -m converters.sam_med3d INPUT.pth OUTPUT_DIR [--preset vit_b_ori] [--force]
    python -m converters.sam_med3d --to-torch CHECKPOINT_DIR OUTPUT.pth [--force]

Reads a published training checkpoint (`model_state_dict` beside the optimiser's state) or a bare
state dict, without running any code it may contain. Every key is used, skipped for a stated
reason, or an error. Needs PyTorch: `pip install 'rtsam-jax[convert]'`.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import uuid
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from converters.report import Report, sha256_of, tool_version
from converters.sam_med3d_table import (
    OWN_REASON,
    SKIPPED_KEYS,
    TABLE,
    Rule,
    own_reason,
    rule_of,
    torch_shape,
)
from converters.torch_files import load_torch, read_state_dict, write_state_dict
from rtsam_jax.errors import (
    CheckpointError,
    MissingFile,
    OutputExists,
    PresetMismatch,
    RTSamError,
    run_command,
)
from rtsam_jax.models.presets import PRESETS, get_spec
from rtsam_jax.models.sam3d import SAM3D
from rtsam_jax.weights import (
    OWN_PARAMETERS,
    flatten,
    load_weights,
    model_variables,
    save_weights,
)

TOOL = "converters.sam_med3d"


@functools.cache
def expected_shapes(preset: str) -> dict[str, tuple[int, ...]]:
    """Dotted name -> shape of everything a published checkpoint of this preset has to fill."""
    spec = get_spec(preset)
    model = nnx.eval_shape(lambda: SAM3D(spec, rngs=nnx.Rngs(0)))
    return {
        name: tuple(variable.shape)
        for name, variable in sorted(model_variables(model).items())
        if name not in OWN_PARAMETERS
    }


def find_rule(path: str, shape: tuple[int, ...]) -> tuple[Rule, list[str]]:
    """The rule of a parameter here, and the PyTorch keys it is made of."""
    return rule_of(TABLE, path, shape)


def to_flax(state: Mapping[str, np.ndarray], preset: str) -> tuple[dict[str, np.ndarray], Report]:
    """Turns a PyTorch state dict into this project's parameters.

    Args:
        state: PyTorch key -> float32 array.
        preset: whose shapes the result must have.

    Returns:
        Dotted name -> array, and the report.

    Raises:
        PresetMismatch: a shape or a layer differs from the preset's.
        CheckpointError: a key is unknown, missing, or holds NaN or infinity.
    """
    wrong_size, other, consumed = _examine(state, preset)
    if wrong_size or other:
        fitting = [
            name for name in _candidates(state, preset) if not any(_examine(state, name)[:2])
        ]
        problem = "; ".join((wrong_size + other)[:3])
        if more := len(wrong_size + other) - 3:
            problem += f"; and {more} more" if more > 0 else ""
        if fitting:
            raise PresetMismatch(
                f"The checkpoint does not fit preset {preset!r}: {problem}. It fits "
                f"{' and '.join(map(repr, fitting))}: give --preset {fitting[0]}."
            )
        if wrong_size:
            raise PresetMismatch(
                f"The checkpoint fits neither {preset!r} nor any other preset: {problem}."
            )
        raise CheckpointError(f"The checkpoint is not SAM-Med3D of preset {preset!r}: {problem}.")

    report = Report(preset, loaded=sorted(consumed))
    report.skipped = {key: SKIPPED_KEYS[key] for key in state if key in SKIPPED_KEYS}
    report.newly_initialised = {
        name: f"{reason}; drawn by the model that loads this" for name, reason in OWN_REASON.items()
    }
    params: dict[str, np.ndarray] = {}
    for path, shape in expected_shapes(preset).items():
        rule, keys = find_rule(path, shape)
        arrays = [rule.transform.to_flax(state[key]) for key in keys]
        array = np.stack(arrays) if rule.stacked else arrays[0]
        if not np.isfinite(array).all():
            raise CheckpointError(f"{keys[0]} holds NaN or infinite values; the file is damaged.")
        params[path] = np.ascontiguousarray(array)
    return params, report


def _candidates(state: Mapping[str, np.ndarray], preset: str) -> list[str]:
    """Other presets of the same token grid and width: few are left to examine in full."""
    position = state.get("image_encoder.pos_embed", np.zeros(0)).shape
    return [
        name
        for name, spec in PRESETS.items()
        if name != preset and position == (1, spec.grid, spec.grid, spec.grid, spec.width)
    ]


def _examine(
    state: Mapping[str, np.ndarray], preset: str
) -> tuple[list[str], list[str], dict[str, str]]:
    """Complaints about sizes, other complaints, and PyTorch key -> parameter."""
    wrong_size, other, consumed = [], [], {}
    for path, shape in expected_shapes(preset).items():
        rule, keys = find_rule(path, shape)
        wanted = torch_shape(rule, shape)
        for key in keys:
            consumed[key] = path
            if key not in state:
                other.append(f"{key} is missing")
            elif state[key].shape != wanted:
                wrong_size.append(f"{key} has shape {state[key].shape}, {preset} needs {wanted}")
    for key in state:
        if key in consumed or key in SKIPPED_KEYS:
            continue
        if any(rule.matches_key(key) for rule in TABLE):
            wrong_size.append(f"{key} has no place in {preset}")
        else:
            other.append(f"{key} is not a key of SAM-Med3D")
    return wrong_size, other, consumed


def to_torch(params: Mapping[str, np.ndarray], preset: str) -> tuple[dict[str, np.ndarray], Report]:
    """The way back; the result loads into the original with `strict=True`.

    Raises:
        CheckpointError: a parameter is missing, unknown or of another shape.
    """
    state: dict[str, np.ndarray] = {}
    expected = expected_shapes(preset)
    for path, shape in expected.items():
        if path not in params:
            raise CheckpointError(f"The checkpoint lacks {path}, which {preset!r} needs.")
        if params[path].shape != shape:
            raise CheckpointError(
                f"{path} has shape {params[path].shape}, but {preset!r} needs {shape}."
            )
        rule, keys = find_rule(path, shape)
        rows = list(params[path]) if rule.stacked else [params[path]]
        for key, row in zip(keys, rows, strict=True):
            state[key] = np.ascontiguousarray(rule.transform.to_torch(row))
    report = Report(preset, loaded=sorted(state))
    for path in sorted(set(params) - set(expected)):
        reason = own_reason(path)
        if reason is None:
            raise CheckpointError(f"The checkpoint holds {path}, which {preset!r} does not have.")
        report.skipped[path] = reason
    return state, report


def convert_file(source: Path, folder: Path, preset: str, *, force: bool = False) -> Report:
    """`INPUT.pth` -> a weights folder with `model.json` and `report.json`.

    Raises:
        MissingFile: no such file.
        OutputExists: the folder is there and does not hold these very weights.
        RTSamError: see `read_state_dict`, `to_flax` and `save_weights`.
    """
    get_spec(preset)
    if not source.is_file():
        raise MissingFile(f"The PyTorch checkpoint {source} does not exist.")
    digest = sha256_of(source)
    if folder.exists() and not force:
        if _same_source(folder, digest, preset):
            report = Report(preset, notes=[f"{folder} already holds this file; nothing written"])
            return report
        raise OutputExists(f"{folder} exists already; give another folder, or --force.")
    state, skipped, notes = read_state_dict(source)
    params, report = to_flax(state, preset)
    report.skipped |= skipped
    report.notes += notes
    provenance = {
        "source": source.name,
        "sha256": digest,
        "preset": preset,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "tool": TOOL,
        "tool_version": tool_version(),
        "parameters": parameter_count(params),
    }
    meta = {"preset": preset, "provenance": provenance}
    save_weights(folder, params, meta, documents={"report.json": report.to_json()}, overwrite=force)
    return report


def export_file(folder: Path, target: Path, *, force: bool = False) -> Report:
    """A weights folder -> `OUTPUT.pth`, which the original loads strictly.

    Raises:
        OutputExists: the file is there, or a folder of that name.
        RTSamError: see `load_weights`, `to_torch` and `write_state_dict`.
    """
    if target.is_dir():
        raise OutputExists(f"{target} is a folder; give the name of a .pth file.")
    if target.exists() and not force:
        raise OutputExists(f"{target} exists already; give another file, or --force.")
    nested, meta = load_weights(folder, None)
    get_spec(meta["preset"])
    state, report = to_torch(flatten(nested), meta["preset"])
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        write_state_dict(partial, state)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return report


def parameter_count(params: Mapping[str, np.ndarray]) -> int:
    """Numbers in the trainable parameters; the position's Gaussian matrix is a buffer."""
    return sum(a.size for name, a in params.items() if name != "prompt_encoder.position.gaussian")


def _same_source(folder: Path, digest: str, preset: str) -> bool:
    try:  # all of it: what is damaged must not be said to be there
        provenance = load_weights(folder, preset)[1].get("provenance", {})
    except RTSamError:
        return False
    wanted = {"sha256": digest, "preset": preset, "tool": TOOL, "tool_version": tool_version()}
    return {key: provenance.get(key) for key in wanted} == wanted


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m converters.sam_med3d",
        description="Converts SAM-Med3D weights from PyTorch, or back with --to-torch.",
    )
    parser.add_argument("input", type=Path, help=".pth file; with --to-torch a weights folder")
    parser.add_argument("output", type=Path, help="weights folder; with --to-torch a .pth file")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="vit_b_ori")
    parser.add_argument("--to-torch", action="store_true", help="write a PyTorch file")
    parser.add_argument("--force", action="store_true", help="replace what is at output")
    options = parser.parse_args(arguments)
    load_torch()  # may be missing: said before anything is read
    jax.config.update("jax_platforms", "cpu")  # arrays are only moved; leave accelerators alone
    if options.to_torch:
        report = export_file(options.input, options.output, force=options.force)
    else:
        report = convert_file(options.input, options.output, options.preset, force=options.force)
    print(report.text())
    print(json.dumps(report.to_json()["counts"]), "->", options.output)


if __name__ == "__main__":
    run_command(main)
