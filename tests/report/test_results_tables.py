"""The tables of a results folder against numbers found by hand."""

from __future__ import annotations

import math

import pytest

from rtsam_jax.report.results_tables import (
    COMPARED,
    case_table,
    difference_rows,
    difference_table,
    find_differences,
    render_differences,
    results_tables,
)
from rtsam_jax.report.tables import Table
from tests.made_up import made_up

MISSED = made_up("b", 0.0, hd95_mm=math.inf, assd_mm=math.inf, missed=True)
EMPTY = made_up("c", 1.0, hd95_mm=math.nan, assd_mm=math.nan, both_empty=True)


def tables(methods) -> dict[str, Table]:
    return {t.title: t.table for t in results_tables(methods, find_differences(methods))}


def row(table: Table, *first: object) -> dict[str, object]:
    [found] = [row for row in table.rows if row[: len(first)] == first]
    return dict(zip(table.header, found, strict=True))


def test_methods_stand_side_by_side_with_their_misses() -> None:
    model = [made_up("a", 0.5, hd95_mm=4.0), MISSED, made_up("d", 0.8, task="ce")]
    roi = [made_up("a", 0.1), made_up("b", 0.3), made_up("d", 0.2, task="ce")]
    measures = tables({"model": model, "ROI": roi})["Measures"]
    pairs = [(task, method) for task in ("orn", "ce", "all") for method in ("model", "ROI")]
    assert [row[:2] for row in measures.rows] == pairs
    found = row(measures, "orn", "model")
    assert (found["n"], found["Missed"], found["Both empty"]) == (2, 1, 0)
    assert found["Dice"] == "0.250 ± 0.354"
    assert found["HD95 (mm)"] == "52.00 ± 67.88"  # the miss counts as its diagonal, 100 mm
    assert row(measures, "ce", "model")["Dice"] == "0.800"  # no spread of one case


def test_one_task_is_not_repeated_as_all() -> None:
    found = tables({"model": [made_up("a")], "ROI": [made_up("a")]})
    assert [row[0] for row in found["Measures"].rows] == ["orn", "orn"]
    assert {row[0] for row in found["Paired differences"].rows} == {"orn"}


def test_intervals_need_two_patients_and_lie_around_the_mean() -> None:
    cases = [made_up("a", 0.2), made_up("b", 0.4, patient="p"), made_up("c", 0.6, patient="p")]
    alone = [made_up("d", 0.2, task="ce", patient="q"), made_up("e", 0.4, task="ce", patient="q")]
    intervals = tables({"model": cases + alone})["95 % intervals of the means"]
    assert row(intervals, "orn", "model")["Dice"] == "0.200 to 0.500"  # one patient's or another's
    assert row(intervals, "ce", "model")["Dice"] == "-"


def test_sizes_have_a_row_for_every_method_and_small_ones_come_first() -> None:
    volumes = {"a": 0.5, "b": 3.0, "c": 3.5, "d": 0.0}
    cases = [made_up(name, 0.4, volume_truth_ml=v) for name, v in volumes.items()]
    sizes = tables({"model": cases, "ROI": cases})["By lesion size"]
    labels = ["empty truth", "below 1 mL", "1 to 5 mL"]
    assert [row[:3] for row in sizes.rows] == [
        (label, "orn", method) for label in labels for method in ("model", "ROI")
    ]
    assert row(sizes, "1 to 5 mL", "orn", "ROI")["n"] == 2


def test_sizes_are_told_apart_by_task_where_there_are_several() -> None:
    cases = [
        made_up("a", 0.2, volume_truth_ml=0.5, task="ce"),
        made_up("b", 0.4, volume_truth_ml=3.0),
        made_up("c", 0.8, volume_truth_ml=0.5),
    ]
    sizes = tables({"model": cases})["By lesion size"]
    assert [row[:2] for row in sizes.rows] == [
        *(("below 1 mL", task) for task in ("ce", "orn", "all")),
        *(("1 to 5 mL", task) for task in ("orn", "all")),
    ]
    assert row(sizes, "below 1 mL", "all")["Dice"] == "0.500 ± 0.424"
    assert row(sizes, "below 1 mL", "ce")["Dice"] == "0.200"


def test_structures_are_averaged_over_the_cases_that_have_them() -> None:
    cases = [
        made_up("a", structures_ml={"cord": 0.0, "stem": 1.0}),
        made_up("b", structures_ml={"cord": 3.0}),
        made_up("c"),
    ]
    found = tables({"model": cases})
    cord = row(found["False positives in structures"], "cord")
    assert (cord["n"], cord["Touched"]) == (2, 1)
    assert (cord["Mean (mL)"], cord["Largest (mL)"]) == ("1.50 ± 2.12", "3.00")
    assert row(found["False positives in structures"], "stem")["n"] == 1
    assert "False positives in structures" not in tables({"model": [made_up("a")]})


def test_differences_are_of_the_first_method_to_each_other_one() -> None:
    own = [made_up(str(i), 0.5 + 0.01 * i) for i in range(8)] + [made_up("x", 0.9, task="ce")]
    better = [
        made_up(c.case, c.dice + 0.02 * (i + 1), task=c.task, hd95_mm=c.hd95_mm)
        for i, c in enumerate(own)
    ]
    methods = {"model": own, "better": better, "elsewhere": own[1:]}
    differences = find_differences(methods)
    assert {d.other for d in differences} == {"better"}  # nothing to pair with on other cases
    [dice] = [d for d in differences if (d.task, d.measure) == ("orn", "dice")]
    assert dice.n == 8 and dice.mean == pytest.approx(-0.09)
    assert -0.16 < dice.low < dice.mean < dice.high < -0.02
    assert dice.p == pytest.approx(2 / 2**8)  # all eight signs alike
    table = difference_table(differences)
    assert difference_table(find_differences(methods, COMPARED)) == table
    assert [row[:2] for row in table.rows] == [(t, "model - better") for t in ("orn", "ce", "all")]
    found = row(table, "all")
    assert found["n"] == 9 and found["Dice"] == "-0.100" and found["HD95 (mm)"] == "+0.00"
    assert row(table, "ce")["95 % interval"] == "-"  # one patient
    assert len(difference_rows(differences).rows) == len(differences)


def test_differences_say_which_pairs_they_leave_out() -> None:
    """The truth of c is empty: one method is right, the other marks something there."""
    own = [made_up("a", 0.5), made_up("b", 0.7), EMPTY, made_up("d", 0.7, task="ce")]
    flood = [*own[:2], made_up("c", 0.0, hd95_mm=math.inf, missed=True), own[3]]
    methods = {"model": own, "flood": flood, "same": own[:2]}
    differences = find_differences(methods)
    [found] = [d for d in differences if (d.task, d.measure) == ("orn", "hd95_mm")]
    assert (found.n, found.left_out, found.left_out_missed) == (2, 1, 1)
    [dice] = [d for d in differences if (d.task, d.measure) == ("all", "dice")]
    assert (dice.n, dice.left_out, dice.mean) == (4, 0, 0.25)
    [titled] = [t for t in results_tables(methods, differences) if t.title == "Paired differences"]
    everything = next(row for row in titled.table.rows if row[0] == "all")
    assert [c for c, h in zip(everything, titled.table.header, strict=True) if h == "n"] == [4, 3]
    said = "leave out: model - flood 1 of 4 pairs, 1 of them with a miss of the other method."
    assert said in titled.note and said in render_differences(methods)
    assert "leave out" not in render_differences({"model": own[:2], "same": own[:2]})


def test_case_table_names_every_case_and_its_fate() -> None:
    table = case_table([made_up("a", 0.5), MISSED, EMPTY])
    assert table.header[:4] == ("Task", "Case", "Dice", "IoU")
    first, second, third = table.rows
    assert first == ("orn", "a", *["0.500"] * 4, "0.50", "0.50", "1.50", "2.00", "")
    assert second[6:8] == ("inf", "inf") and second[-1] == "missed"
    assert third[6:8] == ("-", "-") and third[-1] == "both empty"
