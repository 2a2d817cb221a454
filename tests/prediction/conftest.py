"""Runs whose every parameter is random, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rtsam_jax.prediction import outputs
from rtsam_jax.prediction.segmenter import Segmenter
from tests.prediction.commanding import Command, command_of
from tests.prediction.random_run import save_random_run
from tests.text.tiny_language_model import write_language_model
from tests.tiny import tiny_config


@pytest.fixture(scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's cache folder of the session's own, so that text features stay out of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """A run with learned tokens per task."""
    cfg = tiny_config(tiny_dataset, loss__iou_head=0.1)
    return save_random_run(tmp_path_factory.mktemp("random") / "run", cfg, seed=1)


@pytest.fixture(scope="session")
def text_run(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path, own_cache: Path) -> Path:
    """A run that is told texts; its language model lies in `tiny_bert` beside it."""
    pytest.importorskip("transformers", reason="needs the tokenizers of the extra `text`")
    place = tmp_path_factory.mktemp("text")
    language_model = write_language_model(place / "tiny_bert")
    cfg = tiny_config(tiny_dataset, prompt__task="text", prompt__language_model=str(language_model))
    return save_random_run(place / "run", cfg, seed=2)


@pytest.fixture(scope="session")
def loaded(run: Path) -> Segmenter:
    """The model of `run`, compiled once for all tests of the predict command."""
    return Segmenter.from_checkpoint(run)


@pytest.fixture
def command(
    tmp_path: Path, run: Path, loaded: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> Command:
    """`python -m rtsam_jax.predict` on `run`, into `out` of the test's own folder; no pictures."""
    monkeypatch.setattr(Segmenter, "from_checkpoint", lambda *_, **__: loaded)
    monkeypatch.setattr(outputs, "draw_prediction", lambda *_, out, **__: out.write_bytes(b"x"))
    return command_of(run, tmp_path / "out")


@pytest.fixture
def case(tiny_dataset: Path) -> tuple[object, ...]:
    """Options of one case; the tiny dataset's images hold values of a CT, but no air."""
    return (
        *("--image", tiny_dataset / "p3_image.nii.gz", "--dose", tiny_dataset / "p3_dose.nii.gz"),
        *("--task", "orn"),
    )
