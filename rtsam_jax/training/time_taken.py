"""How long a run has trained, all its starts together: `time.json` in its folder."""

from __future__ import annotations

from pathlib import Path

from rtsam_jax.data.json_file import strict_json, write_json

_FILE = "time.json"


def training_seconds(run: Path) -> float | None:
    """Seconds that a run has trained, compilation and input included, scoring not.

    None where that is not known: the run has not logged yet, was trained by an earlier version, or
    its `time.json` is damaged, which costs nothing but this number.
    """
    try:
        return float(strict_json(run / _FILE)["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def add_seconds(run: Path, seconds: float, *, step: int) -> None:
    """Adds what the steps up to `step` took; steps taken again after a kill count again."""
    total = (training_seconds(run) or 0.0) + seconds
    write_json(run / _FILE, {"seconds": total, "step": step})
