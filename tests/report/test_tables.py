"""Tables: alignment, rounding, what stands beside a mean, CSV that loses nothing."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from rtsam_jax.metrics.summary import MEASURES, CaseMetrics
from rtsam_jax.report.tables import (
    Table,
    case_rows,
    case_table,
    render,
    task_rows,
    task_table,
    write_csv,
)


def case(name: str, value: float, task: str = "orn", **fields) -> CaseMetrics:
    values: dict = {measure: value for measure in MEASURES}
    values |= {"volume_pred_ml": 1.5, "volume_truth_ml": 2.0, "diagonal_mm": 100.0}
    values |= {"both_empty": False, "missed": False} | fields
    return CaseMetrics(case=name, patient=f"patient-{name}", task=task, **values)


MISSED = case("b", 0.0, hd95_mm=math.inf, assd_mm=math.inf, missed=True)
EMPTY = case("c", 1.0, hd95_mm=math.nan, assd_mm=math.nan, both_empty=True)


def cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [rows[0], *rows[2:]]  # without the rule


def test_render_aligns_and_rounds() -> None:
    table = Table(("name", "n", "value"), (("a", 1, 0.12345), ("longer", 20, math.inf)))
    assert render(table) == (
        "| name   |   n | value |\n"
        "| ------ | --: | ----: |\n"
        "| a      |   1 | 0.123 |\n"
        "| longer |  20 |   inf |\n"
    )


def test_render_shows_missing_values_and_keeps_the_columns() -> None:
    text = render(Table(("a|b", "c"), ((None, "x|y\nz"), (math.nan, True))))
    assert text.splitlines()[0].startswith("| a\\|b |")
    assert r"x\|y z" in text and "yes" in text
    assert len({len(line) for line in text.splitlines()}) == 1


def test_no_rows_and_wrong_rows() -> None:
    assert render(Table(("a", "b"), ())).count("\n") == 2
    with pytest.raises(ValueError, match="Row 1"):
        Table(("a", "b"), ((1, 2), (3,)))


def test_case_table_names_every_case_and_its_fate() -> None:
    header, first, second, third = cells(case_table([case("a", 0.5), MISSED, EMPTY]))
    assert header[:4] == ["Task", "Case", "Dice", "IoU"]
    assert first == ["orn", "a", *["0.500"] * 4, "0.50", "0.50", "1.50", "2.00", ""]
    assert second[6:8] == ["inf", "inf"] and second[-1] == "missed"
    assert third[6:8] == ["-", "-"] and third[-1] == "both empty"


def test_task_table_puts_methods_side_by_side_with_the_misses() -> None:
    model = [case("a", 0.5, hd95_mm=4.0), MISSED, case("d", 0.8, task="ce")]
    roi = [case("a", 0.1), case("b", 0.3), case("d", 0.2, task="ce")]
    header, *rows = cells(task_table({"model": model, "ROI": roi}))
    assert [row[:2] for row in rows] == [
        ["orn", "model"],
        ["orn", "ROI"],
        ["ce", "model"],
        ["ce", "ROI"],
        ["all", "model"],
        ["all", "ROI"],
    ]
    values = dict(zip(header, rows[0], strict=True))
    assert (values["n"], values["Missed"], values["Both empty"]) == ("2", "1", "0")
    assert values["Dice"] == "0.250 ± 0.354"
    assert values["HD95 (mm)"] == "52.00 ± 67.88"  # the miss counts as its diagonal, 100 mm
    assert dict(zip(header, rows[2], strict=True))["Dice"] == "0.800"  # no spread of one case


def test_task_table_of_one_task_does_not_repeat_it() -> None:
    _, *rows = cells(task_table({"model": [case("a", 0.5)], "ROI": [case("a", 0.1)]}))
    assert [row[0] for row in rows] == ["orn", "orn"]


def test_csv_keeps_every_digit(tmp_path: Path) -> None:
    write_csv(case_rows([case("a", 1 / 3), MISSED, EMPTY]), tmp_path / "new" / "cases.csv")
    with (tmp_path / "new" / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["a", "b", "c"]
    assert rows[0]["patient"] == "patient-a"
    assert float(rows[0]["dice"]) == 1 / 3
    assert float(rows[1]["hd95_mm"]) == math.inf and rows[1]["missed"] == "True"
    assert rows[2]["assd_mm"] == ""


def test_task_csv_has_all_methods_and_statistics(tmp_path: Path) -> None:
    write_csv(task_rows({"model": [case("a", 0.5), MISSED, EMPTY]}), tmp_path / "tasks.csv")
    with (tmp_path / "tasks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], row["method"]) for row in rows] == [("orn", "model"), ("all", "model")]
    row = rows[0]
    assert (row["n"], row["n_missed"], row["n_both_empty"]) == ("3", "1", "1")
    assert (row["dice_n"], row["hd95_mm_n"]) == ("3", "2")
    assert float(row["hd95_mm_mean"]) == pytest.approx(50.25)
    assert float(row["dice_median"]) == 0.5


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_csv(Table(("a",), ((1,),)), path)
    with pytest.raises(UnicodeEncodeError):
        write_csv(Table(("a",), ((2,), ("\ud800",))), path)
    assert path.read_text() == "a\n1\n"
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]
