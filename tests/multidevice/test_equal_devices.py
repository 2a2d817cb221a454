"""Meshes of eight CPU devices train as one device does, and take up each other's checkpoints.

In a subprocess, since jax fixes its devices at first use. Sums run in another order on another
number of devices, and Adam divides by the gradient's own size, so parameters are compared with how
far they moved.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from tests.compiling import EIGHT_DEVICES, QUICK
from tests.tiny import REPOSITORY, command_environment

RUNS = [
    ("trained", "8x1x1"),  # data x fsdp x tensor
    ("trained", "2x2x2"),
    ("trained", "1x4x2"),
    ("uneven", "2x2x2"),  # image encoder frozen, rows of weight 0, augmented, in two parts
]


@pytest.fixture(scope="module")
def report() -> dict:
    result = subprocess.run(
        [sys.executable, "-m", "tests.multidevice.equal_devices"],
        cwd=REPOSITORY,
        env=command_environment(XLA_FLAGS=f"{EIGHT_DEVICES} {QUICK}"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["devices"] == 8
    return found


@pytest.fixture(params=RUNS, ids="-".join)
def run(request: pytest.FixtureRequest, report: dict) -> dict:
    encoder, mesh = request.param
    return {**report[encoder][mesh], "encoder": encoder, "mesh": mesh}


def parts_of(run: dict, name: str) -> list[int]:
    """Into how many parts each array whose name holds `name` is divided."""
    found = [math.prod(a) // math.prod(b) for n, (a, b) in run["placed"].items() if name in n]
    assert found, name
    return found


def test_losses_are_equal_case_by_case(run: dict) -> None:
    assert np.std(run["losses"]) > 0.01  # or equality would say little
    assert run["loss_error"] < 1e-5


def test_updated_parameters_are_equal(run: dict) -> None:
    assert run["same_start"] and run["moved"] > 0.1
    assert run["relative_error"] < 1e-4
    assert run["update_error"] < 5e-3


def test_a_state_lies_in_parts_and_stays_where_it_lies(run: dict) -> None:
    data, fsdp, tensor = map(int, run["mesh"].split("x"))
    blocks = "['image_encoder']['blocks'][1]"
    # Parameter and, where the encoder is trained, two moments.
    copies = 3 if run["encoder"] == "trained" else 1
    for kernel in ("['attn']['qkv']", "['mlp']['lin1']", "['mlp']['lin2']"):
        assert parts_of(run, f"{blocks}{kernel}['kernel']") == [fsdp * tensor] * copies
    assert parts_of(run, f"{blocks}['mlp']['lin1']['bias']") == [tensor] * copies
    assert parts_of(run, "['upscaling']['conv1']['kernel']") == [fsdp] * 3
    assert parts_of(run, "['point_embed']") == [1] * 3
    assert run["kept_place"] and run["compiled"] == 1


@pytest.mark.parametrize(("mesh", "devices"), [("1x2x2", 4), ("1x1x1", 1)])
def test_fewer_devices_take_up_a_checkpoint_of_eight(report: dict, mesh: str, devices: int) -> None:
    resumed = report["elastic"][mesh]
    assert resumed["devices"] == devices
    assert resumed["equal"] == resumed["arrays"] and resumed["changed"] > resumed["arrays"] / 2
    assert resumed["kept_place"]
    assert resumed["loss_error"] < 1e-5
