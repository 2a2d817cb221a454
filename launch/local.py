"""Starts N processes of one run on this machine: `python -m launch.local --processes 2 -- COMMAND`.

Each has a number of CPU devices to itself, or the GPU of its index, and talks to the others over a
local port, as the hosts of a pod would. Their output comes line by line with the process's number
before it. SIGTERM and SIGINT are handed on to all, SIGHUP as SIGTERM; when one ends badly, or their
output cannot be written any more, all end.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import IO

from launch.command_line import Parser
from rtsam_jax.errors import ConfigError, MissingFile, NotWritable, ProcessFailed, run_command
from rtsam_jax.training.processes import ADDRESS, COUNT, INDEX

LOCAL_DEVICES = "JAX_LOCAL_DEVICE_IDS"  # of GPUs; jax heeds it on no other kind
_WORD_S = 5  # in which the others end by themselves, saying why
_TERM_S = 5  # between SIGTERM and SIGKILL after that
_POLL_S = 0.05


def environments(processes: int, devices: int, port: int, base: dict[str, str]) -> list[dict]:
    """The environment of each process.

    Args:
        devices: of a process, simulated on the CPU; 0: the ones it finds, and of several GPUs the
            one of its index, since two processes cannot share one.
        base: what they share.
    """
    shared = {ADDRESS: f"localhost:{port}", COUNT: str(processes)}
    own = [{INDEX: str(index)} for index in range(processes)]
    if devices:
        shared |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    elif processes > 1:
        own = [{**each, LOCAL_DEVICES: each[INDEX]} for each in own]
    return [{**base, **shared, **each} for each in own]


def free_port() -> int:
    """A port of this machine that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def ended(status: int) -> str:
    """How a process ended, in words.

    Args:
        status: as `Popen.returncode`: negative for a signal.
    """
    return f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"


class Group:
    """The processes of a run with all that they start, and what they print."""

    def __init__(self) -> None:
        self._members: list[subprocess.Popen[bytes]] = []
        self._readers: list[threading.Thread] = []
        self._told = 0  # the signal handed on first
        self._unwritten: OSError | None = None

    def start(self, command: Sequence[str], environs: Sequence[dict[str, str]]) -> None:
        """Starts a process in each environment.

        Raises:
            MissingFile: the system cannot start it.
        """
        for index, environ in enumerate(environs):
            try:
                # Sessions of their own: a terminal's Ctrl-C would reach them twice.
                member = subprocess.Popen(
                    command,
                    env=environ,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as cause:
                self.signal(signal.SIGKILL)
                raise MissingFile(
                    f"{command[0]} cannot be started ({cause.strerror}); name a program after --."
                ) from cause
            reader = threading.Thread(
                target=self._copy, args=(member.stdout, f"[{index}] ".encode()), daemon=True
            )
            reader.start()
            self._members.append(member)
            self._readers.append(reader)
            if self._told:  # while it was started
                self.signal(self._told)

    def hand_on(self, number: int, frame: FrameType | None) -> None:
        """A signal's handler: tells all. A lost terminal as well is a reason to save and stop."""
        number = signal.SIGTERM if number == signal.SIGHUP else number
        self._told = self._told or number
        self.signal(number)

    def signal(self, number: int) -> None:
        """Signals every process and what it started: a shell hands nothing on."""
        for member, reader in zip(self._members, self._readers, strict=False):
            if _lives(member, reader):
                with suppress(ProcessLookupError):
                    os.killpg(member.pid, number)

    def wait(self, seconds: float) -> bool:
        """Waits until all have ended; False where `seconds` were not enough."""
        deadline = time.monotonic() + seconds
        while any(map(_lives, self._members, self._readers)):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def run(self) -> int:
        """To the end of all; returns 0, or the exit status of the one that failed first.

        A process that ended because of another says so by its status, and is not the first.

        Raises:
            NotWritable: what they print could not be written to the end; they were told to stop.
        """
        while not self.wait(_POLL_S):
            if self._unwritten and not self._told:
                self.hand_on(signal.SIGTERM, None)
            if any(map(self._failed, self._members, self._readers)):
                self._end()
                break
        if self._unwritten:
            raise NotWritable(
                f"what the processes print cannot be written ({self._unwritten.strerror}), and all "
                "were told to stop; keep their output in a file with room for it."
            )
        statuses = [member.returncode for member in self._members]
        failed = [index for index, status in enumerate(statuses) if status]
        if not failed:
            return 0
        own = [index for index in failed if statuses[index] != ProcessFailed.exit_status]
        first = (own or failed)[0]
        _say(f"process {first} ended {ended(statuses[first])}; all are ended")
        return statuses[first] if statuses[first] > 0 else 128 - statuses[first]

    def _failed(self, member: subprocess.Popen[bytes], reader: threading.Thread) -> bool:
        status = member.poll()
        # A shell dies of the signal at once, while the training in it saves.
        return bool(status) and not (status == -self._told and reader.is_alive())

    def _end(self) -> None:
        """Ends all; they first have time to say why they end."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.wait(_WORD_S if number == signal.SIGTERM else _TERM_S):
                return
            self.signal(number)
        self.wait(_TERM_S)

    def _copy(self, stream: IO[bytes], prefix: bytes) -> None:
        for line in stream:
            if self._unwritten:
                continue  # the pipe is emptied all the same: a full one would stop the process
            try:
                # One write per line, so that the lines of several processes do not mix.
                os.write(sys.stdout.fileno(), prefix + line.rstrip(b"\n") + b"\n")
            except OSError as cause:
                self._unwritten = cause


def _lives(member: subprocess.Popen[bytes], reader: threading.Thread) -> bool:
    """Whether a process runs, or what it started and left behind still may print."""
    return member.poll() is None or reader.is_alive()


def _say(text: str) -> None:
    with suppress(OSError):  # stderr may be gone, and the exit status is what counts
        print(f"launch.local: {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Entry point of the command."""
    parser = Parser("local", __doc__ or "", "COMMAND, with --multihost")
    parser.add_argument("--processes", type=int, required=True, help="how many to start")
    parser.add_argument(
        "--devices-per-process",
        type=int,
        default=0,
        help="CPU devices that each simulates; 0: what it finds, of several GPUs one each",
    )
    parser.add_argument("--port", type=int, default=0, help="to meet at; 0: a free one")
    arguments = parser.read(sys.argv[1:])
    if arguments.processes < 1 or arguments.devices_per_process < 0:
        raise ConfigError("--processes must be at least 1 and --devices-per-process at least 0.")
    command = arguments.rest
    if not command:
        raise ConfigError("no command was given; end with -- python -m rtsam_jax.train ...")
    port = arguments.port or free_port()
    environs = environments(
        arguments.processes, arguments.devices_per_process, port, dict(os.environ)
    )
    if arguments.dry_run:
        for environ in environs:
            own = [f"{k}={v}" for k, v in environ.items() if os.environ.get(k) != v]
            print(shlex.join(["env", *own, *command]))
        return
    group = Group()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # nohup has the launcher outlive its terminal.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, group.hand_on)
    group.start(command, environs)
    sys.exit(group.run())


if __name__ == "__main__":
    run_command(main)
