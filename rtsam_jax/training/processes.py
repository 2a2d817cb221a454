"""One run of several processes: who takes part, who goes first, and how all end together.

Process 0 owns the run folder and whatever is made once: dataset, features, tables, figures. The
others wait for it, train with it, and print nothing.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, NamedTuple, NoReturn, TypeVar

import jax
from jax._src.distributed import global_state  # Orbax as well goes to it for barriers
from jax.experimental.multihost_utils import process_allgather

from rtsam_jax.errors import ConfigError, ProcessFailed, RTSamError, run_command
from rtsam_jax.training.lifeline import Lifeline, connect, listen

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
MPI_COUNTS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "WORLD_SIZE")
# A machine that is lost closes no connection: jax's heartbeats, which need no lock of Python's,
# find it out. The rest is for the lifeline.
_HEARTBEAT_S = 30
_START_S, _SHUTDOWN_S = 300, 60  # for the slowest of them to arrive, and to leave
_BARRIER_MS = 7 * 24 * 3600 * 1000  # evaluation takes what it takes; a failure ends the wait
_WORD_S = 1.0  # in which the process that failed says so, before others take its end for theirs

Result = TypeVar("Result")
Params = TypeVar("Params")


class Announced(NamedTuple):
    """How many processes the environment speaks of, 0 if of none, and in which variable."""

    processes: int
    variable: str


def announced(environ: Mapping[str, str]) -> Announced:
    """What the environment says of the number of processes.

    JAX's own variables as `launch` sets them, a Slurm step, the hosts of a TPU slice as GKE names
    them, Open MPI, MPICH and Intel MPI, and torchrun. A Cloud TPU VM says it to jax alone.

    Raises:
        ConfigError: a number is none.
    """
    if COUNT in environ:
        return Announced(_number(environ, COUNT), COUNT)
    if "SLURM_STEP_NODELIST" in environ and "SLURM_PROCID" in environ:
        # An interactive step has one task, however many its job has.
        name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
        return Announced(_number(environ, name), name)
    for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
        if environ.get(name):
            slices = "MEGASCALE_NUM_SLICES"
            hosts = len(environ[name].split(","))
            return Announced(hosts * (_number(environ, slices) if slices in environ else 1), name)
    for name in MPI_COUNTS:
        if environ.get(name):
            return Announced(_number(environ, name), name)
    return Announced(0, "")


def require_alone(environ: Mapping[str, str]) -> None:
    """Raises `ConfigError` where this is one of several processes: each would do the same work."""
    found = announced(environ)
    if found.processes > 1:
        raise ConfigError(
            f"{found.variable} says that this is one of {found.processes} processes, each of which "
            "would do the whole work by itself: give --multihost to rtsam_jax.train for one run of "
            "them all, or start a single process."
        )


@contextmanager
def processes(*, multihost: bool) -> Iterator[None]:
    """Joins the run's other processes; an error in one ends all, with one sentence each.

    To be entered before any use of a device.

    Raises:
        ConfigError: `multihost` is missing where there are several processes, or given where
            nothing says which.
        ProcessFailed: the others cannot be reached.
    """
    if not multihost:
        require_alone(os.environ)
        if jax.process_count() > 1:  # the workers of a Cloud TPU pod
            raise ConfigError(
                f"this is one of {jax.process_count()} hosts of a pod; add --multihost, and start "
                "the same command on all of them."
            )
        yield
        return
    _join(os.environ)
    if jax.process_count() == 1:
        _require_all(os.environ)
        print("--multihost: this run has one process", flush=True)
        yield
        return
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
    lifeline: Lifeline | None = None
    try:
        _require_all(os.environ)
        lifeline = _tie()
        yield
        barrier("the end")
        lifeline.close()
    except BaseException as error:
        if lifeline is not None:
            if isinstance(error, RTSamError | KeyboardInterrupt | SystemExit):
                # Its own, so that processes which fail alike all leave with that error's status.
                lifeline.ignore()
            # Where another process's end is the cause, the lifeline ends this one meanwhile.
            time.sleep(_WORD_S)
            lifeline.fail(f"process {jax.process_index()} failed: {_sentence(error)}")
        _leave(_printed(error))


def barrier(name: str) -> None:
    """Waits until every process is here; a process that fails ends the wait for all."""
    if jax.process_count() > 1:
        _client().wait_at_barrier(f"rtsam_jax/{next(_barriers)}/{name}", _BARRIER_MS)


_barriers = count()


def first_then_others(work: Callable[[], Result]) -> Result:
    """`work()` in process 0, then in the others, which find done what it leaves on disk."""
    if is_first():
        result = work()
        barrier("first")
        return result
    barrier("first")
    return work()


def whole(tree: Params) -> Params:
    """Arrays as they are, whole, on one device of this process; all processes must call it."""
    if jax.process_count() > 1:
        tree = process_allgather(tree, tiled=True)
    return jax.device_put(tree, jax.local_devices()[0])


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def _client() -> Any:
    """What jax.distributed keeps keys and barriers with."""
    return global_state.client


def _join(environ: Mapping[str, str]) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Its handler would take SIGTERM from `training.stopping`, which agrees in the step itself.
    jax.config.update("jax_enable_preemption_service", False)
    given = _given(environ)
    try:
        jax.distributed.initialize(
            **given,
            cluster_detection_method="deactivate" if given else None,
            initialization_timeout=_START_S,
            heartbeat_timeout_seconds=_HEARTBEAT_S,
            shutdown_timeout_seconds=_SHUTDOWN_S,
        )
    except (ValueError, TypeError) as cause:
        raise ConfigError(
            f"--multihost was given, but it cannot be found out which processes belong together "
            f"({_line(cause)}); start them with one of launch/, or set {ADDRESS}, {COUNT} and "
            f"{INDEX}."
        ) from cause
    except RuntimeError as cause:
        raise ProcessFailed(
            f"the other processes of the run were not found within {_START_S} s "
            f"({_line(cause)}); see that all were started and reach each other."
        ) from cause


def _require_all(environ: Mapping[str, str]) -> None:
    found = announced(environ).processes
    if found and jax.process_count() != found:
        raise ConfigError(
            f"the environment speaks of {found} processes, but jax found {jax.process_count()}; "
            "start one per host, or per GPU."
        )


def _given(environ: Mapping[str, str]) -> dict[str, Any]:
    """What the variables above say; nothing where jax is to find out by itself."""
    if COUNT not in environ and INDEX not in environ:
        return {}
    if missing := [name for name in (ADDRESS, COUNT, INDEX) if name not in environ]:
        raise ConfigError(
            f"the environment lacks {' and '.join(missing)}; {ADDRESS}, {COUNT} and {INDEX} go "
            "together."
        )
    return {
        "coordinator_address": environ[ADDRESS],
        "num_processes": _number(environ, COUNT),
        "process_id": _number(environ, INDEX),
    }


def _number(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError as cause:
        raise ConfigError(
            f"the environment variable {name} is {environ[name]!r}, but it must be a number."
        ) from cause


def _tie() -> Lifeline:
    """Connects this process to process 0."""
    client, place = _client(), "rtsam_jax/lifeline"
    if is_first():
        port, key, accept = listen(jax.process_count())
        client.key_value_set(place, f"{_own_host()} {port} {key.hex()}")
        try:
            return Lifeline(accept(_START_S), _lost)
        except TimeoutError as cause:
            raise ProcessFailed(
                f"port {port} of process 0 was not reached by all others within {_START_S} s "
                f"({cause}); let the processes of a run connect to each other on all ports."
            ) from cause
    host, port, key = client.blocking_key_value_get(place, _START_S * 1000).split()
    try:
        peers = connect(host, int(port), bytes.fromhex(key), jax.process_index(), _START_S)
    except OSError as cause:
        raise ProcessFailed(
            f"port {port} of {host} cannot be reached ({cause.strerror or cause}); let the "
            "processes of a run connect to each other on all ports."
        ) from cause
    return Lifeline(peers, _lost)


def _own_host() -> str:
    """This machine, as the others reach it: all of them reach the coordinator's, mostly this one.

    On TPUs jax numbers processes by the topology: the first need not be the coordinator.
    """
    host, port = str(global_state.coordinator_address).rsplit(":", 1)
    host = host.strip("[]")
    if global_state.process_id == 0:
        return host
    with socket.create_connection((host, int(port)), _START_S) as facing:
        own = str(facing.getsockname()[0])
    return host if ipaddress.ip_address(own).is_loopback else own


def _lost(sentence: str) -> None:
    line = f"error[{ProcessFailed.code}]: {sentence}; mend that, then start all processes again.\n"
    try:
        os.write(sys.stderr.fileno(), line.encode())
    finally:  # even where nobody listens
        _leave(ProcessFailed.exit_status)


def _leave(status: int) -> NoReturn:
    """Ends the process without jax's farewells, which would wait for those that are gone."""
    try:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # nobody reads it any more
                stream.flush()
        if is_first():
            # With it goes the service that the others are tied to: they first get to say why.
            time.sleep(_WORD_S)
    finally:
        os._exit(status)


def _printed(error: BaseException) -> int:
    """Prints an error as a command does, and gives the command's exit status.

    It is 0 only where that was asked for (`stopping.leave_on_sigterm`).
    """
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code

    def fail() -> NoReturn:
        raise error

    try:
        run_command(fail)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
        # A command whose reader has enough ends with 0; a run has then not been taken to its end.
        return status or 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 130
    except BaseException:
        with suppress(OSError):  # nobody reads it any more
            traceback.print_exc()
    return 1


def _sentence(error: BaseException) -> str:
    text = _line(error).rstrip(".")
    return text if isinstance(error, RTSamError) else f"{type(error).__name__}: {text}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
