"""`python -m rtsam_jax.ablate` as a user runs it, killed, resumed, with a run that fails."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rtsam_jax.ablation.runner import steps_taken
from rtsam_jax.training.stored import read_params
from tests.tiny import (
    command_environment,
    run_module,
    tiny_config,
    write_config_file,
)

STEPS = 30


def config(folder: Path, dataset: Path, **fields: object) -> None:
    cfg = tiny_config(
        dataset,
        steps=STEPS,
        checkpoint_every=5,
        log_every=10,
        figures=0,
        **{"prompt__task": "text", "prompt__language_model": "language_model", **fields},
    )
    write_config_file(folder / "config.py", cfg)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """A folder with a config, a language model and a dataset of its own."""
    pytest.importorskip("transformers", reason="needs the tokenizers of the extra `text`")
    from tests.text.tiny_language_model import write_language_model

    folder = tmp_path_factory.mktemp("ablate")
    shutil.copytree(tiny_dataset, folder / "dataset")
    write_language_model(folder / "language_model")
    config(folder, Path("dataset"), prompt__feature_cache="features")
    return folder


ARGUMENTS = ("--config", "config.py", "--config.out=out", "--studies", "text", "--seeds", "0")


def ablate(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return run_module("ablate", *ARGUMENTS, *more, cwd=folder)


def kill(folder: Path, when: Callable[[], bool]) -> None:
    """Starts the command and kills it outright, it alone, as soon as a condition holds."""
    with (folder / "killed.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "rtsam_jax.ablate", *ARGUMENTS],
            cwd=folder,
            env=command_environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + 300
    while not when() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (folder / "killed.txt").read_text()[-3000:]


def test_a_dry_run_says_what_would_be_done_and_does_nothing(place: Path) -> None:
    result = ablate(place, "--dry-run")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "2 rows in studies (text) are 2 different variants" in result.stdout
    commands = [line for line in result.stdout.splitlines() if line.startswith("python -m")]
    assert len(commands) == 2 and all("--config.out=out/base" in line for line in commands)
    assert not (place / "out").exists()


def test_a_document_without_marks_is_told_before_anything_is_trained(place: Path) -> None:
    (place / "unmarked.md").write_text("words\n")
    result = ablate(place, "--markdown", "unmarked.md", "--section", "tiny")
    assert result.returncode == 3
    assert "unmarked.md has no lines <!-- ablation tiny -->" in result.stderr
    assert not (place / "out").exists()


def test_a_place_that_cannot_be_written_is_told_before_anything_is_trained(place: Path) -> None:
    (place / "file").touch()
    result = ablate(place, "--config.out=file/x")
    assert result.returncode != 0
    assert "error[not_writable]: file/x cannot be written" in result.stderr
    assert "--config.out=FOLDER" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow  # four trainings, and as many starts of JAX
def test_killed_then_resumed_then_a_failure_then_complete(place: Path) -> None:
    base, text = (place / "out" / name / "seed0" for name in ("base", "base-t"))
    kill(place, lambda: 5 < steps_taken(base) < STEPS)
    text.mkdir(parents=True)
    (text / "notes.txt").write_text("somebody's")

    result = ablate(place)
    assert result.returncode == 9, result.stderr[-3000:]
    assert "base-t/seed0 failed: error[output_exists]" in result.stdout
    assert "error[runs_failed]: 1 of 2 runs failed: base-t/seed0 (" in result.stderr
    log = base.with_name("seed0.log").read_text()
    assert log.count("resuming at step") == 1
    steps = [json.loads(line)["step"] for line in (base / "metrics.jsonl").open()]
    assert steps == list(range(1, STEPS + 1))
    assert json.loads(base.with_name("seed0.json").read_text())["resumed"] is True
    table = (place / "out" / "results.md").read_text()
    assert "0 of 1" in table and "Failed: base-t/seed0." in table

    (text / "notes.txt").unlink()
    before = (base / "evaluation" / "test" / "cases.csv").stat().st_mtime_ns
    result = ablate(place, "--markdown", "doc/results.md", "--section", "tiny")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "2 runs, 1 of them to do" in result.stdout
    assert (base / "evaluation" / "test" / "cases.csv").stat().st_mtime_ns == before
    with (place / "out" / "results.csv").open() as file:
        rows = {(row["variant"], row["task"], row["measure"]): row for row in csv.DictReader(file)}
    for name, run in (("base", base), ("base-t", text)):
        with (run / "evaluation" / "test" / "cases.csv").open() as file:
            dice = [float(row["dice"]) for row in csv.DictReader(file)]
        assert float(rows[name, "all", "dice"]["mean"]) == pytest.approx(sum(dice) / len(dice))
    assert "<!-- ablation tiny -->" in (place / "doc" / "results.md").read_text()
    assert (place / "doc" / "images" / "ablation_tiny_fig6.png").is_file()

    result = ablate(place)
    assert result.returncode == 0 and "2 runs, 0 of them to do" in result.stdout
    result = ablate(place, "--config.optim.lr=0.5")
    assert result.returncode == 3
    assert "holds a run with other settings (optim.lr)" in result.stderr


@pytest.mark.slow  # three trainings
def test_all_start_from_a_pretraining_and_keep_its_encoder(place: Path) -> None:
    more = ("--pretrain-steps", "4", "--config.steps=3", "--config.out=started")
    result = ablate(place, *more)
    assert result.returncode == 0, result.stderr[-3000:]
    first = place / "started" / "pretrained" / "seed0"
    assert result.stdout.index("pretrained/seed0") < result.stdout.index("base/seed0")
    assert not (first / "evaluation").exists()
    before = read_params(first)
    encoder = [name for name in before if name.startswith("image_encoder")]
    for name in ("base", "base-t"):
        after = read_params(place / "started" / name / "seed0")
        for one in encoder:
            np.testing.assert_array_equal(after[one], before[one], err_msg=one)
        moved = [one for one in before.keys() & after.keys() if (before[one] != after[one]).any()]
        assert any(one.startswith("mask_decoder") for one in moved)
    table = (place / "started" / "results.md").read_text()
    assert "starts from a pretraining that all share: 4 steps (" in table
    result = ablate(place, *more)
    assert result.returncode == 0 and "2 runs, 0 of them to do" in result.stdout


def test_repeats_of_a_dataset_with_its_own_split_are_refused(place: Path) -> None:
    arguments = ["--config", "config.py", "--studies", "text", "--repeats", "2"]
    result = run_module("ablate", *arguments, cwd=place)
    assert result.returncode == 2
    assert "--repeats would repeat one and the same split" in result.stderr


def test_a_single_runs_folder_is_not_taken(place: Path) -> None:
    (place / "single").mkdir()
    (place / "single" / "run.json").write_text("{}")
    result = run_module("ablate", "--config", "config.py", "--config.out=single", cwd=place)
    assert result.returncode == 3 and "is the folder of a single run" in result.stderr
