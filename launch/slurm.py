"""Submits a run to Slurm: `python -m launch.slurm --nodes 2 --gpus-per-node 8 -- --config ...`.

One task per GPU, or per node where there are none; jax finds the others by Slurm's own variables.
Some time before the job's limit Slurm tells its tasks to stop: the run saves, and the job queues
again.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from argparse import Namespace

from launch.command_line import PREEMPTED, Parser, perform, training_command
from rtsam_jax.errors import ConfigError, run_command


def parser() -> Parser:
    """The flags."""
    found = Parser("slurm", __doc__ or "")
    found.add_argument("--nodes", type=int, required=True, help="machines")
    found.add_argument(
        "--gpus-per-node", type=int, default=0, help="0: the CPU, with one process per node"
    )
    found.add_argument("--cpus-per-task", type=int, default=8, help="cores of a process")
    found.add_argument("--time", default="24:00:00", help="limit of one start; it queues again")
    found.add_argument("--partition", default="", help="empty: the cluster's default")
    found.add_argument("--account", default="", help="empty: the user's default")
    found.add_argument("--memory", default="", help="of a node, 200G say; empty: the default")
    found.add_argument("--name", default="rtsam", help="of the job")
    found.add_argument(
        "--grace", type=int, default=300, help="seconds from the signal to the end of the time"
    )
    found.add_argument("--source", default=os.getcwd(), help="folder of the repository")
    found.add_argument("--python", default=".venv/bin/python", help="interpreter, seen from it")
    return found


def seconds(time: str) -> int:
    """A limit of time as Slurm reads it: `M`, `M:S`, `H:M:S`, `D-H`, `D-H:M` or `D-H:M:S`.

    Raises:
        ConfigError: it is none of these.
    """
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", time):
        raise ConfigError(f"--time is {time!r}, but it must be [DAYS-]HH:MM:SS.")
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if not dash and len(parts) < 3:
        parts.insert(0, 0)  # without days, the first of fewer than three is minutes
    hours, minutes, left = [*parts, 0, 0][:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + left


def batch_script(arguments: Namespace) -> str:
    """The script that `sbatch` reads.

    Raises:
        ConfigError: a number or a time is out of range; of the training's arguments.
    """
    tasks = arguments.gpus_per_node or 1
    if min(arguments.nodes, arguments.cpus_per_task) < 1 or arguments.gpus_per_node < 0:
        raise ConfigError(
            "--nodes and --cpus-per-task must be at least 1, --gpus-per-node at least 0."
        )
    if not 30 <= arguments.grace <= 3600:
        raise ConfigError(f"--grace is {arguments.grace}, but it must be from 30 to 3600 seconds.")
    if seconds(arguments.time) <= arguments.grace:
        raise ConfigError(
            f"--time is {arguments.time}, but it must be longer than --grace, {arguments.grace} "
            "seconds: the run would be told to stop as it starts."
        )
    directives = {
        "job-name": arguments.name,
        "nodes": arguments.nodes,
        "ntasks-per-node": tasks,
        "gpus-per-node": arguments.gpus_per_node or "",
        "cpus-per-task": arguments.cpus_per_task,
        "time": arguments.time,
        "partition": arguments.partition,
        "account": arguments.account,
        "mem": arguments.memory,
        "output": f"{arguments.name}-%j.out",
        "open-mode": "append",
        "signal": f"TERM@{arguments.grace}",  # to the tasks; B: would be to the script alone
    }
    for name, value in directives.items():
        if re.search(r"\s", str(value)):
            raise ConfigError(f"the value {value!r} of {name} must not hold spaces.")
    lines = [f"#SBATCH --{name}={value}" for name, value in directives.items() if value != ""]
    status = f"--preempted-status={PREEMPTED}"
    command = training_command(arguments.python, arguments.rest, status)
    return _SCRIPT.format(
        directives="\n".join(lines),
        source=shlex.quote(arguments.source),
        command=shlex.join(command),
        preempted=PREEMPTED,
    )


_SCRIPT = """\
#!/usr/bin/env bash
{directives}
#SBATCH --requeue
set -u
cd {source} || exit 1

# The limit's signal goes from Slurm to the tasks; srun, were it told, would kill them. A task that
# leaves, saved, must not end the others, which are saving; in a run that fails all end themselves.
srun --kill-on-bad-exit=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" \\
  {command}
status=$?

if [ "$status" -eq {preempted} ]; then # told to stop, and saved
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


def main() -> None:
    """Entry point of the command."""
    arguments = parser().read(sys.argv[1:])
    perform(["sbatch"], dry_run=arguments.dry_run, text=batch_script(arguments))


if __name__ == "__main__":
    run_command(main)
