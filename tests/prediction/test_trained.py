"""A model from its folder alone: no config, no dataset."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rtsam_jax import errors
from rtsam_jax.data.preprocess import PreprocessSpec
from rtsam_jax.data.selection import load_run_data
from rtsam_jax.prediction.trained import load_trained
from rtsam_jax.prompts.record import FIELDS, Flag, Note, Number, Scalar
from rtsam_jax.prompts.text import optional_sentences
from rtsam_jax.text.prompt_set import prompt_set
from rtsam_jax.training.checkpoint import RunCheckpoints
from rtsam_jax.training.model_file import write_calibration
from rtsam_jax.training.rules import trained_filter
from rtsam_jax.training.state import Built, TrainState
from rtsam_jax.weights import flatten, weights_digest
from tests.text.tiny_language_model import write_language_model
from tests.tiny import tiny_config


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """What a colleague is sent: `model.json` and `checkpoints/`."""
    shutil.copytree(run / "checkpoints", tmp_path / "sent" / "checkpoints")
    shutil.copy(run / "model.json", tmp_path / "sent")
    return tmp_path / "sent"


def test_a_copy_of_model_and_checkpoints_is_the_run(
    run: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained, sent = load_trained(run), load_trained("sent")
    assert sent.weights == trained.weights and len(sent.weights) == 64
    assert sent.step == 7 and sent.size == 32 and sent.warnings == ()
    assert sent.spec == PreprocessSpec(spacing_mm=2.0, tau=0.5)
    assert [task.name for task in sent.about.tasks] == ["orn", "ce", "crn"]
    assert sent.task("ce").modality == "MR" and sent.text("crn", {}) == (None, 2)
    with pytest.raises(errors.ConfigError, match="task 'lung'; name one of orn, ce, crn"):
        sent.task("lung")


def test_the_digest_is_of_every_weight_and_name(run: Path) -> None:
    params = load_trained(run).params
    leaves, structure = jax.tree.flatten(params)
    digests = {weights_digest(flatten(nnx.to_pure_dict(params)))}
    for at in (0, len(leaves) // 2, len(leaves) - 1):
        array = np.array(leaves[at])
        array.flat[-1] = np.nextafter(array.flat[-1], np.inf, dtype=np.float32)
        changed = [*leaves[:at], array, *leaves[at + 1 :]]
        state = jax.tree.unflatten(structure, changed)
        digests.add(weights_digest(flatten(nnx.to_pure_dict(state))))
    assert len(digests) == 4


def test_a_calibration_of_other_weights_is_not_used(run: Path, copy: Path) -> None:
    own = {"step": 7, "weights": load_trained(run).weights, "temperature": 1.5}
    write_calibration(copy, own)
    trained = load_trained(copy)
    assert trained.calibration == own and trained.warnings == ()
    write_calibration(copy, own | {"weights": "another"})
    trained = load_trained(copy)
    assert trained.calibration is None
    assert len(trained.warnings) == 1 and "fitted on other weights" in trained.warnings[0]


def test_a_checkpoint_of_another_model(copy: Path) -> None:
    content = json.loads((copy / "model.json").read_text())
    content["model"]["preset"] = "cpu_s"
    (copy / "model.json").write_text(json.dumps(content))
    with pytest.raises(errors.PresetMismatch, match="different runs; copy both") as raised:
        load_trained(copy)
    assert "delete" not in str(raised.value)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(errors.CheckpointIncomplete, match="no finished checkpoint"):
        load_trained(copy)


def test_what_is_no_path(run: Path) -> None:
    for given in ((None, ""), (run, 5)):
        with pytest.raises(errors.ConfigError, match="of a run is given as .*; give a path"):
            load_trained(given[0], language_model=given[1])


def test_a_text_width_of_another_run(text_run: Path, tmp_path: Path) -> None:
    shutil.copytree(text_run, tmp_path / "run")
    path = tmp_path / "run" / "model.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"text_width": content["text_width"] + 1}))
    with pytest.raises(errors.PresetMismatch, match="different runs; copy both"):
        load_trained(tmp_path / "run")


def test_parameters_that_are_not_finite(run: Path, copy: Path) -> None:
    trained = load_trained(run)
    leaves, structure = jax.tree.flatten(trained.params)
    leaves[-1] = leaves[-1].at[(0,) * leaves[-1].ndim].set(np.nan)
    network = nnx.merge(trained.graphdef, jax.tree.unflatten(structure, leaves))
    graphdef, own, frozen = nnx.split(network, trained_filter(False), ...)
    built = Built(graphdef, frozen, TrainState(jnp.int32(8), jnp.uint32(0), own, ()))
    with closing(RunCheckpoints(copy, keep=2)) as checkpoints:
        checkpoints.save(built, loss=1.0)
    with pytest.raises(errors.CheckpointIncomplete, match="checkpoint 8 .* from a copy") as raised:
        load_trained(copy)
    assert "delete" not in str(raised.value)


def test_texts_are_those_of_the_run_whatever_their_length(
    text_run: Path, tiny_dataset: Path
) -> None:
    """The features that evaluation takes for the same cases, in tables of one shape."""
    trained = load_trained(text_run)
    cfg = tiny_config(
        tiny_dataset,
        prompt__task="text",
        prompt__language_model=trained.cfg.prompt.language_model,
    )
    data = load_run_data(cfg)
    prompts = prompt_set(cfg, data, train=False)
    assert prompts.table is not None
    shapes = set()
    for case in data.held_out:
        table, row = trained.text(case.task, case.record)
        assert table is not None and row == 0
        valid = np.asarray(table.valid[0])
        expected = np.asarray(prompts.table.valid[prompts.own[case.id]])
        assert valid.sum() == expected.sum() == 1 + len(optional_sentences(case.record))
        np.testing.assert_array_equal(
            np.asarray(table.features[0])[valid],
            np.asarray(prompts.table.features[prompts.own[case.id]])[expected],
        )
        shapes.add(table.features.shape)
    everything = {name: some(field.kind) for name, field in FIELDS.items()}
    told = trained.tell("orn", trained.prompt("orn", everything))
    assert told.table is not None and told.lost == 0
    assert np.asarray(told.table.valid).sum() == 1 + 23  # no record says more
    shapes.add(told.table.features.shape)
    assert len(shapes) == 1


def some(kind: object) -> Scalar:
    """A value that is spoken of."""
    match kind:
        case Flag():
            return True
        case Number():
            return int(kind.low) + 1
        case Note():
            return "Eats a soft diet"
        case _:
            return kind.terms[-1]  # type: ignore[attr-defined]


def test_the_language_model_must_be_the_runs_own(text_run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(text_run.parent / "tiny_bert", moved)
    load_trained(text_run, language_model=str(moved)).require_language_model()
    other = write_language_model(tmp_path / "other", seed=1)
    with pytest.raises(errors.CheckpointError, match="name the right folder with --language-model"):
        load_trained(text_run, language_model=str(other)).require_language_model()
    lost = load_trained(text_run, language_model=str(tmp_path / "nowhere"))
    with pytest.raises(errors.MissingFile, match="name its folder with --language-model"):
        lost.text("orn", {})
