"""The local launcher by its processes' ends: signals, shells, lost output, a missing program."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.local import ended, environments
from rtsam_jax.errors import NotWritable
from tests.tiny import command_environment

WAIT_S = 60  # for what takes a second
# Prints until it is told to stop, takes a moment to save, and leaves with a status of its own.
TALKER = """\
import os, pathlib, signal, sys, time

def save(*_):
    time.sleep(0.3)
    pathlib.Path("saved" + os.environ["JAX_PROCESS_ID"]).touch()
    os._exit(0)

signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
while True:
    print("x" * 1000, flush=True)
    time.sleep(float(sys.argv[1]))
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the launcher with two processes in a folder that holds `talker.py`."""
    (tmp_path / "talker.py").write_text(TALKER)

    def launch(*command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "launch.local", "--processes=2", "--", *command],
            cwd=tmp_path,
            env=command_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A test run under nohup would hand its own neglect down.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )

    return launch


def both_talk(launcher: subprocess.Popen[str]) -> None:
    assert launcher.stdout is not None
    heard = ""
    while not ("[0] x" in heard and "[1] x" in heard):
        heard += (line := launcher.stdout.readline())
        assert line, launcher.communicate()[1]


def saved(folder: Path) -> set[str]:
    return {file.name for file in folder.glob("saved*")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_all_are_told_to_stop(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: signal.Signals
) -> None:
    launcher = start(sys.executable, "talker.py", "0.01")
    both_talk(launcher)
    launcher.send_signal(number)
    _, said = launcher.communicate(timeout=WAIT_S)
    assert launcher.returncode == 0, said
    assert saved(tmp_path) == {"saved0", "saved1"}


def test_what_runs_in_a_shell_is_told_and_waited_for(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    launcher = start("sh", "-c", f"{sys.executable} talker.py 0.01; exit 0")
    both_talk(launcher)
    launcher.terminate()
    launcher.communicate(timeout=WAIT_S)
    assert saved(tmp_path) == {"saved0", "saved1"}


def test_when_nobody_reads_on_all_save_and_stop(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    launcher = start(sys.executable, "talker.py", "0")  # faster than any pipe holds
    both_talk(launcher)
    assert launcher.stdout is not None and launcher.stderr is not None
    launcher.stdout.close()
    assert launcher.wait(timeout=WAIT_S) == NotWritable.exit_status
    assert saved(tmp_path) == {"saved0", "saved1"}
    (line,) = launcher.stderr.read().splitlines()
    assert line.startswith("error[not_writable]: what the processes print cannot be written")


def test_a_program_that_is_not_there(start: Callable[..., subprocess.Popen[str]]) -> None:
    _, said = start("./nothing").communicate(timeout=WAIT_S)
    assert said.startswith("error[missing_file]: ./nothing cannot be started")


def test_local_processes_are_told_apart() -> None:
    one, two = environments(2, 4, 1234, {"HOME": "here"})
    assert {key for key in one if one[key] != two[key]} == {"JAX_PROCESS_ID"}
    assert one["JAX_COORDINATOR_ADDRESS"] == "localhost:1234" and one["HOME"] == "here"
    assert one["JAX_NUM_CPU_DEVICES"] == "4"


def test_of_several_gpus_each_process_takes_one() -> None:
    found = environments(3, 0, 1, {})
    assert [each["JAX_LOCAL_DEVICE_IDS"] for each in found] == ["0", "1", "2"]
    assert not any("JAX_PLATFORMS" in each for each in found)  # the devices it finds
    (alone,) = environments(1, 0, 1, {})
    assert "JAX_LOCAL_DEVICE_IDS" not in alone  # all of them


@pytest.mark.parametrize(("status", "words"), [(-9, "by SIGKILL"), (3, "with exit status 3")])
def test_how_a_process_ended(status: int, words: str) -> None:
    assert ended(status) == words
