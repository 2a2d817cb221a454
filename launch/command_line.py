"""What the launchers' command lines have in common."""

from __future__ import annotations

import argparse
import shlex
import subprocess
from collections.abc import Sequence
from typing import NoReturn

from rtsam_jax.errors import ConfigError, MissingFile

PREEMPTED = 75  # exit status of a run that was told to stop and saved: EX_TEMPFAIL, try again


class Parser(argparse.ArgumentParser):
    """Explains every flag with its default, and says what is wrong in one sentence.

    Args:
        rest: names what comes after `--`.
    """

    def __init__(self, module: str, description: str, rest: str = "--config configs/NAME.py [...]"):
        super().__init__(
            prog=f"python -m launch.{module}",
            usage=f"python -m launch.{module} FLAGS -- {rest}",
            description=description,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "--dry-run",
            action="store_true",
            default=False,
            help="print exactly what would be done, and do nothing",
        )

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The flags, and as `rest` what stands after the first `--`, untouched."""
        at = argv.index("--") if "--" in argv else len(argv)
        return self.parse_args(argv[:at], argparse.Namespace(rest=list(argv[at + 1 :])))

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message.rstrip('.')}; see --help.")


def training_command(
    python: str, training: Sequence[str], *more: str, shared: str = ""
) -> list[str]:
    """The command that every process of a run is started with.

    Args:
        python: the interpreter, where the command runs.
        training: what the user gives `rtsam_jax.train`.
        more: what the launcher adds.
        shared: a folder that all hosts see and `--config.out` must be in; "" asks for nothing.

    Raises:
        ConfigError: there is no config, a run folder that only one host would see, or an option
            that is the launcher's.
    """
    if not any(argument.split("=")[0] == "--config" for argument in training):
        raise ConfigError(
            "no config was given; end the command with -- --config configs/NAME.py and whatever "
            "else rtsam_jax.train takes."
        )
    if shared:
        folders = [a.partition("=")[2] for a in training if a.startswith("--config.out=")]
        if not folders or not folders[-1].startswith(shared.rstrip("/") + "/"):
            raise ConfigError(
                f"the run folder must be one that all hosts see; add --config.out={shared}/NAME "
                "after --, or give the folder they share as --shared."
            )
    given = {argument.partition("=")[0] for argument in training}
    for option in more:
        if (name := option.partition("=")[0]) in given:
            raise ConfigError(
                f"{name} is the launcher's to give ({option} is what it waits for); leave it out."
            )
    multihost = [] if "--multihost" in given else ["--multihost"]
    return [python, "-m", "rtsam_jax.train", *training, *multihost, *more]


def perform(command: Sequence[str], *, dry_run: bool, text: str = "") -> None:
    """Runs a command of the cluster, or prints it and what it would read.

    Args:
        text: its standard input.

    Raises:
        MissingFile: it is not installed.
        ConfigError: it failed; it has said why itself.
    """
    if dry_run:
        print(f"# {shlex.join(command)}" if text else shlex.join(command))
        print(text, end="")
        return
    try:
        done = subprocess.run(command, input=text or None, text=True, check=False)
    except FileNotFoundError as cause:
        raise MissingFile(
            f"{command[0]} is not installed here; install it, or see what it would be given with "
            "--dry-run."
        ) from cause
    if done.returncode:
        raise ConfigError(
            f"{command[0]} ended with exit status {done.returncode}; mend what it says above."
        )
