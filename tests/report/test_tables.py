"""Tables: alignment, rounding, what stands beside a mean, CSV that loses nothing."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from rtsam_jax.errors import MissingFile, UnreadableFile
from rtsam_jax.report.tables import (
    Table,
    case_rows,
    numeric_columns,
    read_cases,
    render,
    signed,
    task_rows,
    write_csv,
)
from tests.made_up import made_up

MISSED = made_up("b", 0.0, hd95_mm=math.inf, assd_mm=math.inf, missed=True)
EMPTY = made_up("c", 1.0, hd95_mm=math.nan, assd_mm=math.nan, both_empty=True)


@pytest.mark.parametrize(
    ("value", "text"), [(0.25, "+0.250"), (0.0, "+0.000"), (-0.0, "-0.000"), (math.nan, "-")]
)
def test_a_difference_has_one_sign(value: float, text: str) -> None:
    assert signed(value, "dice") == text


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


def test_a_column_of_numbers_stands_to_the_right_whatever_their_form() -> None:
    table = Table(("a", "b", "c"), ((1, "+0.12 to +0.30", "x 1"), (None, "<0.001", "2")))
    assert numeric_columns(table) == [True, True, False]


def test_no_rows_and_wrong_rows() -> None:
    assert render(Table(("a", "b"), ())).count("\n") == 2
    with pytest.raises(ValueError, match="Row 1"):
        Table(("a", "b"), ((1, 2), (3,)))


def test_csv_keeps_every_digit(tmp_path: Path) -> None:
    write_csv(
        case_rows([made_up("a", 1 / 3, patient="p7"), MISSED, EMPTY]),
        tmp_path / "new" / "cases.csv",
    )
    with (tmp_path / "new" / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["a", "b", "c"]
    assert rows[0]["patient"] == "p7"
    assert float(rows[0]["dice"]) == 1 / 3
    assert float(rows[1]["hd95_mm"]) == math.inf and rows[1]["missed"] == "True"
    assert rows[2]["assd_mm"] == ""


def test_cases_are_read_back_as_they_were(tmp_path: Path) -> None:
    odd = made_up("1", 0.1 + 0.2, patient="007", structures_ml={"cord": 1 / 3, "stem": 0.0})
    cases = [odd, MISSED, EMPTY]
    write_csv(case_rows(cases), tmp_path / "cases.csv")
    again = read_cases(tmp_path / "cases.csv")
    for ours, theirs in zip(cases, again, strict=True):
        assert repr(theirs) == repr(ours)  # NaN differs from itself


def test_a_damaged_table_of_cases_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    with pytest.raises(MissingFile, match="evaluate that run"):
        read_cases(path)
    write_csv(case_rows([made_up("a")]), path)
    header, row = path.read_text().splitlines()
    path.write_text(f"{header}\n{row[: len(row) // 2]}\n")
    with pytest.raises(UnreadableFile, match="evaluate that run again"):
        read_cases(path)
    few = header.split(",")[:14]  # what an earlier version wrote
    path.write_text(",".join(few) + "\n")
    with pytest.raises(UnreadableFile, match="no column 'masd_mm', so an earlier version"):
        read_cases(path)


def test_task_csv_has_all_methods_and_statistics(tmp_path: Path) -> None:
    write_csv(task_rows({"model": [made_up("a", 0.5), MISSED, EMPTY]}), tmp_path / "tasks.csv")
    with (tmp_path / "tasks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], row["method"]) for row in rows] == [("orn", "model"), ("all", "model")]
    row = rows[0]
    assert (row["n"], row["n_missed"], row["n_both_empty"]) == ("3", "1", "1")
    assert (row["dice_n"], row["hd95_mm_n"]) == ("3", "2")
    assert float(row["hd95_mm_mean"]) == pytest.approx(50.25)
    assert float(row["dice_median"]) == 0.5
    assert row["nsd_2mm_n"] == "3" and float(row["dice_low"]) <= 0.5 <= float(row["dice_high"])


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_csv(Table(("a",), ((1,),)), path)
    with pytest.raises(UnicodeEncodeError):
        write_csv(Table(("a",), ((2,), ("\ud800",))), path)
    assert path.read_text() == "a\n1\n"
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]
