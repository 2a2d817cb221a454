"""One run in two processes: equal to one in one, ended by the loss of either, and resumed exactly.

The processes are real, start as a user's do, and are really killed.
"""

from __future__ import annotations

import csv
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from rtsam_jax.errors import ProcessFailed
from tests.launch.runs import MULTIHOST, Command, assert_same, launched, losses, saved, state
from tests.multidevice.test_two_processes import free_port
from tests.text.tiny_language_model import write_language_model
from tests.tiny import tiny_config, write_config_file

# The default suite has `test_two_processes` and the launchers' own tests.
pytestmark = pytest.mark.slow

STEPS, EVERY, BATCH = 24, 3, 4
SECONDS = 20  # in which a process ends after another did: they are few, the machine may be busy
EIGHT = ("--config.batch_size=8", "--config.steps=3", "--config.optim.lr=1e-3")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """A folder with a config, and a run of it by two processes that nothing disturbed.

    They begin without features of the texts: one reads the language model, the others wait.
    """
    folder = tmp_path_factory.mktemp("processes")
    write_language_model(folder / "tiny_bert")
    cfg = tiny_config(
        tiny_dataset,
        steps=STEPS,
        checkpoint_every=EVERY,
        batch_size=BATCH,
        log_every=4,
        evaluate=False,
        prompt__task="text",
        prompt__language_model="tiny_bert",
        prompt__feature_cache="features",
        augment__flip_axes=(0, 1),
        augment__noise=0.5,
        # At p = 0.5 a rounding error moves a voxel across it, and another click is drawn.
        click__threshold=1e-3,
    )
    write_config_file(folder / "config.py", cfg)
    whole = launched(folder, 2, *MULTIHOST, "--config.out=whole")
    assert whole.wait() == 0, whole.output[-3000:]
    return folder


def pair(place: Path, *more: str) -> list[Command]:
    """Two processes of one run, each started by itself, as on two machines."""
    shared = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    return [
        Command(place, [*MULTIHOST, *more], JAX_PROCESS_ID=str(index), **shared)
        for index in range(2)
    ]


def test_the_first_process_writes_and_prints(place: Path) -> None:
    (output,) = place.glob("output-*.txt")
    lines = output.read_text().splitlines()
    assert any("on 2 x cpu in 2 processes; run folder whole" in line for line in lines)
    told = [line for line in lines if "step " in line]
    assert len(told) == STEPS // 4 and all(line.startswith("[0] step ") for line in told)
    assert {line[:4] for line in lines if "Gloo" not in line} == {"[0] "}
    assert len(losses(place / "whole")) == STEPS


@pytest.mark.slow
def test_a_run_whose_processes_are_killed_and_stopped_ends_as_one_that_is_not(place: Path) -> None:
    run, out = place / "disturbed", "--config.out=disturbed"

    for lost in (1, 0):
        commands, before = pair(place, out), saved(run)
        commands[0].when(lambda before=before: before < saved(run) < len(losses(run)))
        commands[lost].process.kill()
        left = commands[1 - lost]
        # Of process 0 jax's own watch may hear as soon as ours; it aborts, and says why as well.
        statuses = [ProcessFailed.exit_status, *([-signal.SIGABRT] if lost == 0 else [])]
        assert left.wait(SECONDS) in statuses, left.output[-3000:]
        said = [f"process {lost} ended without a word", *(["leader task"] if lost == 0 else [])]
        assert any(words in left.output for words in said)
        assert before < saved(run) < STEPS

    commands, before = pair(place, out, "--preempted-status=75"), saved(run)
    commands[0].when(lambda: before < saved(run))
    commands[1].process.terminate()  # only one of them is told
    assert [command.wait() for command in commands] == [75, 75], commands[1].output[-3000:]
    step = saved(run)
    assert len(losses(run)) == step < STEPS
    assert f"SIGTERM: stopped and saved at step {step}; " in commands[0].output

    command = launched(place, 2, *MULTIHOST, out)
    assert command.wait() == 0, command.output[-3000:]
    assert f"[0] resuming at step {step}" in command.output
    assert_same(run, place / "whole")


def test_the_launcher_ends_all_when_one_is_killed(place: Path) -> None:
    command = launched(
        place, 2, "sh", "-c", f"echo $$; exec {' '.join(MULTIHOST)} --config.out=cut"
    )
    command.when(lambda: "run folder cut" in command.output)
    pid = next(line for line in command.output.splitlines() if line.startswith("[1] "))
    os.kill(int(pid.split()[1]), signal.SIGKILL)
    assert command.wait(SECONDS) == 128 + signal.SIGKILL
    assert "launch.local: process 1 ended by SIGKILL; all are ended" in command.output


def test_an_error_of_one_process_is_told_by_all(place: Path) -> None:
    """What only the second lacks; the first would wait for it."""
    wrong = "$([ $JAX_PROCESS_ID = 1 ] && echo --config.data.train_split=nowhere)"
    command = launched(place, 2, "sh", "-c", f"exec {' '.join(MULTIHOST)} {wrong}")
    assert command.wait() == 4
    lines = command.output.splitlines()
    (own,) = [line for line in lines if line.startswith("[1] error[split_invalid]: ")]
    (other,) = [line for line in lines if line.startswith("[0] error[process_failed]: ")]
    assert "process 1 failed: the split 'nowhere'" in other
    assert "launch.local: process 1 ended with exit status 4" in lines[-1]
    assert "Traceback" not in command.output


@pytest.mark.slow
def test_two_times_four_devices_equal_one_time_eight(place: Path) -> None:
    for name, processes in (("one", 1), ("two", 2)):
        options = [*EIGHT, f"--config.out={name}", f"--config.evaluate={processes == 2}"]
        command = launched(place, processes, *MULTIHOST, *options, devices=8 // processes)
        assert command.wait() == 0, command.output[-3000:]
        assert "3 steps of 8 on 8 x cpu" in command.output
    found = losses(place / "two")
    assert np.std(found) > 0.01  # or equality would say little
    np.testing.assert_allclose(found, losses(place / "one"), atol=1e-5)
    assert_close(state(place / "two"), state(place / "one"))
    with (place / "two" / "evaluation" / "test" / "cases.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert {row["case"] for row in rows} == {"p3_orn", "p4_ce"}


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(place: Path) -> None:
    """Saved by two, resumed and saved by one, resumed by two."""
    run, out = place / "moved", "--config.out=moved"
    shutil.copytree(place / "whole", run)
    shutil.rmtree(run / "checkpoints" / str(STEPS))
    before = saved(run)
    assert 0 < before < STEPS - 1

    command = launched(place, 1, *MULTIHOST, out)
    command.when(lambda: f"resuming at step {before}" in command.output)
    command.process.terminate()
    assert command.wait() == 0, command.output[-3000:]
    between = saved(run)
    assert before < between < STEPS

    command = launched(place, 2, *MULTIHOST, out)
    assert command.wait() == 0, command.output[-3000:]
    assert f"resuming at step {between}" in command.output
    np.testing.assert_allclose(losses(run), losses(place / "whole"), rtol=1e-4)
    assert_close(state(run), state(place / "whole"))


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Parameters as close as sums in another order leave them."""
    names = [name for name in expected if name.startswith("params.")]
    apart = sum(float(np.sum((found[n] - expected[n]) ** 2)) for n in names)
    size = sum(float(np.sum(expected[n] ** 2)) for n in names)
    assert names and apart < (1e-4) ** 2 * size
