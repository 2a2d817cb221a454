"""Which cases of scored runs are shown side by side, and which runs cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rtsam_jax.data.nifti import Volume, read_label, write_volume
from rtsam_jax.data.preprocess import PreprocessSpec
from rtsam_jax.data.selection import RunData, load_run_data
from rtsam_jax.evaluation import side_by_side
from rtsam_jax.evaluation.kept_masks import mask_file
from rtsam_jax.evaluation.side_by_side import (
    ScoredRun,
    draw_by_task,
    draw_ranked,
    draw_side_by_side,
)
from rtsam_jax.report.results_html import Picture
from rtsam_jax.report.side_by_side import Row
from tests.scored_run import scored
from tests.tiny import tiny_config


@pytest.fixture
def data(tiny_dataset: Path) -> RunData:
    return load_run_data(tiny_config(tiny_dataset))


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[list[Row]]:
    """Collects what is drawn."""
    kept: list[list[Row]] = []
    draw = side_by_side.plot_side_by_side

    def collect(of: list[Row], title: str, out: Path) -> None:
        kept.append(of)
        draw(of, title, out)

    monkeypatch.setattr(side_by_side, "plot_side_by_side", collect)
    return kept


def test_the_last_runs_ranking_chooses_and_every_run_shows_its_own_mask(
    data: RunData, tmp_path: Path, rows: list[list[Row]]
) -> None:
    other = scored("other", data, tmp_path / "a", {"p3_orn": 0, "p4_ce": 2})
    last = scored("last", data, tmp_path / "b", {"p3_orn": 1, "p4_ce": 0})
    spec = PreprocessSpec.from_config(tiny_config(data.dataset.root))
    folder = tmp_path / "figures"
    pictures = draw_ranked([other, last], data, spec, "tiny", folder)
    assert [picture.path.name for picture in pictures] == ["best.png", "worst.png"]
    assert [picture.title for picture in pictures] == [
        "best of last: p4_ce",
        "worst of last: p3_orn",
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["best.png", "worst.png"]
    for shown, run, case in ((rows[0], last, "p3_orn"), (rows[1], last, "p4_ce")):
        assert [row.title for row in shown] == ["Axial", "Coronal", "Sagittal"]
        assert [*shown[0].masks] == ["other", "last"]
        (measured,) = [found for found in run.cases if found.case == case]
        assert shown[0].said["last"] == f"Dice {measured.dice:.2f}"
    moved, exact = rows[0][0].masks["last"], rows[0][0].masks["other"]
    assert (exact == rows[0][0].truth).all() and not (moved == exact).all()


def test_a_case_of_every_task(data: RunData, tmp_path: Path, rows: list[list[Row]]) -> None:
    run = scored("run", data, tmp_path / "a", {"p3_orn": 0, "p4_ce": 1})
    spec = PreprocessSpec.from_config(tiny_config(data.dataset.root))
    picture = draw_by_task([run], data, spec, "tiny", tmp_path / "fig4.png")
    assert picture.path.stat().st_size > 10_000
    assert [row.title for row in rows[0]] == ["orn\np3_orn", "ce\np4_ce"]


def test_a_run_without_masks_is_named(data: RunData, tmp_path: Path) -> None:
    runs = [scored(f"run {i}", data, tmp_path / str(i), {"p3_orn": 0, "p4_ce": 1}) for i in (0, 1)]
    folder, asked = tmp_path / "figures", []

    def draw(shown: Sequence[ScoredRun]) -> list[Picture]:
        assert not folder.exists()  # pictures of an earlier state are gone
        asked.append(list(shown))
        return [Picture(folder / "x.png", "x")]

    def drawn() -> tuple[int, str]:
        folder.mkdir(exist_ok=True)
        pictures, said = draw_side_by_side(runs, folder, draw)
        return len(pictures), said

    assert drawn() == (1, "") and asked.pop() == runs
    mask_file(runs[0].results, "p4_ce").unlink()
    found, said = drawn()
    assert found == 1 and asked.pop() == runs[1:] and "kept none): run 0; `python -m" in said
    mask_file(runs[1].results, "p3_orn").unlink()
    found, said = drawn()
    assert found == 0 and not asked and "kept none): run 0, run 1;" in said and not folder.exists()


def test_runs_without_cases_are_not_drawn(tmp_path: Path) -> None:
    def draw(shown: Sequence[ScoredRun]) -> list[Picture]:
        raise AssertionError("there is nothing to draw")

    assert draw_side_by_side([ScoredRun("run", tmp_path, [])], tmp_path / "x", draw) == ([], "")


@pytest.mark.parametrize("fault", ["missing or damaged", "not on the grid of its label"])
def test_a_damaged_mask_is_told_and_costs_the_pictures_alone(
    data: RunData, tmp_path: Path, fault: str
) -> None:
    runs = [scored(f"run {i}", data, tmp_path / str(i), {"p3_orn": 0, "p4_ce": 1}) for i in (0, 1)]
    damaged = mask_file(runs[0].results, "p4_ce")
    spec = PreprocessSpec.from_config(tiny_config(data.dataset.root))
    if fault == "missing or damaged":
        damaged.write_text("x")
    else:
        mask = read_label(damaged)
        write_volume(damaged, Volume(mask.array, mask.affine + 50 * np.eye(4)), np.uint8)
    folder = tmp_path / "figures"
    pictures, said = draw_side_by_side(
        runs, folder, lambda shown: draw_ranked(shown, data, spec, "tiny", folder)
    )
    assert pictures == []
    assert said == (
        f"Masks are not shown side by side: {damaged} is {fault}; delete it and have its run "
        "scored again."
    )
