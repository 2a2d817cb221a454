"""The example of docs/api.md runs as it stands."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtsam_jax.data.nifti import read_label, read_volume
from tests.tiny import REPOSITORY, SHAPE


def test_the_documented_example(
    run: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (REPOSITORY / "docs" / "api.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert 20 <= len(example.splitlines()) <= 32
    shutil.copytree(run, tmp_path / "runs" / "rt_injury")
    shutil.copy(tiny_dataset / "p3_image.nii.gz", tmp_path / "ct.nii.gz")
    shutil.copy(tiny_dataset / "p3_dose.nii.gz", tmp_path / "dose.nii.gz")
    shutil.copy(tiny_dataset / "p3_orn_label.nii.gz", tmp_path / "other_tool.nii.gz")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example, "docs/api.md", "exec"), names)
    written = read_label(tmp_path / "mask.nii.gz")
    image = read_volume(tmp_path / "ct.nii.gz")
    assert written.shape == SHAPE and np.array_equal(written.affine, image.affine)
    np.testing.assert_array_equal(names["again"].mask().array, written.array)
    stored = read_volume(tmp_path / "probability.nii.gz").array
    np.testing.assert_array_equal(stored >= 0.5, written.array)
    assert names["first"].volume_ml > 0
    assert not np.array_equal(names["refined"].probability, names["corrected"].probability)

    [measure] = re.findall(r"```py\n(.*?)```", page, re.DOTALL)  # of where crops lie
    exec(compile(measure, "docs/api.md", "exec"), names)
    place = names["opened"].tiles.place
    np.testing.assert_array_equal(names["before"][place], names["first"].probability >= 0.5)
    assert names["before"].any() and (names["before"] != names["after"]).any()
