"""Starts N processes of one run on this machine: `python -m launch.local --processes 2 -- COMMAND`.

Each gets its own number of CPU devices (or GPUs, as the machine has them) and talks to the others
over a local port, as the hosts of a pod would. Their output comes line by line with the process's
number before it. SIGTERM and SIGINT are handed on to all; when one ends badly, all end.
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
from typing import IO

from launch.command_line import Parser
from rtsam_jax.errors import ConfigError, ProcessFailed, run_command
from rtsam_jax.training.processes import ADDRESS, COUNT, INDEX

_WORD_S = 5  # in which the others end by themselves, saying why
_TERM_S = 5  # between SIGTERM and SIGKILL after that
_POLL_S = 0.05


def environments(processes: int, devices: int, port: int, base: dict[str, str]) -> list[dict]:
    """The environment of each process.

    Args:
        devices: of a process, simulated on the CPU; 0: the ones it finds.
        base: what they share.
    """
    shared = {ADDRESS: f"localhost:{port}", COUNT: str(processes)}
    if devices:
        shared |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return [{**base, **shared, INDEX: str(index)} for index in range(processes)]


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
    """The processes of a run, and what they print."""

    def __init__(self, command: Sequence[str], environs: Sequence[dict[str, str]]):
        # Sessions of their own: a terminal's Ctrl-C would reach them twice.
        self.members = [
            subprocess.Popen(
                command,
                env=environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            for environ in environs
        ]
        self._readers = [
            threading.Thread(target=_copy, args=(member.stdout, f"[{index}] ".encode()))
            for index, member in enumerate(self.members)
        ]
        for reader in self._readers:
            reader.start()

    def signal(self, number: int) -> None:
        for member in self.members:
            if member.poll() is None:
                member.send_signal(number)

    def wait(self, seconds: float) -> bool:
        """Waits until all have ended; False where `seconds` were not enough."""
        deadline = time.monotonic() + seconds
        while any(member.poll() is None for member in self.members):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def run(self) -> int:
        """To the end of all; returns 0, or the exit status of the one that failed first.

        A process that ended because of another says so by its status, and is not the first.
        """
        while not any(status := [member.poll() for member in self.members]):
            if None not in status:
                break
            time.sleep(_POLL_S)
        else:
            if not self.wait(_WORD_S):
                self.signal(signal.SIGTERM)
                if not self.wait(_TERM_S):
                    self.signal(signal.SIGKILL)
                    self.wait(_TERM_S)
        for reader in self._readers:
            reader.join()
        statuses = [member.returncode for member in self.members]
        failed = [index for index, status in enumerate(statuses) if status]
        if not failed:
            return 0
        own = [index for index in failed if statuses[index] != ProcessFailed.exit_status]
        first = (own or failed)[0]
        _say(f"process {first} ended {ended(statuses[first])}; all are ended")
        return statuses[first] if statuses[first] > 0 else 128 - statuses[first]


def _copy(stream: IO[bytes], prefix: bytes) -> None:
    for line in stream:
        # One write per line, so that the lines of several processes do not mix.
        os.write(sys.stdout.fileno(), prefix + line.rstrip(b"\n") + b"\n")


def _say(text: str) -> None:
    print(f"launch.local: {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Entry point of the command."""
    parser = Parser("local", __doc__ or "", "COMMAND, with --multihost")
    parser.add_argument("--processes", type=int, required=True, help="how many to start")
    parser.add_argument(
        "--devices-per-process",
        type=int,
        default=0,
        help="CPU devices that each simulates; 0: the devices it finds",
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
    group = Group(command, environs)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: group.signal(number))
    sys.exit(group.run())


if __name__ == "__main__":
    run_command(main)
