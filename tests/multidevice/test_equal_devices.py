"""Eight CPU devices train as one does; in a subprocess, since jax fixes its devices at first use.

Sums run in another order on another number of devices, and Adam divides by the gradient's own size,
so parameters are compared with how far they moved.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.tiny import REPOSITORY, command_environment

FLAGS = (
    "--xla_force_host_platform_device_count=8 "
    # Compiling takes most of the time; these halve it.
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)


@pytest.fixture(scope="module")
def report() -> dict:
    result = subprocess.run(
        [sys.executable, "-m", "tests.multidevice.equal_devices"],
        cwd=REPOSITORY,
        env=command_environment(XLA_FLAGS=FLAGS),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_the_batch_lies_on_eight_devices(report: dict) -> None:
    assert report["devices"] == 8 and report["placed"] == [8, 8, 8]
    assert report["copies"] == [8]  # the state as well, a copy on each
    assert report["compiled"] == [1, 1]


def test_losses_are_equal_case_by_case(report: dict) -> None:
    assert np.std(report["losses"]) > 0.01  # or equality would say little
    assert report["loss_error"] < 1e-5


def test_updated_parameters_are_equal(report: dict) -> None:
    assert report["same_start"] and report["moved"] > 0.1
    assert report["relative_error"] < 1e-4
    assert report["update_error"] < 5e-3
