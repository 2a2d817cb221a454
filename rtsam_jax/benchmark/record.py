"""All that one call of the bench measured, and how it is kept: JSON, and a part of a document."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from rtsam_jax.benchmark.cases import Result
from rtsam_jax.benchmark.profile import Share
from rtsam_jax.benchmark.sweeps import TITLES, Sweep
from rtsam_jax.benchmark.tables import (
    describe_rate,
    profile_table,
    ratio_table,
    sweep_table,
    time_table,
    work_table,
)
from rtsam_jax.report.files import written_whole
from rtsam_jax.report.machine import cpu_name
from rtsam_jax.report.section import write_section
from rtsam_jax.report.tables import Table, render

SCHEMA_VERSION = 2
KIND = "bench"  # of the sections of documents that it writes
MEMORY_NOTE = (
    "Peak RSS is of the whole process, which holds the models of all sides, while one of them "
    "runs; XLA temp is what our program needs for intermediate results, by XLA's own analysis; "
    "peak device is an accelerator's, of PyTorch in a run, of JAX since the process began."
)


@dataclass
class Record:
    """What was asked and measured.

    Attributes:
        command: as it was called.
        matrix_rate: FLOP/s of a plain product in the same run; None where no model was timed.
        more: of cases that are no comparison, by name: what was measured, and its table.
        profiles: of our side, by case.
        left_out: rivals that cannot be had, and why.
    """

    command: str
    preset: str
    dtype: str
    matrix_rate: float | None = None
    results: list[Result] = field(default_factory=list)
    sweeps: list[Sweep] = field(default_factory=list)
    more: dict[str, tuple[Any, Table]] = field(default_factory=dict)
    profiles: dict[str, list[Share]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def machine() -> dict[str, Any]:
    """Where the numbers are from."""
    packages = ("jax", "jaxlib", "flax", "torch", "medim", "monai")
    versions = {d.name: d.version for d in importlib.metadata.distributions() if d.name in packages}
    device = jax.devices()[0]
    return {
        "cpu": cpu_name(),
        "threads": len(os.sched_getaffinity(0)),
        "device": f"{device.device_kind} ({device})",
        "python": platform.python_version(),
        "versions": dict(sorted(versions.items())),
    }


def text(record: Record) -> str:
    """Every table with its title, as Markdown that reads well in a terminal too."""
    return "\n".join(_blocks(record))


def _blocks(record: Record) -> Iterator[str]:
    where = machine()
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    yield f"```\n{record.command}\n```\n"
    yield (
        f"{record.preset}, {record.dtype}; {where['cpu']}, {where['threads']} threads; device "
        f"{where['device']}; Python {where['python']}, {versions}. Times are medians over the "
        f"rounds; sides take turns.\n"
    )
    yield from (f"{line}\n" for line in record.left_out)
    if record.results:
        yield render(time_table(record.results))
        if any(result.ratios for result in record.results):
            yield render(ratio_table(record.results))
        yield from _failed(record.results)
        yield render(work_table(record.results, record.matrix_rate))
        yield MEMORY_NOTE + "\n"
    if record.matrix_rate:
        yield describe_rate(record.results, record.matrix_rate, record.dtype) + "\n"
    for name, (_, table) in record.more.items():
        yield f"`{name}`:\n"
        yield render(table)
    for sweep in record.sweeps:
        yield f"Against {TITLES[sweep.of]}:\n"
        yield render(sweep_table(sweep))
        for at, results in sweep.points:
            yield from _failed(results, f" at {at}")
    for case, shares in record.profiles.items():
        yield f"Where `{case}` spends its time, by a trace of it (summed over threads):\n"
        yield render(profile_table(shares))


def _failed(results: Sequence[Result], where: str = "") -> Iterator[str]:
    for result in results:
        yield from (f"{line}{where}\n" for line in result.failed)


def write_json(record: Record, path: Path) -> None:
    """Everything measured, with every single run; whole or not at all."""
    content = {
        "schema": SCHEMA_VERSION,
        "machine": machine(),
        "command": record.command,
        "preset": record.preset,
        "dtype": record.dtype,
        "matrix_flop_per_s": record.matrix_rate,
        "cases": [dataclasses.asdict(result) for result in record.results],
        "sweeps": [
            {
                "of": sweep.of,
                "points": [
                    {"at": label, "cases": [dataclasses.asdict(result) for result in results]}
                    for label, results in sweep.points
                ],
            }
            for sweep in record.sweeps
        ],
        "left_out": record.left_out,
        "profiles": {
            case: [share._asdict() for share in shares] for case, shares in record.profiles.items()
        },
        **{name: dataclasses.asdict(measured) for name, (measured, _) in record.more.items()},
    }
    with written_whole(path) as beside:
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_markdown(record: Record, path: Path, section: str, figure: Path | None = None) -> None:
    """Puts the tables between the two marks of `section`; a document that is missing is begun.

    Args:
        figure: to be shown after the tables.

    Raises:
        UnreadableFile: the document lacks one of the marks.
    """
    tables = text(record)
    if figure:
        tables += f"\n![Times by case and side]({os.path.relpath(figure, path.parent)})\n"
    write_section(path, KIND, section, tables)
