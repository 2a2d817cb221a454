"""What the tests of the predict command share."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rtsam_jax import predict

Command = Callable[..., Path]

FILES = ("entropy.nii.gz", "mask.nii.gz", "prediction.json", "prediction.png", "probability.nii.gz")


def command_of(run: Path, out: Path) -> Command:
    """The command as a function of its options, on one checkpoint and folder."""

    def call(*options: object, repeats: int = 0) -> Path:
        given = ["--checkpoint", run, "--out", out, "--repeats", repeats, *options]
        predict.run(predict.parser().parse_args(predict.joined([str(part) for part in given])))
        return out

    return call


def document(out: Path, case: str = "p3_image", task: str = "orn") -> dict[str, Any]:
    """What `prediction.json` says."""
    return json.loads((out / case / task / "prediction.json").read_text())


def rows(out: Path) -> list[dict[str, str]]:
    """What `summary.csv` says."""
    with (out / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))
