"""`python -m rtsam_jax.train` and `.evaluate` as a user runs them, kills included."""

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

import matplotlib.image
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from rtsam_jax.weights import flatten
from tests.tiny import command_environment, run_module, tiny_config, write_config_file

STEPS, EVERY = 24, 5


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """A folder with a config file and an uninterrupted, evaluated run in `whole`."""
    folder = tmp_path_factory.mktemp("commands")
    cfg = tiny_config(
        tiny_dataset,
        steps=STEPS,
        checkpoint_every=EVERY,
        log_every=8,
        data__balance="task",
        augment__flip_axes=(0, 1),
        augment__affine=0.5,
        augment__noise=0.5,
    )
    write_config_file(folder / "config.py", cfg)
    result = train(folder, "whole")
    assert result.returncode == 0, result.stderr[-3000:]
    (folder / "whole.txt").write_text(result.stdout)
    return folder


def train(folder: Path, run: str, *more: str) -> subprocess.CompletedProcess[str]:
    return run_module("train", "--config", "config.py", f"--config.out={run}", *more, cwd=folder)


def final(run: Path) -> dict[str, np.ndarray]:
    """Every array of the last step: parameters, optimiser, step."""
    step = run / "checkpoints" / str(STEPS)
    return {
        f"{item}.{name}": np.asarray(leaf)
        for item in ("params", "train_state")
        for name, leaf in flatten(ocp.load_checkpointables(step)[item]).items()
    }


def steps_of(run: Path) -> list[int]:
    text = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
    return [json.loads(line)["step"] for line in text.splitlines() if line.endswith("}")]


def test_what_a_run_leaves(place: Path) -> None:
    run = place / "whole"
    assert steps_of(run) == list(range(1, STEPS + 1))
    record = json.loads((run / "run.json").read_text())
    assert record["config"]["steps"] == STEPS and record["versions"]["jax"]
    model = json.loads((run / "model.json").read_text())
    assert [task["name"] for task in model["tasks"]] == ["orn", "ce", "crn"]
    assert model["model"]["preset"] == "test" and model["preprocessing"]["spacing_mm"] == 2
    kept = {int(path.name) for path in (run / "checkpoints").iterdir()}
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").open()]
    saved = [*range(EVERY, STEPS, EVERY), STEPS]
    assert kept == {*saved[-2:], min(saved, key=lambda step: losses[step - 1])}
    progress = [s for s in (place / "whole.txt").read_text().splitlines() if s.startswith("step ")]
    assert [s.split()[1] for s in progress] == [f"{s}/{STEPS}" for s in (8, 16, 24)]


def is_picture(path: Path) -> bool:
    pixels = matplotlib.image.imread(path)
    return min(pixels.shape[:2]) >= 200 and pixels.std() > 0.01


def test_tables_and_figures(place: Path) -> None:
    folder = place / "whole" / "evaluation" / "test"
    with (folder / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["p3_orn", "p4_ce"]
    for row in rows:
        assert all(0 <= float(row[m]) <= 1 for m in ("dice", "iou", "precision", "recall"))
        assert row["hd95_mm"] and row["assd_mm"]
    with (folder / "summary.csv").open() as file:
        summary = {(row["task"], row["method"]) for row in csv.DictReader(file)}
    methods = {"model", "ROI itself", "intensity threshold", "location atlas"}
    assert summary == {(task, m) for task in ("orn", "ce", "all") for m in methods}
    text = (folder / "tables.md").read_text()
    assert text.startswith("# tiny, split test (synthetic)") and "p4_ce" in text
    page = (folder / "report.html").read_text()
    assert page.count('src="data:image/png') == 4 + 1 + 1  # plots, an overlay, the curves
    pictures = list((folder / "figures").iterdir())
    assert len(pictures) == 1 and all(map(is_picture, pictures))
    assert is_picture(place / "whole" / "figures" / "curves.png")
    assert "intensity threshold" in (place / "whole.txt").read_text()


class Killed:
    """A training command that is killed -9 as soon as a condition holds."""

    def __init__(self, folder: Path, run: str, when: Callable[[], bool]):
        command = [sys.executable, "-m", "rtsam_jax.train", "--config", "config.py"]
        with (folder / "killed.txt").open("w") as output:
            process = subprocess.Popen(
                [*command, f"--config.out={run}"],
                cwd=folder,
                env=command_environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 500
        while process.poll() is None and time.monotonic() < deadline:
            if when():
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.0005)
        assert process.wait() == -signal.SIGKILL, (folder / "killed.txt").read_text()[-3000:]


def unfinished(run: Path) -> list[str]:
    folder = run / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    return [name for name in names if not name.isdigit()]


def finished(run: Path) -> int:
    folder = run / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def test_kill_in_a_run_and_in_a_save_then_resume_bit_exactly(place: Path) -> None:
    run = place / "killed"
    # In the middle of the run: some steps past a finished checkpoint.
    Killed(place, "killed", lambda: 0 < finished(run) < len(steps_of(run)))
    assert 0 < finished(run) < STEPS
    # In the middle of a save: its folder still has its temporary name.
    for _ in range(4):
        for name in unfinished(run):  # of the kill before; not to be taken for the next save
            shutil.rmtree(run / "checkpoints" / name)
        Killed(place, "killed", lambda: bool(unfinished(run)))
        if unfinished(run):
            break
    assert unfinished(run), "four kills missed the save"
    resumed = finished(run)
    assert 0 < resumed < STEPS
    result = train(place, "killed")
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"resuming at step {resumed}\n" in result.stdout
    assert unfinished(run) == []
    assert steps_of(run) == list(range(1, STEPS + 1))
    expected, found = final(place / "whole"), final(run)
    assert expected.keys() == found.keys() and len(found) > 300
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    lines = [(place / r / "metrics.jsonl").read_text() for r in ("whole", "killed")]
    assert lines[0] == lines[1]  # to the last digit


def test_a_finished_run_is_only_evaluated_again(place: Path) -> None:
    shutil.copytree(place / "whole", place / "again")
    before = final(place / "again")
    shutil.rmtree(place / "again" / "evaluation")
    result = train(place, "again")
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"resuming at step {STEPS}" in result.stdout and "loss" not in result.stdout
    table = "evaluation/test/cases.csv"
    assert (place / "again" / table).read_text() == (place / "whole" / table).read_text()
    for name, value in final(place / "again").items():
        np.testing.assert_array_equal(before[name], value)
    assert steps_of(place / "again") == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_cpu_as_two_devices(place: Path) -> None:
    """Trained on a mesh of two, evaluated there, and evaluated again on one."""
    options = ["--config.mesh.cpu_devices=2", "--config.steps=2"]
    result = train(place, "split", *options)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "2 steps of 2 on 2 x cpu" in result.stdout
    assert len(json.loads((place / "split" / "run.json").read_text())["devices"]) == 2
    table = place / "split" / "evaluation" / "test" / "cases.csv"
    first = table.read_text()
    result = run_module("evaluate", "--run", "split", cwd=place)
    assert result.returncode == 0, result.stderr[-3000:]
    assert table.read_text() == first


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(place: Path) -> None:
    shutil.copytree(place / "whole", place / "moved")
    shutil.rmtree(place / "moved" / "checkpoints" / str(STEPS))
    result = train(place, "moved", "--config.mesh.cpu_devices=2", "--config.optim.lr=0.5")
    assert result.returncode == 3 and "optim.lr" in result.stderr  # what else differs is told
    result = train(place, "moved", "--config.mesh.cpu_devices=2")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "resuming at step 20\n" in result.stdout and "on 2 x cpu" in result.stdout
    logs = [(place / name / "metrics.jsonl").read_text() for name in ("whole", "moved")]
    whole, moved = ([json.loads(line)["loss"] for line in log.splitlines()] for log in logs)
    assert moved[:20] == whole[:20]
    np.testing.assert_allclose(moved[20:], whole[20:], rtol=0.02)  # sums run in another order


def test_a_bad_held_out_case_stops_a_run_before_its_first_step(
    place: Path, tiny_dataset: Path
) -> None:
    """Then another setting may be given for the same folder."""
    shutil.copytree(tiny_dataset, place / "dataset")
    label = place / "dataset" / "p4_ce_label.nii.gz"
    content = label.read_bytes()
    label.write_bytes(content[:-50])
    options = [f"--config.data.dataset={place / 'dataset'}", "--config.steps=2"]
    result = train(place, "mended", *options)
    assert result.returncode == 3 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error[unreadable_file]: The label ")
    assert str(label) in result.stderr and steps_of(place / "mended") == []
    label.write_bytes(content)
    result = train(place, "mended", *options, "--config.dose.tau=0.6")
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads((place / "mended" / "run.json").read_text())["config"]["dose"]["tau"] == 0.6
    assert steps_of(place / "mended") == [1, 2]


def test_other_settings_in_the_same_folder(place: Path) -> None:
    result = train(place, "whole", "--config.optim.lr=0.5")
    assert result.returncode == 3
    assert result.stderr.splitlines()[-1].startswith("error[output_exists]: ")
    assert "optim.lr" in result.stderr and "Traceback" not in result.stderr


def test_evaluate(place: Path) -> None:
    """Another split, wrong tasks, against another run; nothing in the checkpoints changes."""
    shutil.copytree(place / "whole", place / "other", dirs_exist_ok=True)
    before = sorted(str(p) for p in (place / "other" / "checkpoints").rglob("*"))
    options = ["--run", "other", "--probe", "task", "--against", "whole"]
    result = run_module("evaluate", *options, cwd=place)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "model, task shuffled" in result.stdout
    assert "other - whole" in result.stdout and "+0.000 to +0.000" in result.stdout
    assert f"checkpoint of step {STEPS}" in result.stdout
    assert sorted(str(p) for p in (place / "other" / "checkpoints").rglob("*")) == before
    table = "evaluation/test/cases.csv"
    assert (place / "other" / table).read_text() == (place / "whole" / table).read_text()

    result = run_module("evaluate", "--run", "other", "--split", "train", cwd=place)
    assert result.returncode == 0, result.stderr[-3000:]
    with (place / "other" / "evaluation" / "train" / "cases.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4
    assert "was trained on the images of 4 of 4 cases" in result.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--split", "tset"], "[split_invalid]: "),
        (["--against", "nowhere"], "[missing_file]: "),
        (["--against", "fewer"], "[config_invalid]: "),
        (["--against", "moved"], "[config_invalid]: moved was scored on other files of "),
    ],
)
def test_evaluate_with_a_mistake(place: Path, options: list[str], said: str) -> None:
    rows = (place / "whole" / "evaluation" / "test" / "cases.csv").read_text().splitlines(True)
    for name, kept in (("fewer", rows[:-1]), ("moved", rows)):
        results = place / name / "evaluation" / "test"
        results.mkdir(parents=True, exist_ok=True)
        (results / "cases.csv").write_text("".join(kept))
    (place / "moved" / "evaluation" / "test" / "scored_cases.json").write_text("{}")
    result = run_module("evaluate", "--run", "whole", *options, cwd=place)
    assert result.stderr.splitlines()[-1].startswith(f"error{said}")
    assert "Traceback" not in result.stderr
