"""`python -m rtsam_jax.interact` on a run that has saved a step."""

from __future__ import annotations

import csv
import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from rtsam_jax import interact
from rtsam_jax.config import MeshConfig
from rtsam_jax.data.cache import cache_root
from rtsam_jax.data.fingerprints import fingerprints
from rtsam_jax.data.selection import load_run_data
from rtsam_jax.errors import ConfigError, IncompleteCase, RTSamError, SplitError
from rtsam_jax.optim import make_optimizer
from rtsam_jax.text.prompt_set import task_sentences
from rtsam_jax.training.checkpoint import RunCheckpoints
from rtsam_jax.training.model_file import write_model_file
from rtsam_jax.training.run import open_run_folder
from rtsam_jax.training.sharding import make_mesh
from rtsam_jax.training.state import build
from tests.tiny import run_module, tiny_config

TABLES = ("curves.csv", "clicks.csv", "summary.csv", "summary.md", "summary.tex")
FILES = (*TABLES, "curves.png", "report.html")
OPTIONS = ("--clicks", "2", "--candidates", "3")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """A run's folder before its first step."""
    place = tmp_path_factory.mktemp("interact")
    shutil.copytree(tiny_dataset, place / "dataset")
    cfg = tiny_config(place / "dataset", out=str(place / "run"))
    data = load_run_data(cfg)
    one = make_mesh(MeshConfig(data=1), 1)
    built = build(cfg, len(data.tasks), make_optimizer(cfg.optim, 1), one)
    with open_run_folder(cfg, fingerprints(data.train, cache_root(cfg))) as folder:
        write_model_file(folder, cfg, data, task_sentences(data.dataset, cfg.prompt))
        with closing(RunCheckpoints(folder, keep=1)) as checkpoints:
            checkpoints.save(built, loss=1.0)
    return folder


def command(monkeypatch: pytest.MonkeyPatch, run: Path, *options: str) -> Path:
    monkeypatch.setattr("sys.argv", ["interact", "--run", str(run), *OPTIONS, *options])
    interact.main()
    return run / "interactive" / "test"


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_what_it_leaves_and_how_it_goes_on(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = command(monkeypatch, run)
    said = capsys.readouterr().out
    assert "tiny (synthetic), split test" in said and "played 6/6 interactions" in said
    assert "noisy (shift_mm 3, wrong 0.1); seed 0" in said
    first = contents(folder)
    with (folder / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 3  # cases, users, points of a curve
    assert {row["user"] for row in rows} == {"ideal", "centre", "noisy"}
    before = {(row["case"], row["dice"]) for row in rows if row["click"] == "0"}
    assert len(before) == 2  # all users begin with the same prediction

    # Stopped: one file is not there yet, another was cut short.
    kept = folder / "interactions"
    (kept / "noisy" / "p3_orn.json").unlink()
    (kept / "ideal" / "p4_ce.json").write_text('{"key": "')
    assert contents(command(monkeypatch, run)) == first
    said = capsys.readouterr().out
    assert "4 of 6 interactions are there already" in said and "played 2/2" in said

    shutil.rmtree(folder)
    assert contents(command(monkeypatch, run)) == first  # the same again from nothing


def test_only_what_depends_on_a_setting_is_played_again(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, run)
    folder = command(monkeypatch, run, "--users", "centre", "noisy", "--wrong", "1")
    said = capsys.readouterr().out
    assert (
        "2 of 4 interactions are there already" in said and "| ideal" not in said.split("2 of 4")[1]
    )
    key = json.loads((folder / "interactions" / "centre" / "p3_orn.json").read_text())["key"]
    command(monkeypatch, run, "--users", "centre", "--cases", "1", "--seed", "1")
    assert "there already" not in capsys.readouterr().out
    assert (
        json.loads((folder / "interactions" / "centre" / "p3_orn.json").read_text())["key"] != key
    )
    label = run.parent / "dataset" / "p4_ce_label.nii.gz"
    other = run.parent / "dataset" / "p3_orn_label.nii.gz"
    content = label.read_bytes()
    label.write_bytes(other.read_bytes())
    try:
        command(monkeypatch, run, "--users", "centre", "--seed", "1")
    finally:
        label.write_bytes(content)
    assert "1 of 2 interactions are there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        (("--candidates", "0"), ConfigError, "--candidates is 0, but it must be at least 1"),
        (("--wrong", "1.5"), ConfigError, "--wrong is 1.5"),
        (("--shift-mm", "nan"), ConfigError, "--shift-mm is nan"),
        (
            ("--split", "tset"),
            SplitError,
            r"'tset' .*\['test', 'train'\]: name one with --split\.$",
        ),
    ],
)
def test_a_mistake_has_an_error_of_its_own(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    error: type[RTSamError],
    named: str,
) -> None:
    with pytest.raises(error, match=named):
        command(monkeypatch, run, *options)


def test_cases_without_labels_are_said_not_to_be_there(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = run.parent / "dataset" / "dataset.json"
    content = manifest.read_text()
    document = json.loads(content)
    for case in document["cases"]:
        if case["split"] == "test":
            del case["label"]
    manifest.write_text(json.dumps(document))
    try:
        with pytest.raises(IncompleteCase, match="no case of tiny, split test, has a label"):
            command(monkeypatch, run)
    finally:
        manifest.write_text(content)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    result = run_module("interact", "--run", "nowhere", "--clicks", "0", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error[config_invalid]: --clicks is 0, but it must be")
