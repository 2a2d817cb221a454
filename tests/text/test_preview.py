from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rtsam_jax.errors import ConfigError, RecordError
from rtsam_jax.text.__main__ import main


def test_every_case_is_read_out(tiny_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tiny_dataset), "--task-text", "ce=the swollen white matter"])
    printed = capsys.readouterr().out
    assert (
        "p0_orn\n  Segment the osteoradionecrosis of the jaw in this CT image.\n"
        "  The injury is on the left side.\n  The patient is a 61-year-old woman.\n"
    ) in printed
    assert "p4_ce\n  Segment the swollen white matter in this MR image.\n" in printed
    assert "mirrored" not in printed


def test_what_cannot_be_mirrored_is_said(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_dataset, tmp_path / "own")
    file = tmp_path / "own" / "dataset.json"
    content = json.loads(file.read_text())
    content["cases"][0]["record"]["note"] = "Scar on the L cheek"
    file.write_text(json.dumps(content))
    main([str(tmp_path / "own"), "--free-text"])
    printed = capsys.readouterr().out
    assert "p0_orn  (cannot be mirrored: not flipped)\n" in printed
    assert printed.count("cannot be mirrored") == 1
    with pytest.raises(RecordError, match="note"):
        main([str(tmp_path / "own")])


def test_a_malformed_task_text(tiny_dataset: Path) -> None:
    for text, named in (("swelling", "task_texts"), ("dent=a dent", "names the task 'dent'")):
        with pytest.raises(ConfigError, match=named):
            main([str(tiny_dataset), "--task-text", text])
