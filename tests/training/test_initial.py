"""A training starts from published weights or from another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from rtsam_jax import errors
from rtsam_jax.config import ExperimentConfig, MeshConfig
from rtsam_jax.data.selection import load_run_data
from rtsam_jax.optim import make_optimizer
from rtsam_jax.training.checkpoint import RunCheckpoints
from rtsam_jax.training.model_file import write_model_file
from rtsam_jax.training.sharding import make_mesh
from rtsam_jax.training.state import build
from rtsam_jax.weights import flatten
from tests.tiny import TASKS, tiny_config

CORNERS = "prompt_encoder.corner_embed"
TASK_TOKENS = "prompt_encoder.task_embed"


def parameters(cfg: ExperimentConfig, **how: Any) -> dict[str, np.ndarray]:
    built = build(cfg, 3, make_optimizer(cfg.optim, 4), make_mesh(MeshConfig(data=1), 1), **how)
    both = nnx.to_pure_dict(nnx.merge_state(built.state.trained, built.frozen))
    return {name: np.asarray(leaf) for name, leaf in flatten(both).items()}


def a_run(folder: Path, dataset: Path, **fields: Any) -> Path:
    """A run's folder with one checkpoint, drawn with another seed than a fresh model's."""
    cfg = tiny_config(dataset, seed=7, **fields)
    write_model_file(folder, cfg, load_run_data(cfg), dict.fromkeys(TASKS, "Segment it."))
    built = build(cfg, 3, make_optimizer(cfg.optim, 4), make_mesh(MeshConfig(data=1), 1))
    checkpoints = RunCheckpoints(folder, keep=1)
    checkpoints.save(built, loss=1.0)
    checkpoints.close()
    return folder


def test_of_a_run_all_is_taken_but_what_belongs_to_its_tasks(
    tmp_path: Path, tiny_dataset: Path
) -> None:
    run = a_run(tmp_path / "run", tiny_dataset, prompt__task="embedding", prompt__box=True)
    before = sorted(path.name for path in run.rglob("*"))
    of_run, fresh = parameters(tiny_config(seed=7)), parameters(tiny_config())
    found = parameters(tiny_config(model__checkpoint=str(run), model__freeze_encoder=True))
    assert set(found) == set(fresh)
    for name, value in found.items():
        source = fresh if name == TASK_TOKENS else of_run
        np.testing.assert_array_equal(value, source[name], err_msg=name)
    assert not np.array_equal(of_run[TASK_TOKENS], fresh[TASK_TOKENS])
    assert sorted(path.name for path in run.rglob("*")) == before  # it is only read


def test_corners_that_no_box_has_taught_are_drawn(tmp_path: Path, tiny_dataset: Path) -> None:
    run = a_run(tmp_path / "run", tiny_dataset, prompt__task="none", prompt__box=False)
    found = parameters(tiny_config(model__checkpoint=str(run)))
    np.testing.assert_array_equal(found[CORNERS], parameters(tiny_config())[CORNERS])
    drawn = parameters(tiny_config(seed=7))
    assert not np.array_equal(found[CORNERS], drawn[CORNERS])


def test_a_run_without_tasks_starts_one_with_texts(tmp_path: Path, tiny_dataset: Path) -> None:
    run = a_run(tmp_path / "run", tiny_dataset, prompt__task="none")
    cfg = tiny_config(prompt__task="text", model__checkpoint=str(run))
    found = parameters(cfg, text_width=20)
    assert any("text_adapter" in name for name in found) and TASK_TOKENS not in found
    same = "image_encoder.patch_embed.kernel"
    np.testing.assert_array_equal(found[same], parameters(tiny_config(seed=7))[same])


def test_a_run_that_cannot_be_started_from(tmp_path: Path, tiny_dataset: Path) -> None:
    run = a_run(tmp_path / "run", tiny_dataset)
    with pytest.raises(errors.PresetMismatch, match="is a run of preset 'test', but 'cpu_xs'"):
        parameters(tiny_config(model__preset="cpu_xs", model__checkpoint=str(run)))
    with pytest.raises(errors.CheckpointError, match="the folder of the run itself"):
        parameters(tiny_config(model__checkpoint=str(run), out=str(run)))
    [params] = run.glob("checkpoints/*/params")
    params.rename(params.with_name("gone"))
    with pytest.raises(errors.CheckpointIncomplete, match="delete that folder"):
        parameters(tiny_config(model__checkpoint=str(run)))
    (run / "checkpoints").rename(run / "elsewhere")
    with pytest.raises(errors.CheckpointIncomplete, match="holds no finished checkpoint"):
        parameters(tiny_config(model__checkpoint=str(run)))
