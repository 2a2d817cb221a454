"""Real processes share one stream of batches: each reads its part, and any number resumes exactly.

They start together on an empty cache and talk over a local port, as the hosts of a pod would.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from tests.compiling import QUICK
from tests.tiny import CASES, REPOSITORY, command_environment, write_tiny_dataset

BATCH, STOPPED, STEPS = 4, 3, 6
LIMIT_S = 75  # of one run: a process that waits in vain for another fails


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def report_of(process: subprocess.Popen[str]) -> dict:
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def run(dataset: Path, processes: int, start: int, stop: int) -> list[dict]:
    """The reports of all processes, in their order; the first that fails ends the others."""
    command = [sys.executable, "-m", "tests.multidevice.two_processes", str(dataset)]
    shared = [free_port(), processes]
    started = [
        subprocess.Popen(
            [*command, *map(str, (*shared, index, start, stop))],
            cwd=REPOSITORY,
            env=command_environment(XLA_FLAGS=QUICK),  # one device each
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]
    with ThreadPoolExecutor(processes) as pool:
        reports = [pool.submit(report_of, process) for process in started]
        try:
            for done in as_completed(reports):
                done.result()
        finally:
            for process in started:
                process.kill()
    return [report.result() for report in reports]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """An uninterrupted run, one stopped half-way, and its two continuations."""
    dataset = tmp_path_factory.mktemp("two_processes") / "dataset"
    write_tiny_dataset(dataset)
    return {
        "stopped": run(dataset, 2, 0, STOPPED),  # the first: it finds the cache empty
        "whole": run(dataset, 1, 0, STEPS),
        "resumed by one": run(dataset, 1, STOPPED, STEPS),
        "resumed by two": run(dataset, 2, STOPPED, STEPS),
    }


def every_report(runs: dict[str, list[dict]]) -> Iterator[dict]:
    return chain.from_iterable(runs.values())


def sums(steps: list[dict], name: str) -> np.ndarray:
    """One of the checksums, `[steps, B]`."""
    return np.array([step[name] for step in steps])


def test_processes_that_start_together_prepare_the_cache_once(runs: dict[str, list[dict]]) -> None:
    scans = len({patient for _, patient, _, _ in CASES})
    assert sorted(report["fresh"] for report in runs["stopped"]) == [0, scans]
    assert sum(report["fresh"] for report in every_report(runs)) == scans


@pytest.mark.parametrize("resumed", ["resumed by one", "resumed by two"])
def test_a_run_resumes_exactly_at_another_number_of_processes(
    runs: dict[str, list[dict]], resumed: str
) -> None:
    (whole,) = runs["whole"]
    joined = runs["stopped"][0]["sums"] + runs[resumed][0]["sums"]
    assert len(joined) == STEPS
    for name in whole["sums"][0]:
        found, expected = sums(joined, name), sums(whole["sums"], name)
        assert found.shape == (STEPS, BATCH)
        np.testing.assert_allclose(found, expected, rtol=1e-6 if name == "image" else 0)


def test_the_rows_compared_are_distinct_and_augmented(runs: dict[str, list[dict]]) -> None:
    steps = runs["whole"][0]["sums"]
    assert len(np.unique(sums(steps, "image"))) == STEPS * BATCH
    flipped = sums(steps, "text_id") > sums(steps, "mirrored_text_id")
    mirrorable = sums(steps, "case_id") > 0
    assert 0 < flipped[mirrorable].sum() < mirrorable.sum()
    assert set(sums(steps, "case_id").flat) == set(range(len(CASES)))


def test_all_processes_see_the_same_global_batch(runs: dict[str, list[dict]]) -> None:
    for name in ("stopped", "resumed by two"):
        first, second = runs[name]
        assert first["processes"] == second["processes"] == first["devices"] == 2
        assert first["sums"] == second["sums"]


def test_a_process_reads_and_holds_its_own_rows_only(runs: dict[str, list[dict]]) -> None:
    for reports in runs.values():
        for rows, report in zip(np.split(np.arange(BATCH), len(reports)), reports, strict=True):
            assert all(held == rows.tolist() for held in report["held"])
            own = sums(report["sums"], "case_id")[:, rows]
            assert report["told"] == own.tolist()
            assert report["read"] == sorted(own.flat)
