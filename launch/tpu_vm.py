"""Runs on a Cloud TPU VM: `python -m launch.tpu_vm start --name TPU --zone ZONE -- --config ...`.

`install` copies this repository to every host and installs it, `start` starts one process per host,
which goes on when this machine is switched off, `log` shows what the first host prints, `stop`
ends the run, saved.
"""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from pathlib import Path

from launch.command_line import Parser, perform, training_command
from rtsam_jax.errors import run_command

REPOSITORY = Path(__file__).resolve().parents[1]
ACTIONS = ("install", "start", "log", "stop")
PYTHONS = ("3.11", "3.12")  # that constraints/ is for


def parser() -> Parser:
    """The flags."""
    found = Parser("tpu_vm", __doc__ or "")
    found.add_argument("action", choices=ACTIONS, help="what to do; see above")
    found.add_argument("--name", required=True, help="of the TPU VM")
    found.add_argument("--zone", required=True, help="of the TPU VM, us-central2-b say")
    found.add_argument("--project", default="", help="empty: gcloud's own setting")
    found.add_argument("--source", default="rtsam_jax", help="folder of the repository there")
    found.add_argument(
        "--python", choices=PYTHONS, default=PYTHONS[-1], help="that uv installs there"
    )
    found.add_argument(
        "--shared", default="/mnt/rtsam", help="folder that all hosts have mounted; runs go there"
    )
    found.add_argument("--job", default="rtsam", help="names the files of process id and output")
    return found


def remote_script(arguments: Namespace) -> str:
    """What every host runs, in a shell.

    Raises:
        ConfigError: of the training's arguments.
    """
    source, job = shlex.quote(arguments.source), shlex.quote(arguments.job)
    if arguments.action == "install":
        # The system's Python may be older than ours, and without venv.
        constraints = f"constraints/py{arguments.python.replace('.', '')}.txt"
        return (
            f"cd {source} && python3 -m pip install --quiet --user uv && "
            f"python3 -m uv venv --quiet --allow-existing --python {arguments.python} .venv && "
            f'python3 -m uv pip install --quiet --python .venv -c {constraints} -e ".[tpu,text]"'
        )
    if arguments.action == "log":
        return f"tail -n 40 -F {job}.log"
    # An id that a run left behind may by now be another program's.
    runs = f'grep -qs rtsam_jax.train "/proc/$(cat {job}.pid 2>/dev/null)/cmdline"'
    if arguments.action == "stop":
        # On a host that is told late the run may have ended with the others.
        return (
            f'if {runs}; then kill -TERM "$(cat {job}.pid)" 2>/dev/null || true; '
            f"else echo {job} does not run here; fi"
        )
    command = training_command(".venv/bin/python", arguments.rest, shared=arguments.shared)
    # Process 0 alone writes what was compiled: where the others find it, they need not compile.
    command = ["env", f"JAX_COMPILATION_CACHE_DIR={arguments.shared}/compiled", *command]
    shared = shlex.quote(arguments.shared)
    return (
        f"if {runs}; then echo {job} runs already >&2; exit 1; fi; "
        f"mountpoint -q {shared} || {{ echo {shared} is not mounted >&2; exit 1; }}; "
        f"log=$PWD/{job}.log; pid=$PWD/{job}.pid; cd {source} || exit 1; "
        # The shell that writes its process id becomes the training, so that the signal of `stop`
        # finds it; the end of ssh does not.
        'setsid nohup sh -c \'echo "$$" >"$0"; exec "$@"\' "$pid" '
        f'{shlex.join(command)} >>"$log" 2>&1 </dev/null & sleep 2; kill -0 "$(cat "$pid")"'
    )


def commands(arguments: Namespace) -> list[list[str]]:
    """The `gcloud` commands of an action, in their order."""
    tpu = ["gcloud", "compute", "tpus", "tpu-vm"]
    place = [f"--zone={arguments.zone}"]
    if arguments.project:
        place.append(f"--project={arguments.project}")
    worker = "0" if arguments.action == "log" else "all"
    ssh = [*tpu, "ssh", arguments.name, *place, f"--worker={worker}"]
    run = [*ssh, f"--command={remote_script(arguments)}"]
    if arguments.action != "install":
        return [run]
    parts = ["rtsam_jax", "configs", "converters", "launch", "constraints"]
    files = [str(REPOSITORY / part) for part in (*parts, "pyproject.toml", "README.md", "LICENSE")]
    target = f"{arguments.name}:{arguments.source}/"
    make = [*ssh, f"--command=mkdir -p {shlex.quote(arguments.source)}"]
    copy = [*tpu, "scp", "--recurse", *files, target, *place, "--worker=all"]
    return [make, copy, run]


def main() -> None:
    """Entry point of the command."""
    arguments = parser().read(sys.argv[1:])
    for command in commands(arguments):
        perform(command, dry_run=arguments.dry_run)


if __name__ == "__main__":
    run_command(main)
