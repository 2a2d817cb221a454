"""Errors: a code each, one line on stderr, an exit status, never a traceback."""

from __future__ import annotations

import errno
import inspect
from pathlib import Path

import pytest

from rtsam_jax import errors
from tests.tiny import REPOSITORY, run_module, tiny_config, write_config_file

ALL = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.RTSamError) and kind is not errors.RTSamError
]


def test_codes_are_unique_and_documented() -> None:
    codes = [kind.code for kind in ALL]
    assert len(set(codes)) == len(codes) > 15 and "error" not in codes
    assert all(kind.__doc__ for kind in ALL)
    readme = (REPOSITORY / "README.md").read_text()
    for kind in ALL:
        row = next(
            line for line in readme.splitlines() if line.startswith(f"| {kind.exit_status} ")
        )
        assert f"`{kind.code}`" in row, f"README's table of errors lacks {kind.code}"


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.code)
def test_a_command_prints_one_line(kind: type, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise kind("the thing is wrong; mend it.")

    with pytest.raises(SystemExit) as left:
        errors.run_command(main)
    assert left.value.code == kind.exit_status > 1
    assert capsys.readouterr().err == f"error[{kind.code}]: the thing is wrong; mend it.\n"


@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EISDIR, errno.EEXIST]
)
def test_a_place_that_refuses(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise OSError(number, "no such luck", "runs/there")

    with pytest.raises(SystemExit) as left:
        errors.run_command(main)
    assert left.value.code == errors.NotWritable.exit_status
    line = capsys.readouterr().err
    assert line.startswith("error[not_writable]: the system refuses access to runs/there")


def test_ctrl_c_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        errors.run_command(main)
    assert left.value.code == 130 and capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("x"), OSError(errno.EIO, "x")])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    def main() -> None:
        raise error

    with pytest.raises(type(error)):
        errors.run_command(main)


COMMANDS = {
    "no dataset": ("train", {}, [], 3, "missing_file"),
    "unknown field": ("train", {}, ["--config.optim.lrr=1"], 2, "config_unknown_field"),
    "frozen, no weights": (
        "train", {"model__freeze_encoder": True}, ["--config.data.dataset=DATASET"], 6,
        "encoder_weights_missing",
    ),
    "unwritable": (
        "train", {}, ["--config.data.dataset=DATASET", "--config.out=config.py/run"], 3,
        "not_writable",
    ),
    "no run": ("evaluate", {}, ["--run", "nowhere"], 3, "missing_file"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_the_real_command(name: str, tmp_path: Path, tiny_dataset: Path) -> None:
    module, fields, arguments, status, code = COMMANDS[name]
    write_config_file(tmp_path / "config.py", tiny_config("nowhere", **fields))
    arguments = [a.replace("DATASET", str(tiny_dataset)) for a in arguments]
    if module == "train":
        arguments = ["--config", "config.py", *arguments]
    result = run_module(module, *arguments, cwd=tmp_path)
    assert result.returncode == status, result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"error[{code}]: ")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()  # a mistake leaves nothing behind
