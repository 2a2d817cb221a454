from __future__ import annotations

import gc
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from rtsam_jax.data.json_file import write_json
from rtsam_jax.errors import (
    CheckpointError,
    CheckpointIncomplete,
    MissingFile,
    OutputExists,
    PresetMismatch,
    UnreadableFile,
)
from rtsam_jax.models.sam3d import SAM3D
from rtsam_jax.weights import (
    OWN_PARAMETERS,
    flatten,
    load_into,
    load_weights,
    model_variables,
    nest,
    read_meta,
    save_weights,
)
from tests.models.random_model import random_model


def values(model: SAM3D) -> dict[str, np.ndarray]:
    return {name: np.asarray(v[...]) for name, v in model_variables(model).items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("weights") / "checkpoint"
    params = values(random_model(1))
    save_weights(folder, params, {"preset": "test", "note": "synthetic"})
    return folder, params


def test_what_is_saved_is_loaded_bit_for_bit_in_the_models_structure(saved) -> None:
    folder, params = saved
    nested, meta = load_weights(folder, "test")
    assert meta["preset"] == "test" and meta["note"] == "synthetic" and meta["schema"] == 1
    pure = nnx.to_pure_dict(nnx.state(random_model(0)))
    assert jax.tree.structure(nested) == jax.tree.structure(pure)
    loaded = flatten(nested)
    for name, array in params.items():
        np.testing.assert_array_equal(loaded[name], array, strict=True)


def test_flatten_and_nest_are_inverse() -> None:
    nested = {"a": {0: {"b": 1}, 1: {"b": 2}}, "c": 3}
    assert flatten(nested) == {"a.0.b": 1, "a.1.b": 2, "c": 3}
    assert nest(flatten(nested)) == nested


def test_load_into_a_model(saved) -> None:
    model = random_model(2)  # itself filled through an abstract model
    assert load_into(model, load_weights(saved[0], "test")[0]) == set()
    for name, array in values(model).items():
        np.testing.assert_array_equal(array, saved[1][name])


@pytest.mark.parametrize(("own", "count"), [({"tasks": 3}, 2), ({"text_width": 20}, 9)])
def test_new_parameters_keep_their_value_only_where_allowed(saved, own, count: int) -> None:
    params = {k: v for k, v in saved[1].items() if k not in OWN_PARAMETERS}
    model = random_model(2, **own)
    before = values(model)
    new = load_into(model, params, allow_new=OWN_PARAMETERS)
    assert new == OWN_PARAMETERS & set(before) and len(new) == count
    after = values(model)
    for name in new:
        np.testing.assert_array_equal(after[name], before[name])
    with pytest.raises(CheckpointError, match="corner_embed"):
        load_into(model, params)


def test_superfluous_names_and_other_shapes_are_errors_that_change_nothing(saved) -> None:
    name = "prompt_encoder.no_mask_embed"
    model = random_model(2)
    before = values(model)
    with pytest.raises(CheckpointError, match="surprise"):
        load_into(model, saved[1] | {"surprise": np.zeros(1)})
    with pytest.raises(CheckpointError, match=r"no_mask_embed.*\(5,\).*\(48,\)"):
        load_into(model, saved[1] | {name: np.zeros(5)})
    for key, array in values(model).items():
        np.testing.assert_array_equal(array, before[key])


def test_another_preset_is_refused_and_named(saved) -> None:
    with pytest.raises(PresetMismatch, match="'test'.*'vit_b_ori'"):
        load_weights(saved[0], "vit_b_ori")
    assert load_weights(saved[0], None)[1]["preset"] == "test"


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="nowhere"):
        load_weights(tmp_path / "nowhere", "test")


@pytest.mark.parametrize("lost", ["model.json", "params", "params/state"])
def test_half_written(saved, tmp_path: Path, lost: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved[0], folder)
    path = folder / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(CheckpointIncomplete):
        load_weights(folder, "test")


def test_damaged_arrays_and_description(
    saved, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved[0], folder)
    for file in (folder / "params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointIncomplete, match=f"damaged or incomplete; write {folder} again"):
        load_weights(folder, "test")
    gc.collect()  # the reads that Orbax abandoned are gone, and were not heard
    assert not caplog.records and not capfd.readouterr().err
    logging.getLogger("asyncio").error("heard")
    assert len(caplog.records) == 1
    (folder / "model.json").write_text("{")
    with pytest.raises(UnreadableFile, match="model.json"):
        read_meta(folder)
    (folder / "model.json").write_text('{"schema": 99, "preset": "test"}')
    with pytest.raises(UnreadableFile, match="schema 1"):
        read_meta(folder)


def test_an_interrupted_save_leaves_nothing_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rtsam_jax.weights.ocp.save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_weights(tmp_path / "x", {"a": np.zeros(1)}, {"preset": "test"})
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    """It has a `model.json` too."""
    write_json(tmp_path / "run" / "model.json", {"schema": 1, "preset": "test"})
    write_json(tmp_path / "run" / "run.json", {})
    with pytest.raises(OutputExists, match=r"not a checkpoint \(run.json\)"):
        save_weights(tmp_path / "run", {"a": np.zeros(1)}, {"preset": "test"}, overwrite=True)
    assert len(list((tmp_path / "run").iterdir())) == 2
    with pytest.raises(CheckpointError, match="holds a run, not plain weights"):
        read_meta(tmp_path / "run")


def test_overwrite_only_on_request(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    save_weights(folder, {"a": np.zeros(1, np.float32)}, {"preset": "test"})
    with pytest.raises(OutputExists, match="exists already"):
        save_weights(folder, {"a": np.ones(1, np.float32)}, {"preset": "test"})
    save_weights(folder, {"a": np.ones(1, np.float32)}, {"preset": "test"}, overwrite=True)
    assert load_weights(folder, "test")[0]["a"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
