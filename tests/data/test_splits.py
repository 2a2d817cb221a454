"""Splits by patient: no leaks, the paper's share per task, stable on disk."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.data.cases import Case, Dataset, TaskInfo
from rtsam_jax.data.splits import assign_splits, inner_split, load_or_make_splits
from rtsam_jax.errors import SplitError

HERE = Path(".")


def dataset_of(pairs: list[tuple[str, str]], splits: list[str] | None = None) -> Dataset:
    """Pairs of patient and task."""
    cases = tuple(
        Case(f"c{i}", patient, task, HERE, HERE, split=splits[i] if splits else None)
        for i, (patient, task) in enumerate(pairs)
    )
    tasks = tuple(TaskInfo(task, "CT", task) for task in sorted({task for _, task in pairs}))
    return Dataset(HERE, "demo", "synthetic", "", tasks, cases)


def leaks(dataset: Dataset, splits: dict[str, str]) -> list[str]:
    sides: dict[str, set[str]] = {}
    for case in dataset.cases:
        sides.setdefault(case.patient, set()).add(splits[case.id])
    return [patient for patient, names in sides.items() if len(names) > 1]


PAIRS = st.lists(
    st.tuples(st.integers(0, 25).map("p{}".format), st.sampled_from(["orn", "ce", "crn"])),
    min_size=2,
    max_size=60,
)


@settings(deadline=None, max_examples=60)
@given(pairs=PAIRS, seed=st.integers(0, 5))
def test_no_patient_on_two_sides_and_no_side_empty(pairs, seed: int) -> None:
    dataset = dataset_of(pairs)
    if len({patient for patient, _ in pairs}) < 2:
        with pytest.raises(SplitError, match="single patient"):
            assign_splits(dataset, seed=seed)
        return
    splits = assign_splits(dataset, seed=seed)
    assert list(splits) == [case.id for case in dataset.cases]
    assert not leaks(dataset, splits)
    assert "train" in splits.values()
    assert splits == assign_splits(dataset, seed=seed)


def test_the_papers_counts_are_split_four_to_one_per_task() -> None:
    sizes = {"orn": 29, "ce": 19, "crn": 22}
    pairs = [(f"{task}{i}", task) for task, n in sizes.items() for i in range(n)]
    dataset = dataset_of(pairs)
    for seed in range(5):
        splits = assign_splits(dataset, seed=seed)
        tested = Counter(case.task for case in dataset.cases if splits[case.id] == "test")
        assert tested == {"orn": 6, "ce": 4, "crn": 4}  # nearest to a fifth


def test_patients_with_every_task_are_split_exactly() -> None:
    dataset = dataset_of([(f"p{i}", task) for i in range(20) for task in ("a", "b", "c")])
    splits = assign_splits(dataset, seed=3)
    assert Counter(splits.values()) == {"train": 48, "test": 12}
    assert not leaks(dataset, splits)


def test_a_task_of_two_patients_is_on_both_sides() -> None:
    dataset = dataset_of([("a", "orn"), ("b", "orn")] + [(f"p{i}", "ce") for i in range(10)])
    splits = assign_splits(dataset, seed=0)
    assert {splits["c0"], splits["c1"]} == {"train", "test"}


def test_seeds_differ_and_order_of_cases_does_not_matter() -> None:
    pairs = [(f"p{i}", "orn") for i in range(30)]
    forward, backward = dataset_of(pairs), dataset_of(pairs[::-1])
    chosen = []
    for dataset in (forward, backward):
        splits = assign_splits(dataset, seed=1)
        chosen.append({c.patient for c in dataset.cases if splits[c.id] == "test"})
    assert chosen[0] == chosen[1]
    assert assign_splits(forward, seed=1) != assign_splits(forward, seed=2)


def test_explicit_splits_win() -> None:
    dataset = dataset_of([("a", "orn"), ("b", "orn"), ("c", "orn")], ["val", "fold-1", "test"])
    assert assign_splits(dataset, seed=0) == {"c0": "val", "c1": "fold-1", "c2": "test"}


def test_splits_are_stored_and_reread(tmp_path: Path) -> None:
    dataset = dataset_of([(f"p{i}", "orn") for i in range(10)])
    path = tmp_path / "run" / "splits.json"
    splits = load_or_make_splits(dataset, path, seed=0)
    stored = json.loads(path.read_text())
    assert stored["splits"] == splits and stored["seed"] == 0
    swapped = {case: "train" if split == "test" else "test" for case, split in splits.items()}
    path.write_text(json.dumps({**stored, "splits": swapped}))
    assert load_or_make_splits(dataset, path, seed=0) == swapped  # read, not made again


def _edit(document: dict, change: str) -> dict:
    splits = document["splits"]
    edits = {
        "missing": lambda: splits.pop("c3"),
        "unknown": lambda: splits.update(c99="test"),
        "leak": lambda: splits.update(c0="train", c1="test"),
        "seed": lambda: document.update(seed=5),
        "dataset": lambda: document.update(dataset="other"),
        "schema": lambda: document.update(schema=2),
        "type": lambda: splits.update(c0=1),
    }
    edits[change]()
    return document


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("missing", "lacks case 'c3'"),
        ("unknown", "unknown case 'c99'"),
        ("leak", "patient twin"),
        ("seed", "made with seed 5, not 0"),
        ("dataset", "'other', not 'demo'"),
        ("schema", "version 1"),
        ("type", "version 1"),
    ],
)
def test_a_stored_split_that_does_not_fit(tmp_path: Path, change: str, named: str) -> None:
    pairs = [("twin", "orn"), ("twin", "orn")] + [(f"p{i}", "orn") for i in range(8)]
    dataset = dataset_of(pairs)
    path = tmp_path / "splits.json"
    load_or_make_splits(dataset, path, seed=0)
    path.write_text(json.dumps(_edit(json.loads(path.read_text()), change)))
    with pytest.raises(SplitError, match=named) as caught:
        load_or_make_splits(dataset, path, seed=0)
    assert str(path) in str(caught.value)


def test_a_damaged_split_file(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"schema": 1')
    with pytest.raises(SplitError, match="cannot be read"):
        load_or_make_splits(dataset_of([("a", "t"), ("b", "t")]), tmp_path / "s.json", seed=0)


def test_explicit_splits_need_no_file(tmp_path: Path) -> None:
    """The dataset may lie on read-only storage, or have been split before by another seed."""
    pairs = [("a", "t"), ("b", "t")]
    path = tmp_path / "s.json"
    dataset = dataset_of(pairs, ["train", "val"])
    assert load_or_make_splits(dataset, path, seed=0) == {"c0": "train", "c1": "val"}
    assert not path.exists()
    load_or_make_splits(dataset_of(pairs), path, seed=0)
    assert load_or_make_splits(dataset, path, seed=9) == {"c0": "train", "c1": "val"}


def test_a_stored_split_cannot_lead_out_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    dataset = dataset_of([("a", "t"), ("b", "t")])
    splits = load_or_make_splits(dataset, path, seed=0)
    document = json.loads(path.read_text()) | {"splits": splits | {"c1": "../../victim"}}
    path.write_text(json.dumps(document))
    with pytest.raises(SplitError, match="not a split file"):
        load_or_make_splits(dataset, path, seed=0)


@settings(deadline=None, max_examples=40)
@given(pairs=PAIRS, folds=st.integers(2, 5), seed=st.integers(0, 3), by_task=st.booleans())
def test_inner_folds_partition_patients(pairs, folds: int, seed: int, by_task: bool) -> None:
    patients = {f"c{i}": patient for i, (patient, _) in enumerate(pairs)}
    tasks = {f"c{i}": task for i, (_, task) in enumerate(pairs)} if by_task else None
    people = set(patients.values())
    if len(people) < folds:
        with pytest.raises(SplitError, match="inner folds"):
            inner_split(patients, folds, 0, seed, tasks)
        return
    held_patients: list[str] = []
    for fold in range(folds):
        train, held = inner_split(patients, folds, fold, seed, tasks)
        assert sorted(train + held) == sorted(patients) and train and held
        sides = [{patients[case] for case in side} for side in (train, held)]
        assert not sides[0] & sides[1]
        held_patients += sides[1]
        assert abs(len(sides[1]) - len(people) / folds) < 1
    assert sorted(held_patients) == sorted(people)  # each held out exactly once


def test_inner_folds_spread_the_tasks() -> None:
    tasks = {
        f"{task}{i}": task for task, n in (("orn", 23), ("ce", 15), ("crn", 18)) for i in range(n)
    }
    patients = {case: case for case in tasks}
    for fold in range(4):
        _, held = inner_split(patients, 4, fold, 0, tasks)
        counts = Counter(tasks[case] for case in held)
        assert all(abs(counts[t] - n / 4) < 1 for t, n in (("orn", 23), ("ce", 15), ("crn", 18)))


@pytest.mark.parametrize("fold", [-1, 3])
def test_there_is_no_such_fold(fold: int) -> None:
    with pytest.raises(SplitError, match=f"no inner fold {fold} of 3"):
        inner_split({f"c{i}": f"p{i}" for i in range(6)}, 3, fold, 0)
