"""A folder appears whole or not at all, also where two commands make it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtsam_jax.data.new_folder import new_folder
from rtsam_jax.errors import OutputExists


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("there", [False, True])
def test_it_appears_at_the_end(tmp_path: Path, there: bool) -> None:
    root = tmp_path / "a" / "root"
    if there:
        root.mkdir(parents=True)
    with new_folder(root) as beside:
        (beside / "x").touch()
        assert names(root) == [] if there else not root.exists()
    assert names(root) == ["x"] and names(tmp_path / "a") == ["root"]
    assert root.stat().st_mode & 0o777 == 0o755


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="half"), new_folder(tmp_path / "root") as beside:
        (beside / "x").touch()
        raise ValueError("half way")
    assert names(tmp_path) == []


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    for root in (tmp_path, tmp_path / "x"):
        with pytest.raises(OutputExists, match="not empty"), new_folder(root):
            pass
    assert names(tmp_path) == ["x"]


def test_the_slower_of_two_is_told(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with pytest.raises(OutputExists, match="meanwhile; start this one again"):
        with new_folder(root) as slow:
            (slow / "slow").touch()
            with new_folder(root) as quick:
                (quick / "quick").touch()
    assert names(root) == ["quick"] and names(tmp_path) == ["root"]
