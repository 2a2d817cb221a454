"""One compiled training step on the tiny dataset, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.neighbourhood import Neighbourhood
from rtsam_jax.data.pipeline import training_batches
from rtsam_jax.data.selection import RunData, load_run_data
from rtsam_jax.models.presets import get_spec
from rtsam_jax.optim import make_optimizer
from rtsam_jax.text.prompt_set import prompt_set
from rtsam_jax.training.run import prepare_training
from rtsam_jax.training.sharding import make_mesh
from rtsam_jax.training.state import Built, build
from rtsam_jax.training.step import make_train_step
from rtsam_jax.weights import save_weights
from tests.models.random_model import random_model
from tests.tiny import tiny_config

grain.config.update("py_debug_mode", False)


@dataclass
class Training:
    """What `rtsam_jax.train` puts together, ready to run in this process."""

    cfg: ExperimentConfig
    data: RunData
    cases: Sequence[Neighbourhood]
    mesh: Mesh
    optimizer: optax.GradientTransformation
    step: Any

    def build(self) -> Built:
        return build(self.cfg, len(self.data.tasks), self.optimizer, self.mesh)

    def batches(self, cases: Sequence[Neighbourhood] | None = None) -> grain.MapDataset:
        return training_batches(
            cases or self.cases,
            [prompt_set(self.cfg, self.data).training[case.id] for case in self.data.train],
            size=get_spec(self.cfg.model.preset).image_size,
            jitter=self.cfg.data.jitter,
            batch_size=self.cfg.batch_size,
            seed=self.cfg.seed,
        )


def make_training(cfg: ExperimentConfig) -> Training:
    data = load_run_data(cfg)
    mesh = make_mesh(cfg.mesh, cfg.batch_size)
    optimizer = make_optimizer(cfg.optim, cfg.steps)
    graphdef = build(cfg, len(data.tasks), optimizer, mesh).graphdef
    step = make_train_step(graphdef, optimizer, cfg)
    return Training(cfg, data, prepare_training(cfg, data), mesh, optimizer, step)


@pytest.fixture(scope="session")
def training(tiny_dataset: Path) -> Training:
    """Nothing frozen."""
    return make_training(tiny_config(tiny_dataset))


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of preset `test` as the converter writes it, every parameter random."""
    folder = tmp_path_factory.mktemp("weights") / "random"
    params = {
        ".".join(map(str, path)): np.asarray(leaf.get_value())
        for path, leaf in _variables(random_model(seed=3))
        if path[-1] != "corner_embed"  # as in the published weights
    }
    save_weights(folder, params, {"preset": "test"})
    return folder


def _variables(model: Any) -> Any:
    from flax import nnx

    return nnx.to_flat_state(nnx.state(model))


@pytest.fixture(scope="session")
def frozen_training(tiny_dataset: Path, weights: Path) -> Training:
    """The encoder frozen, from a checkpoint."""
    return make_training(
        tiny_config(tiny_dataset, model__freeze_encoder=True, model__checkpoint=str(weights))
    )


def copied(tree: Any) -> Any:
    """Host copies of all arrays, which no donation can reach."""
    return jax.tree.map(lambda x: np.array(x, copy=True), tree)
