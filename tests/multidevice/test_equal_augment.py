"""Augmentation on eight CPU devices is that on one; in a subprocess, as in test_equal_devices."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.compiling import EIGHT_DEVICES, QUICK
from tests.tiny import REPOSITORY, command_environment


@pytest.fixture(scope="module")
def report() -> dict:
    result = subprocess.run(
        [sys.executable, "-m", "tests.multidevice.equal_augment"],
        cwd=REPOSITORY,
        env=command_environment(XLA_FLAGS=f"{EIGHT_DEVICES} {QUICK}"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_samples_stay_on_their_devices(report: dict) -> None:
    assert report["devices"] == 8 and report["rows_per_device"] == [1]
    assert report["collectives"] == []


def test_eight_devices_draw_and_compute_what_one_does(report: dict) -> None:
    assert report["spread"] > 0.1
    difference = dict(report["difference"])
    assert difference.pop("image") < 1e-5
    assert set(difference.values()) == {0.0}
