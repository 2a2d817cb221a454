"""`--config configs/NAME.py [--config.field=value]` to a validated `ExperimentConfig`."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.errors import ConfigError, MissingFile, UnknownConfigField


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
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values)
    try:
        rest = values(list(argv))
    except flags.Error as error:
        raise ConfigError(f"cannot use the command line: {_one_line(error)}.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"cannot apply an override: {_one_line(error)}.") from error
    if len(rest) > 1:
        raise ConfigError(
            f"unexpected argument {rest[1]!r}; fields are set as --config.FIELD=VALUE."
        )
    cfg = values["config"].value
    if not isinstance(cfg, ExperimentConfig):
        raise ConfigError("get_config() of the config file must return an ExperimentConfig.")
    cfg.validate()
    return cfg


def _check_arguments(arguments: Sequence[str]) -> None:
    """Raises for a missing config file and for fields that do not exist, naming close ones."""
    file: str | None = None
    known = dict(_fields(ExperimentConfig()))
    for i, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--config":
            file = value or (arguments[i + 1] if i + 1 < len(arguments) else "")
        elif match := re.fullmatch(r"--(?:no)?config\.(.+)", name):
            field = match.group(1)
            if field not in known:
                near = difflib.get_close_matches(field, known, n=3, cutoff=0.5)
                hint = (
                    f"did you mean {' or '.join(near)}?" if near else "see --help for all fields."
                )
                raise UnknownConfigField(f"config.{field} does not exist; {hint}")
    if not file:
        raise ConfigError("no config file given; start with --config configs/quickstart.py.")
    path = Path(file.split(":")[0])
    if not path.is_file():
        raise MissingFile(f"config file {path} does not exist; the project's own are in configs/.")


def _fields(section: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted names and default values of all leaf fields."""
    found: list[tuple[str, Any]] = []
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            found += _fields(value, f"{prefix}{field.name}.")
        else:
            found.append((prefix + field.name, value))
    return found


def _describe(cfg: ExperimentConfig) -> str:
    return "\n".join(f"  --config.{name}={value!r}" for name, value in _fields(cfg))


def _one_line(error: Exception) -> str:
    return " ".join(str(error.args[0] if error.args else error).split()).rstrip(".")
