"""Tables and picture of simulated users."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import matplotlib.image
import pytest

from rtsam_jax.metrics.interactive import Interaction, PlacedClick
from rtsam_jax.report.click_results import write_click_results
from rtsam_jax.report.results_html import KINDS
from tests.report.browser import asked
from tests.report.parsed_page import Page

USERS = ("ideal", "centre")


def interaction(number: int, user: str, *, clicks: int, task: str = "orn") -> Interaction:
    step = 0.09 if user == "ideal" else 0.05
    dice = tuple(0.05 * number + step * k for k in range(clicks + 1))
    nsd = (math.nan, *dice[1:])
    placed = tuple(PlacedClick(k + 1, (1.5, -2.0, k), k % 2 == 0) for k in range(2))
    return Interaction(f"c{number}", f"p{number}", task, user, dice, nsd, placed, 0.0)


def written(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_click_of_every_case_and_user_is_on_disk(tmp_path: Path) -> None:
    found = [interaction(n, user, clicks=6) for n in range(3) for user in USERS]
    text = write_click_results(
        tmp_path, found, heading="tiny (synthetic)", kind="synthetic", notes=["Seed 7."]
    )
    curves = written(tmp_path, "curves.csv")
    assert len(curves) == 3 * 2 * 7 and curves[0]["nsd_2mm"] == ""  # NaN is an empty cell
    assert [float(row["dice"]) for row in curves[:7]] == list(found[0].dice)
    clicks = written(tmp_path, "clicks.csv")
    assert len(clicks) == 3 * 2 * 2
    assert [clicks[1][name] for name in ("click", "x_mm", "y_mm", "z_mm", "sign")] == [
        *("2", "1.5", "-2.0", "1", "negative")
    ]
    summary = {
        (row["task"], row["user"], row["measure"]): row for row in written(tmp_path, "summary.csv")
    }
    row = summary["orn", "ideal", "dice_last"]
    assert (row["n"], float(row["mean"])) == ("3", pytest.approx(0.59))
    assert float(row["low"]) == pytest.approx(0.54) and float(row["high"]) == pytest.approx(0.64)
    assert summary["all", "ideal", "dice_last"]["mean"] == row["mean"]
    assert summary["orn", "centre", "nsd_2mm_first"]["n"] == "0"
    assert (tmp_path / "summary.md").read_text() == f"# tiny (synthetic)\n\n{text}"
    assert text.endswith("\nSeed 7.\n") and "| all " not in text  # one task only
    assert "NoF@90" in text and "Dice area (0 to 4)" in text and "0.590 (0.540 to 0.640)" in text


def test_failures_are_counted_and_few_clicks_have_no_area_of_the_challenge(tmp_path: Path) -> None:
    found = [interaction(n, "ideal", clicks=4, task=t) for n in (10, 11) for t in ("orn", "ce")]
    text = write_click_results(tmp_path, found, heading="tiny", kind="synthetic")
    assert "Dice area" not in text and "| all " in text
    # 0.5 and 0.55 before any click, 0.09 more with each: 0.86 and 0.91 after four.
    row = next(line for line in text.splitlines() if "4.0 (4.0 to 4.0)" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "orn" and cells[3:] == [
        *("3.5 (3.0 to 4.0)", "0", "4.0 (4.0 to 4.0)", "0", "4.0 (4.0 to 4.0)", "1")
    ]


@pytest.mark.parametrize("tasks", [1, 3, 4])
def test_the_picture_has_a_panel_per_task(tmp_path: Path, tasks: int) -> None:
    found = [
        interaction(n, user, clicks=5, task=f"t{t}")
        for t in range(tasks)
        for n in range(2)
        for user in USERS
    ]
    write_click_results(tmp_path, found, heading="tiny, split test", kind="synthetic")
    picture = matplotlib.image.imread(tmp_path / "curves.png")[..., :3]
    assert picture.shape[0] > 500 and picture.shape[1] > 800
    assert (picture.std(-1) > 0.1).mean() > 0.002  # coloured curves


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("clicks")
    found = [interaction(n, user, clicks=6) for n in range(3) for user in USERS]
    write_click_results(place, found, heading="a <b> & c", kind="surrogate", notes=["Seed 7."])
    return place


def test_the_tables_are_latex_too(folder: Path) -> None:
    text = (folder / "summary.tex").read_text()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 4
    assert r"\label{tab:clicks-2}" in text and r"a $<$b$>$ \& c" in text
    assert "orn & ideal & 3 & 0.050 (0.000 to 0.100) & 0.590 (0.540 to 0.640)" in text


def test_the_page_has_tables_cases_and_curves(folder: Path) -> None:
    page = Page((folder / "report.html").read_text())
    assert page.text("h1") == ["Corrections by clicks: a <b> & c"]
    assert {KINDS["surrogate"], "Seed 7."} <= set(page.text("p"))
    assert page.text("h2")[-2:] == ["Plots", "Cases"] and len(page.text("h2")) == 6
    assert page.text("td")[-7:] == ["orn", "c2", "centre", "0.100", "0.400", "0.250", "2"]
    (image,) = page.all("img")
    assert (image["src"] or "").startswith("data:image/png;base64,")


def test_a_browser_shows_the_page(folder: Path, tmp_path: Path) -> None:
    found = asked(folder / "report.html", tmp_path / "copy.html")
    assert found["failures"] == [] and len(found["columns"]) == 5
    [(alt, width)] = found["images"]
    assert alt == "Dice over clicks" and width > 500
