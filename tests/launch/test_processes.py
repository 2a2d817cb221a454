"""Who takes part in a run, and how the processes of one hear of each other's ends."""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.errors import ConfigError
from rtsam_jax.flags import LaunchOptions, take_options
from rtsam_jax.training import lifeline as module
from rtsam_jax.training import processes
from rtsam_jax.training.lifeline import Lifeline, connect, listen
from rtsam_jax.training.processes import ADDRESS, COUNT, INDEX, announced, require_alone

WAIT_S = 20
STEP = {"SLURM_STEP_NODELIST": "n[1-4]", "SLURM_PROCID": "2", "SLURM_NTASKS": "8"}


@pytest.mark.parametrize(
    ("environ", "count"),
    [
        ({}, 0),
        ({"SLURM_NTASKS": "8"}, 0),  # a batch script, which starts its steps
        (STEP, 8),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, 1),  # a shell in a job of many
        ({"TPU_WORKER_HOSTNAMES": "a,b,c"}, 3),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, 1),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1", "MEGASCALE_NUM_SLICES": "4"}, 8),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, 2),
        ({"PMI_SIZE": "4"}, 4),
        ({"WORLD_SIZE": "16"}, 16),
        ({"WORLD_SIZE": ""}, 0),
        (STEP | {COUNT: "3"}, 3),  # ours goes first
    ],
)
def test_what_the_environment_says(environ: dict[str, str], count: int) -> None:
    assert announced(environ).processes == count
    if count < 2:
        require_alone(environ)
    else:
        with pytest.raises(ConfigError, match=f"one of {count} processes.* --multihost"):
            require_alone(environ)


def test_a_number_that_is_none() -> None:
    with pytest.raises(ConfigError, match="JAX_NUM_PROCESSES is 'two'"):
        announced({COUNT: "two"})


def test_no_silent_single_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COUNT, "2")
    with pytest.raises(ConfigError, match="add|give --multihost"):
        with processes.processes(multihost=False):
            raise AssertionError("entered")


@pytest.mark.parametrize("missing", [ADDRESS, COUNT, INDEX])
def test_jaxs_own_variables_go_together(missing: str) -> None:
    environ = {ADDRESS: "localhost:1", COUNT: "2", INDEX: "1"}
    assert processes._given(environ)["process_id"] == 1
    del environ[missing]
    with pytest.raises(ConfigError, match=f"lacks {missing}"):
        processes._given(environ)


@given(st.permutations(["--multihost", "--preempted-status=75", "--config", "a.py"]))
@settings(max_examples=10, deadline=None)
def test_launch_options_are_taken_from_anywhere(arguments: list[str]) -> None:
    options, rest = take_options(arguments)
    assert options == LaunchOptions(multihost=True, preempted_status=75)
    assert rest == [a for a in arguments if a in ("--config", "a.py")]


@pytest.mark.parametrize(
    "argument",
    ["--multihost=1", "--preempted-status", "--preempted-status=x", "--preempted-status=126"],
)
def test_a_launch_option_that_is_wrong(argument: str) -> None:
    with pytest.raises(ConfigError, match=argument.split("=")[0]):
        take_options([argument])


class Ends:
    """Lifelines of three processes, all in this one, and what each was told."""

    def __init__(self) -> None:
        port, key, accept = listen(3)
        first: list[dict] = []
        joining = threading.Thread(target=lambda: first.append(accept(WAIT_S)))
        joining.start()
        others = [connect("localhost", port, key, index) for index in (1, 2)]
        joining.join(WAIT_S)
        self.connections = [first[0], *others]
        self.told: list[queue.Queue[str]] = [queue.Queue() for _ in range(3)]
        self.lifelines = [
            Lifeline(peers, told.put)
            for peers, told in zip(self.connections, self.told, strict=True)
        ]

    def die(self, index: int) -> None:
        """What the system does when it kills a process."""
        for connection in self.connections[index].values():
            connection.close()

    def end(self) -> None:
        for index in range(3):
            self.lifelines[index].close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    found = Ends()
    yield found
    found.end()


@pytest.mark.parametrize("failed", [0, 1, 2])
def test_a_failure_is_told_to_all_others(ends: Ends, failed: int) -> None:
    ends.lifelines[failed].fail("the dog ate it")
    for index in {0, 1, 2} - {failed}:
        assert ends.told[index].get(timeout=WAIT_S) == "the dog ate it"
    assert ends.told[failed].empty()


def test_who_ends_for_a_reason_of_its_own_hears_no_other(ends: Ends) -> None:
    for lifeline in ends.lifelines:
        lifeline.ignore()
    for lifeline in ends.lifelines:
        lifeline.fail("the dog ate it")
    for told in ends.told:
        with pytest.raises(queue.Empty):
            told.get(timeout=0.2)


@pytest.mark.parametrize("lost", [1, 2])
def test_a_process_that_dies_is_missed_by_all(ends: Ends, lost: int) -> None:
    other = 3 - lost
    # Closing a connection here wakes no thread that reads it, as the end of a process would.
    ends.connections[0][lost].send_bytes(b"")
    ends.die(lost)
    for index in (0, other):
        assert f"process {lost} ended without" in ends.told[index].get(timeout=WAIT_S)


def test_goodbyes_alarm_nobody(ends: Ends) -> None:
    ends.end()
    for told in ends.told:
        with pytest.raises(queue.Empty):
            told.get(timeout=0.2)
    for index in (0, 1, 2):
        ends.die(index)
    for told in ends.told:
        with pytest.raises(queue.Empty):
            told.get(timeout=0.2)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_stranger_is_not_let_in_and_a_silent_one_keeps_nobody_out(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HELLO_S", 0.2)
    port, key, accept = listen(2)
    joined: list[dict] = []
    joining = threading.Thread(target=lambda: joined.append(accept(WAIT_S)))
    with socket.create_connection((host, port)) as silent:
        joining.start()
        for guess in (b"guess", bytes(len(key)), b"longer" * 10):
            with pytest.raises(OSError):
                connect(host, port, guess, 1, WAIT_S)
        peers = connect(host, port, key, 1, WAIT_S)
        joining.join(WAIT_S)
        assert list(joined[0]) == [1] and silent.fileno() >= 0
    joined[0][1].send_bytes(b"word")
    assert peers[0].recv_bytes() == b"word"


def test_who_does_not_come_is_named() -> None:
    port, key, accept = listen(4)
    peers = connect_later(port, key, 2)
    with pytest.raises(TimeoutError, match="not heard of: 1, 3"):
        accept(0.5)
    peers.join(WAIT_S)


def connect_later(port: int, key: bytes, index: int) -> threading.Thread:
    thread = threading.Thread(target=connect, args=("localhost", port, key, index, WAIT_S))
    thread.start()
    return thread


ENDS = """
import os, sys
from rtsam_jax.errors import ConfigError
from rtsam_jax.training import processes

processes.is_first = lambda: False
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, {stream})
sys.stdout = open(1, "w")
{end}
"""


@pytest.mark.parametrize(
    ("stream", "end", "status"),
    [
        (1, "processes._leave(processes._printed(BrokenPipeError()))", 141),
        (1, "print('x', end=''); processes._leave(processes._printed(ConfigError('no')))", 2),
        (2, "processes._leave(processes._printed(ConfigError('no')))", 1),
        (2, "processes._lost('process 1 failed')", 8),
    ],
)
def test_a_process_that_nobody_reads_still_ends_and_not_with_0(
    stream: int, end: str, status: int
) -> None:
    script = ENDS.format(stream=stream, end=end)
    ended = subprocess.run([sys.executable, "-c", script], timeout=60, env=dict(os.environ))
    assert ended.returncode == status
