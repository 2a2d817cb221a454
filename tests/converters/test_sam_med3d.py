"""The conversion on a small preset; against the authors' own model see tests/parity."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `convert`")

from converters import sam_med3d, torch_files  # noqa: E402
from converters.sam_med3d_table import SKIPPED_KEYS, TABLE  # noqa: E402
from rtsam_jax.errors import (  # noqa: E402
    CheckpointError,
    CheckpointIncomplete,
    ConfigError,
    MissingFile,
    OutputExists,
    PresetMismatch,
    UnreadableFile,
    run_command,
)
from rtsam_jax.weights import flatten, load_weights  # noqa: E402
from tests.tiny import REPOSITORY  # noqa: E402


@pytest.fixture(scope="module")
def params() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    shapes = sam_med3d.expected_shapes("test")
    return {name: draw.normal(size=s).astype(np.float32) for name, s in shapes.items()}


@pytest.fixture(scope="module")
def state(params: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    arrays, _ = sam_med3d.to_torch(params, "test")
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


@pytest.fixture
def published(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    """A training checkpoint of the published form."""
    file = tmp_path / "published.pth"
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 8e-4}]}
    torch.save(
        {
            "epoch": 7,
            "model_state_dict": state,
            "optimizer_state_dict": optimizer,
            "losses": [0.9, 0.8],
            "best_dice": 0.5,
            "args": argparse.Namespace(task_name="surrogate", batch_size=2),
        },
        file,
    )
    return file


def arrays_of(file: Path) -> dict[str, np.ndarray]:
    return torch_files.read_state_dict(file)[0]


def test_every_rule_of_the_table_is_used(params: dict[str, np.ndarray]) -> None:
    used = {sam_med3d.find_rule(name, array.shape)[0] for name, array in params.items()}
    assert used == set(TABLE)


def test_no_two_rules_claim_one_parameter(params: dict[str, np.ndarray]) -> None:
    for name, array in params.items():
        assert sum(rule.keys_of(name, array.shape) is not None for rule in TABLE) == 1, name


def test_published_checkpoint_arrives_whole_with_report_and_provenance(
    tmp_path: Path, published: Path, params: dict[str, np.ndarray]
) -> None:
    report = sam_med3d.convert_file(published, tmp_path / "out", "test")
    nested, meta = load_weights(tmp_path / "out", "test")
    loaded = flatten(nested)
    assert loaded.keys() == params.keys()
    for name in params:
        np.testing.assert_array_equal(loaded[name], params[name], strict=True)

    provenance = meta["provenance"]
    assert meta["schema"] == 1 and meta["kind"] == "weights" and meta["preset"] == "test"
    assert provenance["source"] == "published.pth" and len(provenance["sha256"]) == 64
    assert provenance["parameters"] == sam_med3d.parameter_count(params)
    assert provenance["date"].endswith("+00:00")

    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written == report.to_json()
    assert set(report.skipped) == {"epoch", "optimizer_state_dict", "losses", "best_dice", "args"}
    assert all(report.skipped.values())
    assert set(report.newly_initialised) == {
        "prompt_encoder.corner_embed",
        "prompt_encoder.task_embed",
        "prompt_encoder.text_adapter",
    }
    # Two click embeddings are stacked into one array.
    assert written["counts"]["loaded"] == len(params) + 1


def test_there_and_back_is_bit_equal(
    tmp_path: Path, published: Path, state: dict[str, torch.Tensor]
) -> None:
    sam_med3d.main([str(published), str(tmp_path / "out"), "--preset", "test"])
    sam_med3d.main(["--to-torch", str(tmp_path / "out"), str(tmp_path / "back.pth")])
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model_state_dict"]
    assert back.keys() == state.keys()
    for key in state:
        assert back[key].dtype == state[key].dtype and torch.equal(back[key], state[key]), key


def test_bare_and_data_parallel_state_dicts(
    tmp_path: Path, state: dict[str, torch.Tensor], params: dict[str, np.ndarray]
) -> None:
    torch.save({f"module.{key}": tensor for key, tensor in state.items()}, tmp_path / "a.pth")
    report = sam_med3d.convert_file(tmp_path / "a.pth", tmp_path / "a", "test")
    assert f"stripped the prefix 'module.' from {len(state)} keys" in report.text()
    loaded = flatten(load_weights(tmp_path / "a", "test")[0])
    for name in params:
        np.testing.assert_array_equal(loaded[name], params[name])


def test_half_precision_is_cast_and_said(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({key: tensor.half() for key, tensor in state.items()}, tmp_path / "half.pth")
    report = sam_med3d.convert_file(tmp_path / "half.pth", tmp_path / "half", "test")
    assert f"cast {len(state)} tensors to float32" in report.notes


def test_photograph_statistics_are_skipped_with_a_reason(state: dict[str, torch.Tensor]) -> None:
    arrays = {key: tensor.numpy() for key, tensor in state.items()}
    arrays["pixel_mean"] = np.zeros((3, 1, 1), np.float32)
    _, report = sam_med3d.to_flax(arrays, "test")
    assert report.skipped == {"pixel_mean": SKIPPED_KEYS["pixel_mean"]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(surprise=np.zeros(3, np.float32)), "surprise is not a key"),
        (lambda s: s.pop("mask_decoder.iou_token.weight"), "iou_token.weight is missing"),
        (lambda s: s["image_encoder.pos_embed"].fill(np.nan), "NaN"),
    ],
)
def test_strange_keys_and_values_are_errors(state, change, words: str) -> None:
    arrays = {key: tensor.numpy().copy() for key, tensor in state.items()}
    change(arrays)
    with pytest.raises(CheckpointError, match=words):
        sam_med3d.to_flax(arrays, "test")


def test_wrong_preset_names_the_one_that_fits(state: dict[str, torch.Tensor]) -> None:
    arrays = {key: tensor.numpy() for key, tensor in state.items()}
    with pytest.raises(PresetMismatch, match="--preset test") as error:
        sam_med3d.to_flax(arrays, "cpu_xs")
    assert "has shape" in str(error.value) and "needs" in str(error.value)


def test_one_wrong_shape_names_key_and_both_shapes(state: dict[str, torch.Tensor]) -> None:
    arrays = {key: tensor.numpy() for key, tensor in state.items()}
    arrays["image_encoder.neck.0.weight"] = np.zeros((48, 48, 3, 3, 3), np.float32)
    with pytest.raises(PresetMismatch) as error:
        sam_med3d.to_flax(arrays, "test")
    for part in ("neck.0.weight", "(48, 48, 3, 3, 3)", "(48, 48, 1, 1, 1)", "nor any other"):
        assert part in str(error.value)


def test_an_extra_block_does_not_fit(state: dict[str, torch.Tensor]) -> None:
    arrays = {key: tensor.numpy() for key, tensor in state.items()}
    arrays["image_encoder.blocks.2.norm1.weight"] = np.ones(48, np.float32)
    with pytest.raises(PresetMismatch, match="no place"):
        sam_med3d.to_flax(arrays, "test")


class Malicious:
    """Unpickled freely, this creates a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, state, legacy: bool) -> None:
    marker, file = tmp_path / "marker", tmp_path / "bad.pth"
    content = {"model_state_dict": state, "args": Malicious(marker)}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="mkdir"):
        arrays_of(file)
    assert not marker.exists()
    with file.open("rb") as stream:  # the same bytes are dangerous: the test can fail
        if legacy:
            for _ in range(3):
                pickle.load(stream)
        torch.load(file, weights_only=False)
    assert marker.exists()


def test_missing_corrupt_and_truncated_files(tmp_path: Path, published: Path) -> None:
    with pytest.raises(MissingFile, match="nowhere.pth"):
        sam_med3d.convert_file(tmp_path / "nowhere.pth", tmp_path / "out", "test")
    noise = tmp_path / "noise.pth"
    noise.write_bytes(b"this is no checkpoint" * 100)
    short = tmp_path / "short.pth"
    short.write_bytes(published.read_bytes()[:-2000])
    for file in (noise, short):
        with pytest.raises(UnreadableFile, match=file.name):
            sam_med3d.convert_file(file, tmp_path / "out", "test")
    assert not (tmp_path / "out").exists()


def test_a_sparse_tensor(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    name = next(key for key in state if state[key].ndim == 2)
    torch.save(state | {name: state[name].to_sparse()}, tmp_path / "sparse.pth")
    with pytest.raises(CheckpointError, match="sparse.pth is stored as torch.sparse_coo; save it"):
        arrays_of(tmp_path / "sparse.pth")


@pytest.mark.parametrize("direction", [["a.pth", "out"], ["--to-torch", "w", "a.pth"]])
def test_without_torch(
    direction: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a fresh interpreter: the module itself must load."""
    (tmp_path / "torch.py").write_text("raise ImportError('No module named torch')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{REPOSITORY}")
    command = [sys.executable, "-m", "converters.sam_med3d", *direction]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 3 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("error[extra_missing]: ")
    assert "pip install -e '.[convert]'" in result.stderr


def test_content_that_is_no_state_dict(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"weights": {"a": 1}}, tmp_path / "other.pth")
    for name in ("list.pth", "other.pth"):
        with pytest.raises(CheckpointError, match="state dict"):
            arrays_of(tmp_path / name)


def test_an_existing_output_is_kept_unless_forced(tmp_path: Path, published: Path) -> None:
    out = tmp_path / "out"
    sam_med3d.convert_file(published, out, "test")
    before = (out / "model.json").read_text()
    again = sam_med3d.convert_file(published, out, "test")
    assert "nothing written" in again.text() and (out / "model.json").read_text() == before

    other = tmp_path / "other.pth"
    content = torch.load(published, weights_only=False)["model_state_dict"]
    torch.save(content, other)
    with pytest.raises(OutputExists, match="--force"):
        sam_med3d.convert_file(other, out, "test")
    assert (out / "model.json").read_text() == before
    sam_med3d.convert_file(other, out, "test", force=True)
    assert json.loads((out / "model.json").read_text())["provenance"]["source"] == "other.pth"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.pth", "out", "published.pth"]


def test_a_damaged_output_is_not_said_to_be_there(tmp_path: Path, published: Path) -> None:
    out = tmp_path / "out"
    sam_med3d.convert_file(published, out, "test")
    shutil.rmtree(out / "params")
    with pytest.raises(OutputExists, match="--force"):
        sam_med3d.convert_file(published, out, "test")
    sam_med3d.convert_file(published, out, "test", force=True)
    assert load_weights(out, "test")[1]["preset"] == "test"


@pytest.mark.parametrize(
    "options",
    [
        ["INPUT", "FILE/out"],
        ["INPUT", "FILE"],
        ["--to-torch", "w", "DIR", "--force"],
        ["--to-torch", "w", "FILE/x.pth"],
    ],
    ids=" ".join,
)
def test_an_output_in_an_impossible_place(
    tmp_path: Path, published: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sam_med3d.convert_file(published, tmp_path / "w", "test")
    (tmp_path / "FILE").write_text("a file")
    (tmp_path / "DIR").mkdir()
    options = [
        o if o.startswith("--") else str(tmp_path / o.replace("INPUT", published.name))
        for o in options
    ]
    with pytest.raises(SystemExit) as left:
        run_command(lambda: sam_med3d.main([*options, "--preset", "test"]))
    assert left.value.code == 3
    line = capsys.readouterr().err
    assert line.startswith("error[") and line.count("\n") == 1
    assert (tmp_path / "FILE").read_text() == "a file" and not any((tmp_path / "DIR").iterdir())


def test_force_never_deletes_a_folder_that_is_no_checkpoint(
    tmp_path: Path, published: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExists, match="not a checkpoint"):
        sam_med3d.convert_file(published, precious, "test", force=True)
    assert (precious / "thesis.txt").exists()


def test_an_existing_pth_is_kept_unless_forced(tmp_path: Path, published: Path) -> None:
    sam_med3d.convert_file(published, tmp_path / "out", "test")
    with pytest.raises(OutputExists, match="published.pth"):
        sam_med3d.export_file(tmp_path / "out", published)
    sam_med3d.export_file(tmp_path / "out", published, force=True)
    assert set(torch.load(published, weights_only=True)) == {"model_state_dict"}


def test_unknown_preset(tmp_path: Path, published: Path) -> None:
    with pytest.raises(ConfigError, match="vit_z"):
        sam_med3d.convert_file(published, tmp_path / "out", "vit_z")


def test_the_command_lines_unknown_preset(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sam_med3d.main(["in.pth", "out", "--preset", "nope"])
    assert "argument --preset: invalid choice: 'nope'" in capsys.readouterr().err


def test_export_of_a_half_written_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    with pytest.raises(CheckpointIncomplete, match="model.json"):
        sam_med3d.export_file(tmp_path / "half", tmp_path / "x.pth")


def test_own_parameters_are_left_out_on_the_way_back(params: dict[str, np.ndarray]) -> None:
    own = {"prompt_encoder.corner_embed": np.ones((2, 48), np.float32)}
    state, report = sam_med3d.to_torch(params | own, "test")
    assert not any("corner" in key for key in state)
    assert set(report.skipped) == set(own)


def test_published_size() -> None:
    shapes = sam_med3d.expected_shapes("vit_b_ori")
    empty = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    assert sam_med3d.parameter_count(empty) == 100_509_232
