"""Checkpoints: exact, kept by rule, and an error of their own where they are not whole."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from rtsam_jax import errors
from rtsam_jax.config import MeshConfig
from rtsam_jax.optim import make_optimizer
from rtsam_jax.training.checkpoint import RunCheckpoints
from rtsam_jax.training.sharding import make_mesh
from rtsam_jax.training.state import Built, TrainState, abstract_model, build
from rtsam_jax.training.stored import read_params, restore_params
from rtsam_jax.weights import flatten, weights_digest
from tests.tiny import tiny_config
from tests.training.conftest import copied

ONE = make_mesh(MeshConfig(data=1), 1)
LOSSES = {1: 5.0, 2: 1.0, 3: 3.0, 4: 4.0, 5: 2.0, 6: 6.0}


def fresh(seed: int = 0) -> Built:
    cfg = tiny_config(seed=seed)
    return build(cfg, 3, make_optimizer(cfg.optim, 4), ONE)


def everything(built: Built) -> list[np.ndarray]:
    state = built.state
    kept = state.step, state.trained, state.opt_state, built.frozen  # the seed is the config's
    return jax.tree.leaves(copied(kept))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, list[np.ndarray]]]:
    """A run that saved each of six steps, and what its state was then.

    The state is updated in place right after each save, as training does.
    """
    run = tmp_path_factory.mktemp("run")

    def one_more(state: TrainState) -> TrainState:
        step, trained, moments = jax.tree.map(
            lambda x: x + 1, (state.step, state.trained, state.opt_state)
        )
        return TrainState(step, state.seed, trained, moments)

    bump = jax.jit(one_more, donate_argnums=0)
    built, was = fresh(), {}
    checkpoints = RunCheckpoints(run, keep=2)
    for step, loss in LOSSES.items():
        built = Built(built.graphdef, built.frozen, bump(built.state))
        was[step] = everything(built)
        assert int(built.state.step) == step
        checkpoints.save(built, loss=loss)
    checkpoints.close()
    return run, was


def steps_in(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_the_latest_and_the_best_are_kept(saved) -> None:
    assert steps_in(saved[0]) == ["2", "5", "6"]  # 2 has the lowest loss


@pytest.mark.parametrize("step", [2, 5, 6, None])
def test_a_restored_state_is_bit_equal(saved, step: int | None) -> None:
    run, was = saved
    checkpoints = RunCheckpoints(run, keep=2)
    assert checkpoints.latest_step == 6
    built = checkpoints.restore(fresh(seed=9), step)
    checkpoints.close()
    for a, b in zip(everything(built), was[step or 6], strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(built.state.seed) == 9
    for leaf in jax.tree.leaves(built.state):
        assert leaf.sharding.mesh == ONE


def test_prediction_needs_the_parameters_alone(saved, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved[0], run)
    shutil.rmtree(run / "checkpoints" / "6" / "train_state")
    _, params = abstract_model(tiny_config(), 3, ONE)
    assert restore_params(run, params).step == 6
    restored = RunCheckpoints(saved[0], keep=2).restore(fresh())
    whole = nnx.merge_state(restored.state.trained, restored.frozen)
    assert jax.tree.structure(params) == jax.tree.structure(whole)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_reading_parameters_changes_nothing(saved, tmp_path: Path) -> None:
    """Evaluating a run that is still training must not remove the save it is writing."""
    run = tmp_path / "run"
    shutil.copytree(saved[0], run)
    shutil.copytree(run / "checkpoints" / "6", run / "checkpoints" / "7.orbax-checkpoint-tmp")
    before = sorted(p.relative_to(run) for p in run.rglob("*"))
    _, params = abstract_model(tiny_config(), 3, ONE)
    assert restore_params(run, params).step == 6
    assert sorted(p.relative_to(run) for p in run.rglob("*")) == before


def largest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


DAMAGE = {
    "no params": lambda step: shutil.rmtree(step / "params"),
    "no train state": lambda step: shutil.rmtree(step / "train_state"),
    "no metadata": lambda step: (step / "params" / "_METADATA").unlink(),
    "no manifest": lambda step: (step / "params" / "manifest.ocdbt").unlink(),
    "cut short": lambda step: largest(step / "params").write_bytes(b"cut"),
    "empty": lambda step: [shutil.rmtree(p) for p in step.iterdir() if p.is_dir()],
}


# Orbax abandons its other reads when one fails, and Python says so 63 times.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", DAMAGE)
def test_a_half_written_checkpoint(saved, tmp_path: Path, name: str) -> None:
    shutil.copytree(saved[0], tmp_path / "run")
    DAMAGE[name](tmp_path / "run" / "checkpoints" / "6")
    checkpoints = RunCheckpoints(tmp_path / "run", keep=2)
    with pytest.raises(errors.CheckpointIncomplete, match="checkpoints/6") as caught:
        checkpoints.restore(fresh())
    assert "\n" not in str(caught.value)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")  # as the message advises
    again = RunCheckpoints(tmp_path / "run", keep=2)
    assert int(again.restore(fresh()).state.step) == 5


@pytest.mark.parametrize("content", ["", "{}", '{"loss": "low"}'])
def test_damaged_metrics(saved, tmp_path: Path, content: str) -> None:
    """They are read before any step is asked for."""
    shutil.copytree(saved[0], tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "5"
    (step / "metrics" / "metrics").write_text(content)
    _, params = abstract_model(tiny_config(), 3, ONE)
    for use in (
        lambda: RunCheckpoints(tmp_path / "run", keep=2),
        lambda: restore_params(tmp_path / "run", params),
    ):
        with pytest.raises(errors.CheckpointIncomplete, match="checkpoints/5 is damaged") as caught:
            use()
        assert "delete that folder" in str(caught.value) and "\n" not in str(caught.value)
    shutil.rmtree(step)  # as the message advises
    assert restore_params(tmp_path / "run", params).step == 6


def test_a_folder_that_refuses_is_not_to_be_deleted(saved, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Permission denied")

    monkeypatch.setattr("rtsam_jax.training.checkpoint.ocp.training.Checkpointer", refuse)
    with pytest.raises(errors.CheckpointIncomplete, match="cannot be listed .Permission") as caught:
        RunCheckpoints(saved[0], keep=2)
    assert "delete" not in str(caught.value)


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    checkpoints = RunCheckpoints(tmp_path, keep=1)
    assert checkpoints.latest_step is None
    with pytest.raises(errors.CheckpointIncomplete, match="no finished checkpoint"):
        checkpoints.restore(fresh())
    _, params = abstract_model(tiny_config(), 3, ONE)
    for run in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(errors.CheckpointIncomplete, match="no finished checkpoint"):
            restore_params(run, params)
    assert not (tmp_path / "nowhere").exists()


def test_parameters_are_those_that_were_written_and_of_this_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.json").write_text('{"run": "one"}')
    with closing(RunCheckpoints(tmp_path, keep=1)) as checkpoints:
        checkpoints.save(built := fresh(), loss=1.0)
    _, params = abstract_model(tiny_config(), 3, ONE)
    whole = nnx.to_pure_dict(nnx.merge_state(built.state.trained, built.frozen))
    assert restore_params(tmp_path, params) == (0, weights_digest(flatten(whole)))
    assert read_params(tmp_path).keys() == flatten(whole).keys()

    (tmp_path / "model.json").write_text('{"run": "another"}')
    for read in (lambda: restore_params(tmp_path, params), lambda: read_params(tmp_path)):
        with pytest.raises(errors.PresetMismatch, match="is of another run than model.json"):
            read()
    for unknown in ("{}", "none"):  # of an earlier version; damaged, which others tell
        (tmp_path / "model.json").write_text(unknown)
        assert restore_params(tmp_path, params).step == 0

    other = {"run": None, "weights": "0" * 64}
    monkeypatch.setattr("rtsam_jax.training.checkpoint.about_params", lambda *_: other)
    with closing(RunCheckpoints(tmp_path / "bits", keep=1)) as checkpoints:
        checkpoints.save(built, loss=1.0)
    for read in (
        lambda: restore_params(tmp_path / "bits", params),
        lambda: read_params(tmp_path / "bits"),
    ):
        with pytest.raises(errors.CheckpointIncomplete, match="not those that were written"):
            read()


def test_another_models_checkpoint(saved) -> None:
    cfg = tiny_config(prompt__task_tokens=2)
    other = build(cfg, 3, make_optimizer(cfg.optim, 4), ONE)
    with pytest.raises(errors.CheckpointIncomplete, match="cannot be read as"):
        RunCheckpoints(saved[0], keep=2).restore(other)
