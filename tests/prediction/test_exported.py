"""Exported programs: the same as the package's own, without it, for any number of crops."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rtsam_jax import export
from rtsam_jax.errors import ExtraMissing, MissingFile, NotWritable, OutputExists
from rtsam_jax.evaluation.click_model import Turn
from rtsam_jax.prediction.exported import DECODER, ENCODER, export_decoder, export_encoder
from rtsam_jax.prediction.trained import Trained, load_trained
from tests.models.random_model import random_model
from tests.text.tiny_language_model import WIDTH
from tests.tiny import REPOSITORY, command_environment, run_module, tiny_config

pytest.importorskip("flatbuffers", reason="needs the extra `export`")

SIZE, GRID, MASK = 32, 4, 16
CLICK = np.array([20, 11, 7])
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def trained(text_run: Path) -> Trained:
    return load_trained(text_run)


@pytest.fixture(scope="module")
def place(text_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the command makes of a run that is told texts."""
    folder = tmp_path_factory.mktemp("exported")
    export.main(
        f"--checkpoint {text_run} --out {folder / 'exported'} --platforms cpu cuda cpu".split()
    )
    return folder


def crops(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise, and boxes of all sizes; of several crops the last has none."""
    rng = np.random.default_rng(count)
    images = rng.standard_normal((count, SIZE, SIZE, SIZE), np.float32)
    rois = np.zeros(images.shape, np.uint8)
    for roi in rois[: max(count - 1, 1)]:
        low, edge = rng.integers(0, SIZE // 2, 3), rng.integers(1, SIZE // 2, 3)
        roi[tuple(map(slice, low, low + edge))] = 1
    return images, rois


def answers(trained: Trained, images: np.ndarray, rois: np.ndarray) -> tuple[Turn, Turn]:
    """Both turns of docs/export.md by the package itself."""
    model, (table, text_id) = trained.click_model(), trained.text("orn", {})
    encoded = model.encode(images, rois, text_id, table)
    first, every = model.first(encoded), np.arange(len(images))
    at = np.repeat(CLICK[None], len(images), axis=0)
    return first, model.answer(encoded, first.with_click(every, at, True, 0, keep=True))


def require_equal(probability: np.ndarray, ours: np.ndarray) -> None:
    np.testing.assert_allclose(probability, ours, atol=1e-5)
    tie = np.abs(ours - 0.5) < 1e-5
    assert (((probability >= 0.5) == (ours >= 0.5)) | tie).all()


def test_the_documents_code_gives_the_same_masks_without_this_package(
    place: Path, trained: Trained
) -> None:
    for count in (1, 3):
        images, rois = crops(count)
        np.savez(place / f"crops_{count}.npz", image=images[..., None], roi=rois, click=CLICK)
    subprocess.run(
        [sys.executable, HERE / "load_exported.py", REPOSITORY / "docs/export.md", place],
        env=command_environment(),
        check=True,
        timeout=600,
    )
    for count in (1, 3):
        found = np.load(place / f"answers_{count}.npz")
        first, second = answers(trained, *crops(count))
        require_equal(found["first"], first.probability)
        require_equal(found["second"], second.probability)
        assert (found["mask"] == (found["first"] >= 0.5)).all() and found["mask"].any()
        np.testing.assert_allclose(found["iou"], second.iou, atol=1e-5)
        assert np.abs(first.probability - second.probability).max() > 0.01  # the click mattered


def test_the_folder_says_what_it_is(place: Path, text_run: Path, trained: Trained) -> None:
    folder = place / "exported"
    about = json.loads((folder / "export.json").read_text())
    assert about["weights"] == trained.weights and about["platforms"] == ["cpu", "cuda"]
    assert about["encoder"]["arguments"]["image"] == f"float32[b, {SIZE}, {SIZE}, {SIZE}, 1]"
    asked = about["decoder"]["arguments"]
    assert asked["clicks"]["points"] == "float32[b, k, 3]"
    assert asked["text"] == {"features": f"float32[b, l, {WIDTH}]", "valid": "bool[b, l]"}
    assert asked["crops"] == about["encoder"]["result"]
    assert (folder / "model.json").read_bytes() == (text_run / "model.json").read_bytes()
    for name in (ENCODER, DECODER):
        program = jax.export.deserialize(bytearray((folder / name).read_bytes()))
        assert program.platforms == ("cpu", "cuda")


def test_a_model_told_neither_text_nor_box_is_asked_for_neither(trained: Trained) -> None:
    cfg = tiny_config(prompt__task="none", prompt__box=False)
    graphdef, params = nnx.split(random_model(seed=2))
    about = dataclasses.replace(trained.about, text_width=0)
    plain = dataclasses.replace(trained, about=about, cfg=cfg, graphdef=graphdef, params=params)
    images, rois = crops(2)
    arrays = {
        ".".join(map(str, path)): variable[...] for path, variable in nnx.to_flat_state(params)
    }
    encoder, decoder = export_encoder(plain, ["cpu"]), export_decoder(plain, ["cpu"])
    encoded = encoder.call(arrays, images[..., None], rois)
    assert set(encoded) == {"embedding"}
    clicks = {
        "points": np.zeros((2, 5, 3), np.float32),
        "labels": np.full((2, 5), -2, np.int32),
        "mask": np.zeros((2, MASK, MASK, MASK, 1), np.float32),
    }
    model = plain.click_model()
    first = model.first(model.encode(images, rois, 0))
    require_equal(decoder.call(arrays, encoded, {}, clicks)["probability"], first.probability)


def test_a_model_with_learned_task_tokens_is_told_the_task(trained: Trained) -> None:
    cfg = tiny_config(prompt__task="embedding")
    graphdef, params = nnx.split(random_model(seed=2, tasks=3))
    plain = dataclasses.replace(trained, cfg=cfg, graphdef=graphdef, params=params)
    decoder = export_decoder(plain, ["cpu"])
    (_, _, text, _), _ = jax.tree.unflatten(decoder.in_tree, decoder.in_avals)
    assert set(text) == {"task"} and text["task"].dtype == jnp.int32


def test_what_is_there_is_not_touched(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(OutputExists, match="out is not empty"):
        export.main(f"--checkpoint {run} --out {tmp_path / 'out'}".split())
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_failure_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(NotWritable, match=f"{tmp_path / 'out'} cannot be written .No space left"):
        export.main(f"--checkpoint {run} --out {tmp_path / 'out'} --platforms cpu".split())
    assert list(tmp_path.iterdir()) == []


def test_without_flatbuffers_it_says_what_to_install(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExtraMissing, match="without flatbuffers"):
        export.main(f"--checkpoint {run} --out {tmp_path / 'out'}".split())
    assert list(tmp_path.iterdir()) == []


def test_texts_are_left_out_where_the_language_model_stayed_behind(
    text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(text_run, moved)
    document = json.loads((moved / "model.json").read_text())
    document["prompt"]["language_model"] = "nowhere"
    (moved / "model.json").write_text(json.dumps(document))
    options = f"--checkpoint {moved} --out {tmp_path / 'out'} --platforms cpu".split()
    with pytest.raises(MissingFile, match="not_there"):
        export.main([*options, "--language-model", "not_there"])
    assert not (tmp_path / "out").exists()
    export.main(options)
    assert "warning: the language model nowhere is not here" in capsys.readouterr().out
    assert not (tmp_path / "out" / "texts.npz").exists()


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    result = run_module("export", "--checkpoint", "nowhere", "--out", "out", cwd=tmp_path)
    assert result.returncode == 3
    assert result.stderr.startswith("error[missing_file]: nowhere/model.json does not exist")
