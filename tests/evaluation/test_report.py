"""A results folder holds everything, says what it is, and keeps nothing of an earlier one."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import matplotlib.image
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rtsam_jax.evaluation.report import pick_for_figures, write_results
from rtsam_jax.metrics.case import CaseMetrics
from rtsam_jax.report.results_html import KINDS
from rtsam_jax.report.tables import read_cases
from tests.made_up import made_up

FILES = {"cases.csv", "all_cases.csv", "summary.csv", "differences.csv", "results.json"}
FILES |= {"tables.md", "tables.tex", "report.html"}
MISSED = made_up("b", 0.0, hd95_mm=math.inf, assd_mm=math.inf, masd_mm=math.inf, missed=True)
OWN = [made_up("a", 0.5), MISSED, made_up("d", 0.8, task="ce", volume_truth_ml=0.0)]
OTHER = [made_up(c.case, 0.1, task=c.task) for c in OWN]


def write(folder: Path, methods: dict[str, list[CaseMetrics]], **more) -> str:
    return write_results(
        folder, methods, **{"heading": "made up, split test", "kind": "synthetic"} | more
    )


def test_everything_is_written_and_says_its_kind(tmp_path: Path) -> None:
    text = write(tmp_path / "new", {"model": OWN, "ROI": OTHER}, notes=["A note."])
    assert {p.name for p in (tmp_path / "new").iterdir()} == FILES | {"plots"}
    assert "model" in text and text.endswith("\nA note.\n")
    markdown = (tmp_path / "new" / "tables.md").read_text()
    assert markdown.startswith(f"# made up, split test (synthetic)\n\n{KINDS['synthetic']}\n")
    assert text[:-10] in markdown and "A note." in markdown and "## Cases of model" in markdown
    tables = (tmp_path / "new" / "tables.tex").read_text()
    assert tables.count(r"\begin{tabular}") == tables.count("(synthetic)") == 5
    assert len(set(line for line in tables.splitlines() if r"\label" in line)) == 5
    page = (tmp_path / "new" / "report.html").read_text()
    assert KINDS["synthetic"] in page and page.count("<img") == 4
    for plot in (tmp_path / "new" / "plots").iterdir():
        pixels = matplotlib.image.imread(plot)
        assert min(pixels.shape[:2]) > 300 and pixels.std() > 0.01


def test_the_numbers_are_kept_in_full(tmp_path: Path) -> None:
    write(tmp_path, {"model": OWN, "ROI": OTHER})
    assert read_cases(tmp_path / "cases.csv") == OWN
    with (tmp_path / "all_cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["model"] * 3 + ["ROI"] * 3
    results = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert (results["schema"], results["kind"]) == (1, "synthetic")
    model = results["methods"]["model"]
    assert [case["case"] for case in model["cases"]] == ["a", "b", "d"]
    assert model["cases"][1]["hd95_mm"] is None and model["cases"][1]["missed"] is True
    assert model["cases"][0]["lesion_f1"] == 1 and model["cases"][0]["volume_error_ml"] == -0.5
    summary = model["tasks"]["orn"]
    assert summary["n_missed"] == 1
    assert summary["measures"]["hd95_mm"]["mean"] == 50.25  # of 0.5 and the diagonal
    assert model["tasks"]["ce"]["measures"]["dice"]["std"] is None
    assert list(model["strata"]) == ["empty truth", "1 to 5 mL"]
    with (tmp_path / "differences.csv").open() as file:
        [dice] = [
            row for row in csv.DictReader(file) if (row["task"], row["measure"]) == ("orn", "dice")
        ]
    assert float(dice["mean"]) == pytest.approx(0.15) and dice["other"] == "ROI"


def test_nothing_scored_leaves_nothing_of_the_evaluation_before(tmp_path: Path) -> None:
    write(tmp_path, {"model": OWN})
    write(tmp_path, {"model": []}, notes=["No case has a label."])
    assert not list((tmp_path / "plots").iterdir())
    for name in FILES - {"differences.csv"}:
        text = (tmp_path / name).read_text()
        assert "0.5" not in text.split("</style>")[-1].split("<script>")[0]
    assert "No case has a label." in (tmp_path / "report.html").read_text()


def test_a_method_on_other_cases_is_named(tmp_path: Path) -> None:
    text = write(tmp_path, {"model": OWN, "ROI": OTHER, "older": OWN[1:], "atlas": OTHER[:1]})
    assert text.endswith("not among the paired differences: older, atlas.\n")
    assert "paired differences: older, atlas." in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, {}),
        (1, {0: "best"}),
        (2, {0: "best", 1: "worst"}),
        (3, {0: "best", 3: "median", 1: "worst"}),
        (9, {0: "best", 2: "rank 2 of 5", 3: "median", 4: "rank 4 of 5", 1: "worst"}),
    ],
)
def test_figures_show_the_best_and_the_worst(count: int, expected: dict[int, str]) -> None:
    cases = [made_up(str(i), dice) for i, dice in enumerate((0.9, 0.1, 0.8, 0.5, 0.3))]
    found = pick_for_figures(cases, count)
    assert list(found.items()) == list(expected.items())


def test_empty_cases_are_drawn_only_where_there_are_no_others() -> None:
    empty = made_up("a", 1.0, both_empty=True)
    assert pick_for_figures([empty, made_up("b", 0.4)], 3) == {1: "only case"}
    assert pick_for_figures([empty, empty], 3) == {0: "best", 1: "worst"}


@settings(max_examples=30, deadline=None)
@example([0.1, 0.2, 0.3, 0.4], 3)  # the median lies as near to the best as to the one between
@given(st.lists(st.floats(0, 1), min_size=3, max_size=30), st.integers(3, 12))
def test_best_median_and_worst_are_always_shown(dices: list[float], count: int) -> None:
    found = pick_for_figures([made_up(str(i), dice) for i, dice in enumerate(dices)], count)
    shown = [dices[i] for i in found]
    assert len(found) == min(count, len(dices))
    assert shown == sorted(shown, reverse=True)
    names = {name: dices[i] for i, name in found.items()}
    assert (names["best"], names["worst"]) == (max(dices), min(dices))
    assert names["median"] == sorted(dices, reverse=True)[(len(dices) - 1) // 2]
