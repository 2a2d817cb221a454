"""Splits by patient: train and test, and folds inside train. A patient never sits on two sides.

Patients are ordered by a hash of seed and name, not by a random generator: the order survives
other library versions, and a new patient does not move the others.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from rtsam_jax.data.cases import Dataset, check_patients, is_name
from rtsam_jax.data.json_file import read_json, write_json
from rtsam_jax.errors import DatasetSchemaError, SplitError

SPLITS_VERSION = 1


def assign_splits(dataset: Dataset, *, seed: int, ratio: int = 4) -> dict[str, str]:
    """Assigns every case to a split (Sec. 4.1).

    Where the cases of `dataset.json` carry `split`, those win. Otherwise whole patients go to
    "test" until each task has about one case in `ratio + 1` there; each task with two patients or
    more has a case on both sides if any such choice of patients is found.

    Args:
      dataset: the cases.
      seed: another seed, another choice.
      ratio: train cases per test case.

    Returns:
      Case id -> "train" or "test" (or the explicit names), in the dataset's order.

    Raises:
      SplitError: fewer than two patients and no explicit splits.
    """
    explicit = {case.id: case.split for case in dataset.cases if case.split is not None}
    if explicit:
        return explicit
    share = 1 / (ratio + 1)
    counts: dict[str, Counter[str]] = {}  # patient -> task -> cases
    for case in dataset.cases:
        counts.setdefault(case.patient, Counter())[case.task] += 1
    if len(counts) < 2:
        raise SplitError(
            f"Dataset {dataset.name} has a single patient, so nothing can be held out; "
            "add patients or give every case a 'split' in dataset.json."
        )
    totals: Counter[str] = sum(counts.values(), Counter())
    order = _shuffled(counts, seed)
    tested: Counter[str] = Counter()
    test: set[str] = set()

    def miss(patient: str) -> float:
        """Distance from the wished shares if the patient's cases were tested as well."""
        held = tested + counts[patient] if patient else tested
        return sum((held[task] - share * n) ** 2 / n for task, n in totals.items())

    def add(patient: str) -> None:
        test.add(patient)
        tested.update(counts[patient])

    for patient in order:
        if miss(patient) < miss(""):
            add(patient)
    for task in sorted(totals):  # a task too small for its share still needs one tested patient
        able = [
            patient
            for patient in order
            if counts[patient][task]
            and all(tested[t] + n < totals[t] for t, n in counts[patient].items())
        ]
        if tested[task] == 0 and able:
            add(min(able, key=miss))
    return {case.id: "test" if case.patient in test else "train" for case in dataset.cases}


def load_or_make_splits(dataset: Dataset, path: str | Path, *, seed: int) -> dict[str, str]:
    """The splits stored at `path`; made by `assign_splits` and stored there the first time.

    Splits in `dataset.json` win: nothing is stored then, and nothing stored is read.

    Raises:
      SplitError: the stored splits do not fit: another dataset, seed, or set of cases, a patient
        on two sides, a name that cannot be a folder's, or a damaged file.
    """
    path = Path(path)
    if any(case.split is not None for case in dataset.cases):
        return assign_splits(dataset, seed=seed)
    if not path.exists():
        splits = assign_splits(dataset, seed=seed)
        document = {"schema": SPLITS_VERSION, "dataset": dataset.name, "seed": seed}
        write_json(path, {**document, "splits": splits})
        return splits
    return _checked(dataset, path, seed)


def inner_split(
    patients: Mapping[str, str],
    folds: int,
    fold: int,
    seed: int,
    tasks: Mapping[str, str] | None = None,
) -> tuple[list[str], list[str]]:
    """Holds one fold of the train side's patients out, for choices that must not see the test side.

    Args:
      patients: case id -> patient, train cases only.
      folds: how many; the folds' patients differ by one at most.
      fold: which one is held out, from 0.
      seed: another seed, other folds.
      tasks: case id -> task; patients with the same tasks are then spread evenly over the folds.

    Returns:
      Ids to train on and ids held out, each in the order of `patients`.

    Raises:
      SplitError: fewer patients than folds, or no such fold.
    """
    people = set(patients.values())
    if not 2 <= folds <= len(people):
        raise SplitError(
            f"{len(people)} train patients cannot make {folds} inner folds; "
            "choose data.inner_folds from 2 to the number of patients."
        )
    if not 0 <= fold < folds:
        raise SplitError(f"There is no inner fold {fold} of {folds}; count data.inner_fold from 0.")
    groups: dict[str, set[str]] = {patient: set() for patient in people}
    for case, patient in patients.items():
        groups[patient].add(tasks[case] if tasks is not None else "")
    order = sorted(_shuffled(people, seed), key=lambda patient: sorted(groups[patient]))
    held = set(order[fold::folds])
    return (
        [case for case, patient in patients.items() if patient not in held],
        [case for case, patient in patients.items() if patient in held],
    )


def _shuffled(patients: Iterable[str], seed: int) -> list[str]:
    def key(patient: str) -> str:
        return hashlib.sha256(f"{seed}/{patient}".encode()).hexdigest()

    return sorted(patients, key=key)


def _checked(dataset: Dataset, path: Path, seed: int) -> dict[str, str]:
    def refuse(reason: str) -> SplitError:
        return SplitError(f"{path} {reason}; delete it to split anew, or name another file.")

    try:
        document = read_json(path)
    except (DatasetSchemaError, OSError) as cause:
        raise refuse(f"cannot be read ({cause})") from cause
    splits = document.get("splits") if isinstance(document, dict) else None
    if (
        not isinstance(splits, dict)
        or document.get("schema") != SPLITS_VERSION
        or not all(isinstance(split, str) and is_name(split) for split in splits.values())
    ):
        raise refuse(f"is not a split file of version {SPLITS_VERSION}")
    if document.get("dataset") != dataset.name:
        raise refuse(f"was made for dataset {document.get('dataset')!r}, not {dataset.name!r}")
    ids = [case.id for case in dataset.cases]
    strange = sorted(set(ids) ^ set(splits))
    if strange:
        lacking = "lacks" if strange[0] in ids else "has an unknown"
        raise refuse(f"{lacking} case {strange[0]!r}")
    check_patients(splits, {case.id: case.patient for case in dataset.cases}, str(path))
    if document.get("seed") != seed:
        raise refuse(f"was made with seed {document.get('seed')}, not {seed}")
    return {case: splits[case] for case in ids}
