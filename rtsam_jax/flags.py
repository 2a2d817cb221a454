"""`--config configs/NAME.py [--config.field=value]` to a validated `ExperimentConfig`."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.config_ranges import leaf_fields
from rtsam_jax.errors import ConfigError, MissingFile, RTSamError, UnknownConfigField


@dataclasses.dataclass(frozen=True)
class LaunchOptions:
    """What a command line says of how a run is started, which is no part of what the run is."""

    multihost: bool = False
    preempted_status: int = 0


def at_least(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number not below `least`."""

    def whole_number(text: str) -> int:  # argparse says this name of what is none
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return value

    return whole_number


def take_options(argv: Sequence[str]) -> tuple[LaunchOptions, list[str]]:
    """Reads `--multihost` and `--preempted-status=N`; returns the other arguments as they are.

    Raises:
        ConfigError: a value where there must be none, or none that is an exit status.
    """
    multihost, status, rest = False, 0, []
    for argument in argv:
        name, equals, value = argument.partition("=")
        if name == "--multihost":
            if equals:
                raise ConfigError(f"--multihost takes no value, but {value!r} was given.")
            multihost = True
        elif name == "--preempted-status":
            if not value.isdecimal() or int(value) > 125:  # a shell has its own uses of the others
                raise ConfigError(
                    f"--preempted-status is {value!r}, but it must be --preempted-status=N with an "
                    "exit status N from 0 to 125."
                )
            status = int(value)
        else:
            rest.append(argument)
    return LaunchOptions(multihost, status), rest


def parse_config(argv: Sequence[str], *, usage: str) -> ExperimentConfig:
    """Reads the config file and applies the overrides of a command line.

    Args:
        argv: as `sys.argv`, the program's name first.
        usage: printed by `--help`.

    Raises:
        ConfigError, UnknownConfigField, MissingFile: one sentence each, instead of the raw
            `KeyError` and `TypeError` of `config_flags`.
    """
    if "--help" in argv or "-h" in argv:
        print(usage + "\n\nFields and defaults:\n" + _describe(ExperimentConfig()))
        raise SystemExit(0)
    _check_arguments(argv[1:])
    argv = [argv[0], *map(_as_literal, argv[1:])]
    values = flags.FlagValues()
    # Without sys_argv it would look for overrides in the process's own command line.
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=list(argv))
    try:
        rest = values(list(argv))
    except flags.Error as error:
        raise ConfigError(f"cannot use the command line: {_one_line(error)}.") from error
    except RTSamError:
        raise
    except Exception as error:  # re-raised: the config file is code and may raise anything
        raise ConfigError(
            f"cannot use the config file or an override: {type(error).__name__}: "
            f"{_one_line(error)}."
        ) from error
    if len(rest) > 1:
        raise ConfigError(
            f"unexpected argument {rest[1]!r}; fields are set as --config.FIELD=VALUE."
        )
    cfg = values["config"].value
    if not isinstance(cfg, ExperimentConfig):
        raise ConfigError("get_config() of the config file must return an ExperimentConfig.")
    check_types(cfg, ExperimentConfig(), "config")
    # `orn,ce` is no Python literal, so it arrives as one text.
    cfg.data.tasks = tuple(name for text in cfg.data.tasks for name in text.split(","))
    cfg.validate()
    return cfg


def _as_literal(argument: str) -> str:
    """`TASK=words; TASK=words` as the tuple that `config_flags` reads; anything else unchanged."""
    name, _, value = argument.partition("=")
    if name != "--config.prompt.task_texts" or value.startswith(("(", "[", "'", '"')):
        return argument
    return f"{name}={tuple(part.strip() for part in value.split(';') if part.strip())!r}"


def check_types(section: Any, default: Any, path: str) -> None:
    """Raises for what a file can do and the command line cannot: new fields, other types.

    Lists become tuples and integers floats where the field has such, as on the command line.

    Args:
        section: a dataclass, mended in place.
        default: the same with its defaults, whose types count.
        path: of the section, for messages.

    Raises:
        ConfigError, UnknownConfigField: name the field.
    """
    known = {field.name for field in dataclasses.fields(default)}
    if extra := sorted(set(vars(section)) - known):
        raise UnknownConfigField(f"{path}.{extra[0]} does not exist; {_hint(extra[0], known)}")
    for name in sorted(known):
        value, like = getattr(section, name), getattr(default, name)
        if dataclasses.is_dataclass(like):
            if type(value) is not type(like):
                raise ConfigError(f"{path}.{name} is {value!r}, but it must stay a section.")
            check_types(value, like, f"{path}.{name}")
            continue
        if isinstance(like, tuple) and isinstance(value, list):
            setattr(section, name, tuple(value))
        elif isinstance(like, float) and type(value) is int:
            setattr(section, name, float(value))
        value = getattr(section, name)
        if isinstance(like, tuple) and isinstance(value, tuple):
            text = "tuple[str" in str(_annotation(default, name))
            if all(isinstance(x, str) if text else type(x) in (int, float) for x in value):
                continue
            rule = "a tuple of " + ("texts" if text else "numbers")
            raise ConfigError(f"{path}.{name} is {value!r}, but it must be {rule}.")
        if type(value) is not type(like):
            raise ConfigError(
                f"{path}.{name} is {value!r}, but it must be of type {type(like).__name__}."
            )


def _annotation(section: Any, name: str) -> Any:
    return {field.name: field.type for field in dataclasses.fields(section)}[name]


def _hint(field: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(field, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else "see --help for all fields."


def _check_arguments(arguments: Sequence[str]) -> None:
    """Raises for a missing config file and for fields that do not exist, naming close ones."""
    file: str | None = None
    known = dict(leaf_fields(ExperimentConfig()))
    for i, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--config":
            file = value or (arguments[i + 1] if i + 1 < len(arguments) else "")
        elif match := re.fullmatch(r"--(?:no)?config\.(.+)", name):
            field = match.group(1)
            if field not in known:
                raise UnknownConfigField(f"config.{field} does not exist; {_hint(field, known)}")
    if not file:
        raise ConfigError("no config file given; start with --config configs/quickstart.py.")
    path = Path(file.split(":")[0])
    if not path.is_file():
        raise MissingFile(f"config file {path} does not exist; the project's own are in configs/.")


def _describe(cfg: ExperimentConfig) -> str:
    return "\n".join(f"  --config.{name}={value!r}" for name, value in leaf_fields(cfg))


def _one_line(error: Exception) -> str:
    return " ".join(str(error.args[0] if error.args else error).split()).rstrip(".")
