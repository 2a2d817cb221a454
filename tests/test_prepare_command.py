"""`python -m rtsam_jax.prepare` as a user runs it: reports, failures, kills, a full disk."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rtsam_jax.data.cases import TaskInfo, load_dataset, write_dataset
from rtsam_jax.data.nifti import Volume, write_volume
from tests.tiny import (
    command_environment,
    run_module,
    tiny_config,
    write_config_file,
    write_tiny_dataset,
)

SCANS, SIDE = 10, 72


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_tiny_dataset(tmp_path / "dataset")
    write_config_file(tmp_path / "config.py", tiny_config("dataset"))
    return tmp_path


def prepare(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return run_module("prepare", "--config", "config.py", *more, cwd=folder)


def prepare_with_files_up_to(
    size: int, folder: Path, *more: str
) -> subprocess.CompletedProcess[str]:
    """The command where the system refuses to write more than `size` bytes to one file."""
    return subprocess.run(
        [sys.executable, "-m", "rtsam_jax.prepare", "--config", "config.py", *more],
        cwd=folder,
        env=command_environment(JAX_ENABLE_COMPILATION_CACHE="false"),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY)
        ),
        check=False,
    )


def test_prepares_once_and_reports(place: Path) -> None:
    first = prepare(place, "--report")
    assert first.returncode == 0, first.stderr[-3000:]
    cache = place / "dataset" / "prepared"
    assert "6 of 6 cases on 5 scans are prepared, 5 scans of them now" in first.stdout
    page = (cache / "report.html").read_text()
    assert all(case.id in page for case in load_dataset(place / "dataset").cases)
    assert page.count("data:image/") >= 6
    again = prepare(place, "dataset")  # the dataset by name, as in the README
    assert again.returncode == 0 and "0 scans of them now" in again.stdout


def test_one_bad_case_is_told_by_table_report_and_status(place: Path) -> None:
    (place / "dataset" / "p2_dose.nii.gz").write_bytes(b"no volume")
    result = prepare(place, "--report")
    assert result.returncode == 5
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error[")]
    assert line.startswith("error[cases_failed]: 1 of 6 cases of ")
    assert "| p2_orn | unreadable_file |" in result.stdout
    assert "5 of 6 cases on 4 scans are prepared" in result.stdout
    page = (place / "dataset" / "prepared" / "report.html").read_text()
    assert "unreadable_file" in page and page.count("data:image/") >= 5
    training = run_module("train", "--config", "config.py", cwd=place)
    assert training.returncode == 5 and "| p2_orn | unreadable_file |" in training.stdout
    assert "error[cases_failed]: 1 of 4 training cases" in training.stderr


def test_incomplete_cases_are_named_and_refused_in_training(place: Path) -> None:
    path = place / "dataset" / "dataset.json"
    document = json.loads(path.read_text())
    del document["cases"][0]["dose"]
    path.write_text(json.dumps(document))
    result = prepare(place, "--report")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "incomplete, without dose: 1 (p0_orn)" in result.stdout
    training = run_module("train", "--config", "config.py", cwd=place)
    assert training.returncode == 4
    assert training.stderr.splitlines()[-1].startswith("error[incomplete_case]: training case p0_")


@pytest.mark.parametrize("source", ["label", "none"])
def test_training_without_dose(place: Path, source: str) -> None:
    path = place / "dataset" / "dataset.json"
    document = json.loads(path.read_text())
    for case in document["cases"]:
        del case["dose"]
    path.write_text(json.dumps(document))
    options = [f"--config.dose.source={source}", "--config.evaluate=False"]
    more = "--config.dose.box_jitter=2" if source == "label" else "--config.prompt.box=False"
    result = run_module("train", "--config", "config.py", *options, more, cwd=place)
    assert result.returncode == 0, result.stderr[-3000:]
    losses = [json.loads(line) for line in (place / "runs/tiny/metrics.jsonl").open()]
    assert len(losses) == 4 and all(line["truth_outside_roi"] == 0 for line in losses)
    scored = run_module("train", "--config", "config.py", options[0], more, cwd=place)
    assert scored.returncode == 2
    assert "a box from the label gives the answer away" in scored.stderr


def test_a_cache_that_cannot_be_written(place: Path) -> None:
    (place / "file").write_text("in the way")
    result = prepare(place, "--config.data.cache=file/cache")
    assert result.returncode == 3
    assert result.stderr.splitlines()[-1].startswith("error[not_writable]: the prepared cases in")
    assert "--config.data.cache=FOLDER" in result.stderr


def test_a_full_disk_while_the_report_is_written(place: Path) -> None:
    assert prepare(place).returncode == 0
    full = prepare_with_files_up_to(100_000, place, "--report")
    assert full.returncode == 3 and "6 of 6 cases on 5 scans" in full.stdout
    assert full.stderr.splitlines()[-1].startswith("error[not_writable]: the system refuses access")
    left = {path.name for path in (place / "dataset" / "prepared").iterdir() if path.is_file()}
    assert left <= {"files.json"}


def test_an_empty_label_is_told(place: Path) -> None:
    path = place / "dataset" / "dataset.json"
    document = json.loads(path.read_text())
    document["cases"][0]["label_value"] = 5
    path.write_text(json.dumps(document))
    assert "with an empty label: 1 (p0_orn)" in prepare(place).stdout
    training = run_module("train", "--config", "config.py", cwd=place)
    assert training.returncode == 0, training.stderr[-2000:]
    assert "warning: 1 training cases have an empty label: p0_orn\n" in training.stdout


def test_a_full_disk_leaves_no_half_and_is_made_good(place: Path) -> None:
    """The system refuses to write more than 300 kB to one file: no shard fits."""
    full = prepare_with_files_up_to(300_000, place)
    assert full.returncode == 3, full.stderr[-3000:]
    line = full.stderr.splitlines()[-1]
    assert (
        line.startswith("error[not_writable]: the prepared cases in") and "File too large" in line
    )
    left = [path.name for path in (place / "dataset" / "prepared").rglob("*") if path.is_file()]
    assert sorted(left) == [".lock", "files.json", "settings.json"] or sorted(left) == [
        ".lock",
        "settings.json",
    ]
    assert prepare(place).returncode == 0


@pytest.fixture
def slow_place(tmp_path: Path) -> Path:
    """Scans that take a while to prepare."""
    root, cases = tmp_path / "dataset", []
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    index = np.indices((SIDE,) * 3)
    distance = np.sqrt(((index - SIDE / 2) ** 2).sum(0))
    dose = Volume((70 * np.exp(-((distance / 20) ** 2))).astype(np.float32), affine)
    label = Volume((distance < 6).astype(np.uint8), affine)
    write_volume(root / "dose.nii", dose, np.float32)
    write_volume(root / "label.nii", label, np.uint8)
    for scan in range(SCANS):
        noise = np.random.default_rng(scan).normal(0, 100, (SIDE,) * 3).astype(np.float32)
        write_volume(root / f"{scan}.nii", Volume(noise, affine), np.float32)
        names = {"id": f"s{scan}", "patient": f"s{scan}", "task": "orn", "split": "train"}
        files = {"image": f"{scan}.nii", "dose": "dose.nii", "label": "label.nii"}
        cases.append({**names, **files})
    about = {"name": "slow", "kind": "synthetic", "description": ""}
    write_dataset(root, **about, tasks=[TaskInfo("orn", "CT", "ORN")], cases=cases)
    cfg = tiny_config("dataset", data__interpolation="bspline", evaluate=False)
    write_config_file(tmp_path / "config.py", cfg)
    return tmp_path


def children_of(process: int) -> set[int]:
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text()
    except OSError:
        return set()
    return {int(child) for child in text.split()}


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def indices(cache: Path) -> set[Path]:
    return {path for path in cache.glob("*/*.json") if path.name != "settings.json"}


def entries(cache: Path) -> dict[str, tuple[str, int, bytes]]:
    """Scan -> what its index says and the shard that holds it, byte by byte."""
    found = {}
    for path in indices(cache):
        shard = path.with_suffix(".array_record").read_bytes()
        for at, record in enumerate(json.loads(path.read_text())["records"]):
            found[record["key"]] = (json.dumps(record), at, shard)
    return found


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_kill_and_resume_gives_what_an_uninterrupted_run_gives(
    slow_place: Path, workers: int
) -> None:
    option = f"--config.data.prepare_workers={workers}"
    whole = prepare(slow_place, "--config.data.cache=whole", option)
    assert whole.returncode == 0, whole.stderr[-3000:]
    cache = slow_place / "killed"
    command = [sys.executable, "-m", "rtsam_jax.prepare", "--config", "config.py"]
    for least in (1, 2):  # once after the first shard, once after the second
        process = subprocess.Popen(
            [*command, "--config.data.cache=killed", option],
            cwd=slow_place,
            env=command_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        children: set[int] = set()
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            children |= children_of(process.pid)
            if len(indices(cache)) >= least:
                process.kill()
                break
            time.sleep(0.001)
        assert process.wait() == -signal.SIGKILL
        while any(map(alive, children)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(map(alive, children))  # its processes end with it
        if least == 1:  # later there is too little left for two
            assert bool(children) == (workers > 1)
        assert 0 < len(entries(cache)) < SCANS
        for path in indices(cache):  # what is named is whole
            index = json.loads(path.read_text())
            assert path.with_suffix(".array_record").stat().st_size == index["bytes"]
    result = prepare(slow_place, "--config.data.cache=killed", option)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"{SCANS} of {SCANS} cases on {SCANS} scans are prepared" in result.stdout
    assert f", {SCANS} scans of them now" not in result.stdout  # it did not start over
    assert not list(cache.rglob("*.part"))
    runs = []
    for name in ("whole", "killed"):
        training = run_module(
            "train",
            "--config",
            "config.py",
            f"--config.data.cache={name}",
            f"--config.out=run_{name}",
            cwd=slow_place,
        )
        assert training.returncode == 0, training.stderr[-3000:]
        runs.append((slow_place / f"run_{name}" / "metrics.jsonl").read_text())
    assert runs[0] == runs[1] and runs[0].count("\n") == 4


def test_two_commands_at_once_share_the_work(slow_place: Path) -> None:
    command = [sys.executable, "-m", "rtsam_jax.prepare", "--config", "config.py"]
    started = [
        subprocess.Popen(
            command, cwd=slow_place, env=command_environment(), stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    texts = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    fresh = [int(text.split(" are prepared, ")[1].split()[0]) for text in texts]
    assert sum(fresh) == SCANS  # none was prepared twice
    assert sum("waiting for another command" in text for text in texts) <= 1
    assert len(entries(slow_place / "dataset" / "prepared")) == SCANS
