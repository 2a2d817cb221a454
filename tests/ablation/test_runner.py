"""Runs go side by side, fail alone, and end with the command; here a run is a few lines."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from rtsam_jax.ablation import runner
from rtsam_jax.ablation.places import Place, make_places
from rtsam_jax.ablation.plan import Replicate, Run
from rtsam_jax.ablation.runner import Stopped, only_one, steps_taken, train_runs
from rtsam_jax.config import ExperimentConfig
from rtsam_jax.errors import ConfigError, OutputExists

STEPS = 4
CORES = frozenset(os.sched_getaffinity(0))
HERE = Place(CORES)
# Takes the place of a training: what it does is in the name of its variant.
PRETEND = """
import json, os, signal, sys, time
from pathlib import Path

out = next(Path(a.partition("=")[2]) for a in sys.argv if a.startswith("--config.out="))
saved = next(int(a.partition("=")[2]) for a in sys.argv if a.startswith("--preempted-status="))
what = out.parent.name
out.mkdir(parents=True, exist_ok=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(saved))
beginning = time.time()
with (out / "metrics.jsonl").open("a") as log:
    for step in range(1, 5):
        log.write(json.dumps({"step": step}) + "\\n")
        log.flush()
        if what == "fails" and step == 2:
            print("error[volume_invalid]: the image is no image.", file=sys.stderr)
            sys.exit(5)
        if what == "dies" and step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60 if what.startswith("endless") else 0.05)
times = [beginning, time.time(), os.environ.get("PRETEND_PLACE")]
(out / "times.json").write_text(json.dumps(times))
cases = out / "evaluation" / "test" / "cases.csv"
cases.parent.mkdir(parents=True, exist_ok=True)
cases.write_text("case")
"""


@pytest.fixture(autouse=True)
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pretend.py").write_text(PRETEND)
    monkeypatch.setattr(runner, "_CHILD", "pretend")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def run_of(folder: Path, variant: str) -> Run:
    out = str(folder / variant / "seed0")
    cfg = ExperimentConfig(out=out)
    return Run(variant, Replicate("seed0", {}), (f"--config.out={out}",), cfg)


def train(folder: Path, *variants: str, places: Sequence[Place] = (HERE,)):
    runs = [run_of(folder, variant) for variant in variants]
    with only_one(folder) as lock:
        failed = train_runs(runs, list(places), {run.name: STEPS for run in runs}, lock)
    return runs, failed


def test_a_failed_run_is_named_with_its_reason_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, failed = train(tmp_path, "a", "fails", "dies", "b")
    assert [run.done for run in runs] == [True, False, False, True]
    assert [(each.run.name, each.reason) for each in failed] == [
        ("fails/seed0", "error[volume_invalid]: the image is no image."),
        ("dies/seed0", f"ended by SIGKILL; see {runs[2].log}"),
    ]
    printed = capsys.readouterr().out
    assert "[2/4] fails/seed0 failed: error[volume_invalid]" in printed
    assert "[4/4] b/seed0 0:00:0" in printed and "16/16 steps, 0:00:00 left" in printed


def test_each_place_has_one_run_at_a_time(tmp_path: Path) -> None:
    places = [Place(CORES, {"PRETEND_PLACE": name}) for name in ("left", "right")]
    runs, _ = train(tmp_path, *"abcdef", places=places)
    spans: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        begin, end, place = json.loads((run.folder / "times.json").read_text())
        spans.setdefault(place, []).append((begin, end))
    assert spans.keys() == {"left", "right"}
    for own in map(sorted, spans.values()):
        assert all(a[1] <= b[0] for a, b in zip(own, own[1:], strict=False))


def test_what_was_resumed_is_told_from_what_took_its_whole_time(tmp_path: Path) -> None:
    names = ("late", "fresh")
    run = run_of(tmp_path, "late")
    run.folder.mkdir(parents=True)
    (run.folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    train(tmp_path, *names)
    found = [json.loads(run_of(tmp_path, name).done_file.read_text()) for name in names]
    assert [about["resumed"] for about in found] == [True, False]
    assert all(about["seconds"] > 0.1 for about in found)
    assert {about["cores"] for about in found} == {len(CORES)}


def test_a_signal_saves_the_runs_under_way_and_starts_no_other(tmp_path: Path) -> None:
    begun = run_of(tmp_path, "endless").folder / "metrics.jsonl"

    def ask() -> None:
        while not begun.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    # What a shell starts in the background ignores SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=ask, daemon=True).start()
        with pytest.raises(Stopped, match="SIGINT: stopped, and the runs under way are saved"):
            train(tmp_path, "endless", "never")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert not run_of(tmp_path, "never").folder.exists()
    assert not run_of(tmp_path, "endless").done


def test_a_second_command_waits_for_the_first_and_then_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_SAVING_S", 0.3)
    with only_one(tmp_path):
        with pytest.raises(OutputExists, match="is in use by another ablation"):
            with only_one(tmp_path):
                pass
    with only_one(tmp_path):
        pass


def test_a_folder_is_kept_while_a_run_of_a_killed_command_still_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_SAVING_S", 0.3)
    out = tmp_path / "out"
    with only_one(out) as lock:
        live = runner._start(run_of(out, "endless"), HERE, lock)
    try:
        with pytest.raises(OutputExists), only_one(out):
            pass
    finally:
        live.process.kill()
        live.process.wait()
    with only_one(out):
        pass


@pytest.mark.parametrize(
    ("log", "steps"),
    [
        ("", 0),
        ('{"step": 3, "loss": 0.1}\n', 3),
        ('{"step": 3}\n{"step": 4, "lo', 3),  # being written, or cut by a kill
        ('{"step": 3}\nhalf\n', 3),
        (f'{{"step": 1}}\n{{"step": 2, "pad": "{"x" * 5000}"}}\n{{"step": 3}}\n', 3),
    ],
)
def test_steps_are_read_from_the_end_of_a_log(tmp_path: Path, log: str, steps: int) -> None:
    (tmp_path / "metrics.jsonl").write_text(log)
    assert steps_taken(tmp_path) == steps


def test_cores_and_gpus_are_divided_among_the_runs() -> None:
    cores = frozenset(range(4))
    assert make_places(0, "cpu", 1, cores) == [Place(cores)]
    assert [place.cores for place in make_places(2, "cpu", 1, cores)] == [{0, 1}, {2, 3}]
    gpus = make_places(0, "gpu", 2, cores)
    assert [dict(place.environ) for place in gpus] == [
        {"CUDA_VISIBLE_DEVICES": "0"},
        {"CUDA_VISIBLE_DEVICES": "1"},
    ]
    (whole,) = make_places(1, "gpu", 2, cores)
    assert whole.environ == {"CUDA_VISIBLE_DEVICES": "0,1"}
    named = make_places(3, "gpu", 2, cores, visible="5,7")
    assert [place.environ["CUDA_VISIBLE_DEVICES"] for place in named] == ["5", "7", "5"]
    assert all(place.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false" for place in named)
    with pytest.raises(ConfigError, match="--parallel is 5, but there are 4 cores"):
        make_places(5, "cpu", 1, cores)
    with pytest.raises(ConfigError, match="runs on a TPU take all of it"):
        make_places(2, "tpu", 4, cores)
