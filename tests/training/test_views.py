"""Runs on fixed views: what a cache changes, what it keeps, and what a kill leaves of it."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from flax import nnx

from rtsam_jax import train
from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.shards import only_one
from rtsam_jax.data.views import (
    ENCODED,
    FixedViews,
    StoredViews,
    Turn,
    ViewSettings,
    views_root,
)
from rtsam_jax.errors import CacheDamaged, ConfigError, NotWritable
from rtsam_jax.models.presets import get_spec
from rtsam_jax.text.prompt_set import prompt_set
from rtsam_jax.training import kept_views
from rtsam_jax.training.kept_views import ViewEncoder, keep_views, read_crops
from rtsam_jax.training.state import Built
from rtsam_jax.training.stopping import RunStopped
from tests.tiny import REPOSITORY, TRAIN, command_environment, tiny_config, write_config_file
from tests.training.conftest import Training, make_training

PER_CASE = 3
TOTAL = PER_CASE * len(TRAIN)


def view_config(dataset: Path, weights: Path, **fields: object) -> ExperimentConfig:
    cfg = tiny_config(
        dataset,
        model__freeze_encoder=True,
        model__checkpoint=str(weights),
        views__per_case=PER_CASE,
        augment__flip_axes=(0,),
        augment__noise=0.5,
        dose__box_jitter=2,
        evaluate=False,
    )
    for name, value in fields.items():
        *sections, field = name.split("__")
        setattr(getattr(cfg, sections[0]) if sections else cfg, field, value)
    return cfg


Made = tuple[Training, ViewEncoder]


@pytest.fixture(scope="module")
def made(tiny_dataset: Path, weights: Path) -> Made:
    """The encoder is compiled once: what is kept of a view, and where, is nothing to it."""
    training = make_training(view_config(tiny_dataset, weights, views__cache="float32"))
    return training, ViewEncoder(training.build(), training.cfg, training.mesh)


class Kept:
    """A cache in a folder of its own, and how many views its encoder was asked for."""

    def __init__(self, made: Made, folder: Path, **fields: object):
        training, encoder = made
        self.training, self.encoded = training, 0
        cfg = dataclasses.replace(training.cfg)
        cfg.views = dataclasses.replace(cfg.views, folder=str(folder))
        for name, value in fields.items():
            setattr(cfg.views, name, value)
        self.cfg = cfg
        prompts = prompt_set(cfg, training.data).training
        names = [case.id for case in training.data.train]
        size = get_spec(cfg.model.preset).image_size
        self.views = FixedViews.from_config(cfg, names, [prompts[name] for name in names], size)
        self.encoder = encoder

    def keep(self, check: Callable[[], None] | None = None) -> StoredViews:
        def encoder(batch: Any) -> Any:
            self.encoded += int(np.sum(batch.weight))
            return self.encoder(batch)

        encoder.digest = self.encoder.digest  # type: ignore[attr-defined]
        cases, mesh = self.training.cases, self.training.mesh
        return keep_views(encoder, self.views, cases, self.cfg, mesh=mesh, check=check)  # type: ignore[arg-type]

    @property
    def folder(self) -> Path:
        settings = ViewSettings.from_config(self.cfg, self.encoder.digest)
        return Path(views_root(self.cfg) / settings.digest[:16])


def every_view(stored: StoredViews) -> Any:
    return stored.read([Turn(case, number) for case in range(len(TRAIN)) for number in range(3)])


def same(a: Any, b: Any) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def logged(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def run(dataset: Path, weights: Path, out: Path, **fields: object) -> tuple[list, Built]:
    built = train.run(view_config(dataset, weights, out=str(out), steps=4, **fields))
    return logged(out), built


def test_a_float32_cache_changes_no_bit_and_bfloat16_little(
    tiny_dataset: Path, weights: Path, tmp_path: Path
) -> None:
    """In two parts a step, one of them with a row that does not count."""
    dataset = tmp_path / "dataset"
    shutil.copytree(tiny_dataset, dataset)
    done: dict[str, Any] = {}
    parts = {"batch_size": 3, "accumulate": 2}
    for cache in ("none", "float32", "bfloat16"):
        done[cache] = run(dataset, weights, tmp_path / cache, views__cache=cache, **parts)
    log, built = done["none"]
    assert len({line["loss"] for line in log}) == 4
    assert log == done["float32"][0]
    assert same(built.state, done["float32"][1].state)
    rounded = done["bfloat16"][0]
    losses = [np.array([line["loss"] for line in lines]) for lines in (log, rounded)]
    assert not np.array_equal(*losses)
    np.testing.assert_allclose(*losses, rtol=1e-2)


def test_views_are_read_as_they_were_encoded_and_only_once(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Kept(made, tmp_path)
    first = every_view(kept.keep())
    assert kept.encoded == TOTAL
    assert f"encoded {TOTAL}/{TOTAL} views, 0:00:00 left" in capsys.readouterr().out
    assert same(first, every_view(kept.keep())) and kept.encoded == TOTAL
    assert capsys.readouterr().out == ""
    turns = [Turn(1, 2), Turn(3, 0)]
    batch = read_crops(kept.views, made[0].cases, kept.cfg)(turns)
    with jax.set_mesh(made[0].mesh):
        fresh = jax.device_get(kept.encoder(batch))
    assert same(fresh, kept.keep().read(turns))


def test_more_views_encode_only_what_is_new(made: Made, tmp_path: Path) -> None:
    few = Kept(made, tmp_path, per_case=2)
    few.keep()
    more = Kept(made, tmp_path)
    more.keep()
    assert few.encoded == 2 * len(TRAIN) and more.encoded == len(TRAIN)
    fresh = Kept(made, tmp_path / "fresh")
    assert same(every_view(more.keep()), every_view(fresh.keep()))


def test_one_weight_or_the_arithmetic_is_another_cache(made: Made) -> None:
    training, encoder = made
    cfg, mesh, built = training.cfg, training.mesh, training.build()

    def nudged(path: tuple, leaf: Any) -> Any:
        if path[-2:] != ("proj", "bias") or path[1:3] != ("blocks", 0):
            return leaf
        return leaf.replace(leaf.get_value().at[0].add(2**-20))

    flat = {path: nudged(path, leaf) for path, leaf in nnx.to_flat_state(built.frozen)}
    other = dataclasses.replace(built, frozen=nnx.from_flat_state(flat))
    short = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, compute_dtype="bfloat16"))
    digests = [ViewEncoder(*each, mesh).digest for each in ((other, cfg), (built, short))]
    assert len({encoder.digest, *digests}) == 3
    assert ViewEncoder(built, cfg, mesh).digest == encoder.digest


def test_a_signal_keeps_what_was_encoded(made: Made, tmp_path: Path) -> None:
    kept, calls = Kept(made, tmp_path), []

    def check() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RunStopped(signal.SIGTERM, 0)

    with pytest.raises(RunStopped):
        kept.keep(check)
    again = Kept(made, tmp_path)
    again.keep()
    assert again.encoded == TOTAL - 2 * kept.cfg.batch_size


KILLED = """
import os, signal, sys
import grain
from rtsam_jax import train
from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data import shards
from rtsam_jax.training import kept_views
import json

grain.config.update("py_debug_mode", False)
kept_views._LARGEST_SHARD = 2
written = []
move = os.replace

def replace(source, target):
    if str(target).endswith(".array_record") and "views" in str(target):
        written.append(target)
        if len(written) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    move(source, target)

os.replace = replace
train.run(ExperimentConfig.from_dict(json.loads(sys.argv[1])))
"""


def test_a_killed_command_leaves_nothing_half_and_is_taken_up_again(
    made: Made, tmp_path: Path
) -> None:
    """The process is killed when its third shard is written but not yet in its place."""
    kept = Kept(made, tmp_path / "views")
    cfg = dataclasses.replace(kept.cfg, out=str(tmp_path / "run"))
    command = [sys.executable, "-c", KILLED, cfg.to_json()]
    ended = subprocess.run(command, env=command_environment(), capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    halves = [path for path in kept.folder.iterdir() if path.name.endswith(".part")]
    assert len(halves) == 1 and len(list(kept.folder.glob("*.array_record"))) == 2
    stored = kept.keep()
    assert kept.encoded == TOTAL - 4
    names = {path.name for path in kept.folder.iterdir()} - {".lock", "settings.json"}
    assert {name.partition(".")[2] for name in names} == {"array_record", "json"}
    fresh = Kept(made, tmp_path / "fresh")
    assert same(every_view(stored), every_view(fresh.keep()))


def test_a_full_disk_is_said_and_made_good(made: Made, tmp_path: Path) -> None:
    kept = Kept(made, tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error in place of the signal
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
        with pytest.raises(NotWritable, match=r"the encoded views in .*--config.views.folder"):
            kept.keep()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert {path.name for path in kept.folder.iterdir()} == {".lock", "settings.json"}
    kept.keep()
    assert kept.encoded == 2 * TOTAL


def test_who_waited_for_another_command_encodes_nothing(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other command does all its work while this one waits for the lock."""
    waiting, other = Kept(made, tmp_path), Kept(made, tmp_path)

    @contextmanager
    def lock(*_: object) -> Iterator[None]:
        monkeypatch.undo()
        other.keep()
        yield

    monkeypatch.setattr(kept_views, "only_one", lock)
    assert same(every_view(waiting.keep()), every_view(other.keep()))
    assert (waiting.encoded, other.encoded) == (0, TOTAL)


def test_a_signal_ends_the_wait_for_another_command(made: Made, tmp_path: Path) -> None:
    kept = Kept(made, tmp_path)

    def check() -> None:
        raise RunStopped(signal.SIGTERM, 0)

    kept.folder.mkdir(parents=True)
    with only_one(epath.Path(kept.folder), ENCODED), pytest.raises(RunStopped):
        kept.keep(check)
    assert kept.encoded == 0


@pytest.mark.parametrize("others", [True, False])
def test_who_does_not_see_what_others_wrote_is_told_of_the_folder(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: bool
) -> None:
    """Of what a process wrote itself, another command removed it."""
    kept, write = Kept(made, tmp_path), kept_views._write

    def not_seen(*arguments: Any) -> set[Turn]:
        written = write(*arguments)
        for shard in kept.folder.glob("*.array_record"):
            shard.unlink()
        return set() if others else written

    monkeypatch.setattr(kept_views, "_write", not_seen)
    error, said = (ConfigError, "all of them share") if others else (CacheDamaged, "were removed")
    with pytest.raises(error, match=said):
        kept.keep()


def test_a_damaged_shard_is_encoded_again(made: Made, tmp_path: Path) -> None:
    kept = Kept(made, tmp_path)
    first = every_view(kept.keep())
    (shard,) = kept.folder.glob("*.array_record")
    os.truncate(shard, 1000)
    assert same(first, every_view(kept.keep())) and kept.encoded == 2 * TOTAL


@pytest.mark.slow
def test_two_processes_share_the_encoding_and_one_finds_all(
    tiny_dataset: Path, weights: Path, tmp_path: Path
) -> None:
    kept = {"views__cache": "float32", "views__folder": str(tmp_path / "views")}

    def start(name: str, *launch: str) -> tuple[list[float], str]:
        cfg = view_config(tiny_dataset, weights, out=str(tmp_path / name), **kept)
        config = write_config_file(tmp_path / "config.py", cfg)
        command = [sys.executable, *launch, "-m", "rtsam_jax.train", "--config", str(config)]
        command += ["--multihost"] if launch else []
        environment = command_environment()
        ended = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        return [line["loss"] for line in logged(tmp_path / name)], ended.stdout

    pair = ("--processes", "2", "--devices-per-process", "1", "--", sys.executable)
    shared, said = start("two", "-m", "launch.local", *pair)
    assert f"encoded {TOTAL}/{TOTAL} views" in said
    indices = [p for p in (tmp_path / "views").glob("*/*.json") if p.stem != "settings"]
    assert [len(json.loads(p.read_text())["records"]) for p in indices] == [TOTAL // 2] * 2
    alone, said = start("one")
    assert "encoded" not in said
    np.testing.assert_allclose(shared, alone, rtol=1e-5)
