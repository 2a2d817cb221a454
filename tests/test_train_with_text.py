"""Training told by text, in processes that cannot import torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.text.tiny_language_model import write_language_model
from tests.tiny import command_environment, tiny_config, write_config_file

pytest.importorskip("transformers", reason="needs the tokenizers of the extra `text`")

# As if they were not installed: no finder finds these names.
BLOCKED = """
import runpy, sys
names = set(sys.argv.pop(1).split(","))
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] in names else self.finder.find_spec(name, *rest)
sys.meta_path[:] = map(Hiding, sys.meta_path)
runpy.run_module(f"rtsam_jax.{sys.argv.pop(1)}", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """A folder in which `train` has run, torch blocked."""
    root = tmp_path_factory.mktemp("text")
    shutil.copytree(tiny_dataset, root / "dataset")
    write_language_model(root / "tiny_bert")
    cfg = tiny_config(
        "dataset",
        prompt__task="text",
        prompt__language_model="tiny_bert",
        prompt__feature_cache="cache",
        prompt__pooling="sentences",
        augment__flip_axes=(0,),
    )
    write_config_file(root / "config.py", cfg)
    result = run(root, "torch", "train", "--config=config.py")
    assert result.returncode == 0, result.stderr[-3000:]
    (root / "printed.txt").write_text(result.stdout)
    return root


def run(place: Path, blocked: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, blocked, *arguments],
        cwd=place,
        env=command_environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_training_and_scoring_need_no_torch(place: Path) -> None:
    printed = (place / "printed.txt").read_text()
    assert "tiny_bert: features of" in printed and "1 overlays and report.html are in" in printed
    about = json.loads((place / "runs/tiny/model.json").read_text())
    assert (
        about["language_model"]
        == json.loads((place / "tiny_bert/model.json").read_text())["digest"]
    )


def test_with_all_features_cached_not_even_the_tokenizer_is_needed(place: Path) -> None:
    again = ("--config=config.py", "--config.name=again")
    result = run(place, "torch,transformers,tokenizers,safetensors", "train", *again)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "features of" not in result.stdout
    table = "evaluation/test/cases.csv"
    assert (place / "runs/again" / table).read_text() == (place / "runs/tiny" / table).read_text()


def test_the_language_model_is_in_no_checkpoint(place: Path) -> None:
    """24 x 256 word embeddings would be larger than the adapter; names say it as well."""
    stored = next((place / "runs/tiny/checkpoints").glob("[0-9]*"))
    metadata = "".join(path.read_text(errors="replace") for path in stored.rglob("_METADATA"))
    assert "text_adapter" in metadata
    for name in ("word_embed", "position_embed", "type_embed"):
        assert name not in metadata


def test_probes_of_a_trained_run(place: Path) -> None:
    probes = ("--probe", "task", "text", "no-record")
    result = run(place, "torch", "evaluate", "--run", "runs/tiny", *probes)
    assert result.returncode == 0, result.stderr[-3000:]
    for name in ("task shuffled", "text shuffled", "no record"):
        assert f"model, {name}" in result.stdout
    result = run(place, "torch", "evaluate", "--run", "runs/tiny", "--probe", "record")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.startswith("error[config_invalid]: the probe 'record' would change")


def test_another_language_model_is_not_taken_for_the_runs_own(place: Path) -> None:
    (place / "tiny_bert").rename(place / "kept")
    try:
        result = run(place, "torch", "evaluate", "--run", "runs/tiny")
        assert result.returncode == 3 and "converters.clinical_bert" in result.stderr
        write_language_model(place / "tiny_bert", seed=1)
        for command in (
            ("evaluate", "--run", "runs/tiny"),
            ("train", "--config=config.py"),
        ):
            result = run(place, "torch", *command)
            assert result.returncode == 6, result.stderr
            assert "was trained on text features of the language model" in result.stderr
            assert "Traceback" not in result.stderr
    finally:
        shutil.rmtree(place / "tiny_bert", ignore_errors=True)
        (place / "kept").rename(place / "tiny_bert")


def test_a_language_model_may_move(place: Path) -> None:
    """What counts is its digest: the run resumes, and is scored, with the folder elsewhere."""
    (place / "tiny_bert").rename(place / "moved")
    try:
        moved = "--config.prompt.language_model=moved"
        result = run(place, "torch", "train", "--config=config.py", moved)
        assert result.returncode == 0 and "resuming at step 4" in result.stdout, result.stderr
        elsewhere = ("--run", "runs/again", "--language-model", "moved")
        result = run(place, "torch", "evaluate", *elsewhere)
        assert result.returncode == 0, result.stderr
    finally:
        (place / "moved").rename(place / "tiny_bert")


def test_a_missing_language_model_is_said_before_a_dataset_is_made(place: Path) -> None:
    options = ("--config.prompt.language_model=nowhere", "--config.data.dataset=made")
    result = run(
        place, "torch", "train", "--config=config.py", *options, "--config.data.builder=phantom"
    )
    assert result.returncode == 3 and not (place / "made").exists()
    assert result.stderr.startswith(
        "error[missing_file]: The language model nowhere does not exist"
    )


def test_a_record_that_names_a_person_is_refused(place: Path) -> None:
    shutil.copytree(place / "dataset", place / "named")
    file = place / "named" / "dataset.json"
    content = json.loads(file.read_text())
    content["cases"][0]["record"]["patient_name"] = "Roe^Jane"
    file.write_text(json.dumps(content))
    result = run(place, "torch", "train", "--config=config.py", "--config.data.dataset=named")
    assert result.returncode == 4 and "Jane" not in result.stderr
    assert result.stderr.startswith("error[record_invalid]: ") and "patient_name" in result.stderr
