"""`dataset.json`: what is written is read, the documented example holds, nothing else passes."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from rtsam_jax.data.cases import Dataset, Structure, TaskInfo, load_dataset, write_dataset
from rtsam_jax.errors import DatasetSchemaError, MissingFile, RecordError, SplitError
from rtsam_jax.metrics.summary import ALL_TASKS

TASKS = [TaskInfo("orn", "CT", "Osteoradionecrosis"), TaskInfo("ce", "MR", "Cerebral edema")]
DOCS = Path(__file__).resolve().parents[2] / "docs" / "dataset.md"


def a_case(number: int, **fields: Any) -> dict[str, Any]:
    base = {
        "id": f"c{number}",
        "patient": f"p{number}",
        "task": "orn",
        "image": f"ct/{number}.nii.gz",
        "dose": f"dose/{number}.nii.gz",
        "label": f"label/{number}.nii.gz",
        "record": {"age": 61, "sex": "male", "smoking": True, "prescription_gy": 70.5},
    }
    return {**base, **fields}


def put_files(root: Path, cases: list[dict[str, Any]]) -> None:
    for case in cases:
        for key in ("image", "dose", "label"):
            if isinstance(case.get(key), str):
                (root / case[key]).parent.mkdir(parents=True, exist_ok=True)
                (root / case[key]).touch()


def write(root: Path, cases: list[dict[str, Any]]) -> Dataset:
    put_files(root, cases)
    about = {"name": "demo", "kind": "synthetic", "description": "Nobody."}
    write_dataset(root, **about, tasks=TASKS, cases=cases)
    return load_dataset(root)


def test_written_dataset_is_read_back(tmp_path: Path) -> None:
    cases = [a_case(1), a_case(2, task="ce", label=None, record=None)]
    dataset = write(tmp_path, cases)
    assert (dataset.name, dataset.kind, dataset.description) == ("demo", "synthetic", "Nobody.")
    assert dataset.tasks == tuple(TASKS) and dataset.task("ce").modality == "MR"
    first, second = dataset.cases
    assert first.image == tmp_path / "ct/1.nii.gz" and first.image.is_absolute()
    assert first.record == {"age": 61, "sex": "male", "smoking": True, "prescription_gy": 70.5}
    assert (second.label, second.record, second.split) == (None, {}, None)
    with pytest.raises(DatasetSchemaError, match="no task 'crn'.*orn, ce"):
        dataset.task("crn")


def test_structures_are_written_and_read_back(tmp_path: Path) -> None:
    map_of_both = Path("label/1.nii.gz")
    structures = {"cord": {"path": map_of_both, "value": 2}, "stem": "dose/1.nii.gz"}
    first, second = write(tmp_path, [a_case(1, structures=structures), a_case(2)]).cases
    assert first.structures == {
        "cord": Structure(tmp_path / map_of_both, 2),
        "stem": Structure(tmp_path / "dose/1.nii.gz"),
    }
    assert second.structures == {}
    assert len(first.files) == 3  # training depends on none of them


def test_files_and_records_may_be_left_to_who_reads_them(tmp_path: Path) -> None:
    structures = {"cord": {"path": "label/1.nii.gz", "value": 2}}
    write(tmp_path, [a_case(1, structures=structures), a_case(2)])
    path = tmp_path / "dataset.json"
    document = json.loads(path.read_text())
    document["cases"][1]["record"] = {"age": 200}
    path.write_text(json.dumps(document))
    for part in ("ct", "dose", "label"):
        shutil.rmtree(tmp_path / part)
    with pytest.raises(MissingFile):
        load_dataset(tmp_path)
    first, second = load_dataset(tmp_path, parts_later=True).cases
    assert first.image == tmp_path / "ct/1.nii.gz" and second.record == {"age": 200}
    document["cases"][0]["image"] = "../ct.nii.gz"
    path.write_text(json.dumps(document))
    with pytest.raises(DatasetSchemaError, match="stays inside"):
        load_dataset(tmp_path, parts_later=True)


def test_the_documented_example_loads(tmp_path: Path) -> None:
    match = re.search(r"## Complete example\s+```json\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert match
    document = json.loads(match[1])
    put_files(tmp_path, document["cases"])
    (tmp_path / "dataset.json").write_text(match[1])
    dataset = load_dataset(tmp_path)
    assert [case.split for case in dataset.cases] == ["train", "test"]
    assert dataset.cases[1].label is None


def test_invalid_dataset_is_not_written(tmp_path: Path) -> None:
    write(tmp_path, [a_case(1)])
    before = (tmp_path / "dataset.json").read_text()
    with pytest.raises(MissingFile, match="'c2'.*'image'"):
        write_dataset(
            tmp_path, name="x", kind="synthetic", description="", tasks=TASKS, cases=[a_case(2)]
        )
    assert (tmp_path / "dataset.json").read_text() == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_two_tasks_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(DatasetSchemaError, match="two tasks"):
        write_dataset(
            tmp_path,
            name="x",
            kind="synthetic",
            description="",
            tasks=[TASKS[0], TASKS[0]],
            cases=[],
        )


# Each entry: path into the document, the value put there (DELETE removes), what must be named.
DELETE = object()
BROKEN = [
    (("schema",), 2, "'schema' is 2"),
    (("schema",), True, "'schema' is True"),
    (("schema",), DELETE, "'schema' is None"),
    (("name",), "", "'name'"),
    (("name",), 3, "'name' is 3"),
    (("kind",), "real", "'kind' is 'real'"),
    (("description",), DELETE, "'description' is missing"),
    (("notes",), "hello", "'notes' is unknown"),
    (("tasks",), {}, "'tasks'"),
    (("tasks",), [], "'tasks'"),
    (("tasks", "orn", "modality"), "PET", "task 'orn'.*'modality' is 'PET'"),
    (("tasks", "orn", "title"), DELETE, "task 'orn'.*'title' is missing"),
    (("tasks", "orn", "colour"), "red", "task 'orn'.*'colour' is unknown"),
    (("tasks", "a/b"), {"modality": "CT", "title": "x"}, "task 'a/b'"),
    (("tasks", "orn"), "CT", "task 'orn'"),
    (("tasks", ALL_TASKS), {"modality": "CT", "title": "x"}, "task 'all'.*'name' must be another"),
    (("cases",), [], "'cases'"),
    (("cases",), {}, "'cases'"),
    (("cases", 1), "c2", "case number 2"),
    (("cases", 1, "id"), "c1", "case 'c1'.*'id' is used twice"),
    (("cases", 1, "id"), DELETE, "case number 2.*'id' is missing"),
    (("cases", 1, "id"), 7, "case number 2.*'id' is 7"),
    (("cases", 1, "id"), "../c2", "'id'"),
    (("cases", 1, "id"), "c" * 101, "'id'.*100 at most"),
    (("cases", 1, "patient"), "p1 ", "case 'c2'.*'patient' is 'p1 '.*spaces"),
    (("cases", 1, "patient"), 12, "case 'c2'.*'patient' is 12"),
    (("cases", 1, "patient"), DELETE, "case 'c2'.*'patient' is missing"),
    (("cases", 1, "task"), "crn", "case 'c2'.*'task' is 'crn'.*'orn', 'ce'"),
    (("cases", 1, "task"), ["orn"], "case 'c2'.*'task'"),
    (("cases", 1, "image"), DELETE, "case 'c2'.*'image' is missing"),
    (("cases", 1, "image"), DELETE, "case 'c2'.*'image' is missing"),
    (("cases", 1, "label"), None, "case 'c2'.*'label'"),
    (("cases", 1, "image"), ["a"], "case 'c2'.*'image'"),
    (("cases", 1, "image"), "/etc/hostname", "case 'c2'.*'image'.*stays inside"),
    (("cases", 1, "image"), "C:\\data\\x.nii", "case 'c2'.*'image'.*stays inside"),
    (("cases", 1, "dose"), "../x.nii.gz", "case 'c2'.*'dose'.*stays inside"),
    (("cases", 1, "label"), "ct/../../x.nii.gz", "case 'c2'.*'label'.*stays inside"),
    (("cases", 1, "record"), [1], "case 'c2'.*'record'"),
    (("cases", 1, "record"), {"age": None}, "case 'c2'.*'record.age'"),
    (("cases", 1, "record"), {"stage": {"t": 1}}, "case 'c2'.*'record.stage'"),
    (("cases", 1, "split"), 1, "case 'c2'.*'split' is 1"),
    # It becomes a folder's name inside the run.
    (("cases", 1, "split"), "../../victim", "case 'c2'.*'split' is '../../victim'"),
    (("cases", 1, "split"), "..", "case 'c2'.*'split' is '..'"),
    (("cases", 1, "segmentation"), "x", "case 'c2'.*'segmentation' is unknown"),
]


@pytest.mark.parametrize(("where", "value", "named"), BROKEN)
def test_every_violation_names_case_and_field(tmp_path: Path, where, value, named: str) -> None:
    write(tmp_path, [a_case(1), a_case(2)])
    path = tmp_path / "dataset.json"
    document = json.loads(path.read_text())
    target = document
    for key in where[:-1]:
        target = target[key]
    if value is DELETE:
        del target[where[-1]]
    else:
        target[where[-1]] = copy.deepcopy(value)
    path.write_text(json.dumps(document))
    with pytest.raises(DatasetSchemaError, match=named) as caught:
        load_dataset(tmp_path)
    assert str(path) in str(caught.value)


RECORDS = [
    ({"patient_name": "Jane Roe"}, "'patient_name' identifies a person"),
    ({"lesion_volume": 3.5}, "'lesion_volume'.*carry the answer"),
    ({"prescribed_gy": 70}, "'prescribed_gy' is unknown.*'prescription_gy'"),
    ({"fractions": "35"}, "'fractions' must be a whole number"),
    ({"sex": "F"}, "'sex' must be one of"),
    ({"note": "Denies pain."}, "'note' is free text"),
]


@pytest.mark.parametrize(("record", "named"), RECORDS)
def test_a_record_outside_the_allow_list(tmp_path: Path, record: dict, named: str) -> None:
    put_files(tmp_path, [a_case(1)])
    with pytest.raises(RecordError, match=f"case 'c1': record field {named}") as caught:
        write(tmp_path, [a_case(1, record=record)])
    assert str(tmp_path / "dataset.json") in str(caught.value)
    assert "Roe" not in str(caught.value) and not (tmp_path / "dataset.json").exists()


def test_free_text_must_be_allowed_to_write_and_to_read(tmp_path: Path) -> None:
    cases = [a_case(1, record={"site": "left tonsil", "note": "Denies pain."})]
    put_files(tmp_path, cases)
    about = {"name": "demo", "kind": "synthetic", "description": "Nobody."}
    with pytest.raises(RecordError, match="'site' must be one of"):
        write_dataset(tmp_path, **about, tasks=TASKS, cases=cases)
    write_dataset(tmp_path, **about, tasks=TASKS, cases=cases, free_text=True)
    assert load_dataset(tmp_path, free_text=True).cases[0].record == cases[0]["record"]
    with pytest.raises(RecordError, match="case 'c1': record field 'site'"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("key", ["image", "dose", "label"])
def test_a_missing_file_names_case_and_field(tmp_path: Path, key: str) -> None:
    write(tmp_path, [a_case(1)])
    (tmp_path / a_case(1)[key]).unlink()
    with pytest.raises(MissingFile, match=f"case 'c1': field '{key}'.*{a_case(1)[key]}"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"schema": 1', "not valid JSON"),
        ("[]", "one JSON object"),
        ('{"schema": 1, "schema": 1}', "'schema' twice"),
        ('{"schema": NaN}', "NaN"),
        ("\ufeff{}", "not valid JSON"),
    ],
)
def test_broken_json(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "dataset.json").write_text(text, encoding="utf-8")
    with pytest.raises(DatasetSchemaError, match=named):
        load_dataset(tmp_path)


def test_explicit_splits_must_be_complete_and_free_of_leaks(tmp_path: Path) -> None:
    good = write(tmp_path, [a_case(1, split="train"), a_case(2, split="val")])
    assert [case.split for case in good.cases] == ["train", "val"]
    with pytest.raises(SplitError, match="case 'c2' has no field 'split'"):
        write(tmp_path, [a_case(1, split="train"), a_case(2)])
    with pytest.raises(SplitError, match="patient p1 .*'train'.*c1.*'test'.*c2"):
        write(tmp_path, [a_case(1, split="train"), a_case(2, split="test", patient="p1")])


def test_a_link_may_lead_out_but_a_path_inside_may_wander(tmp_path: Path) -> None:
    outside = tmp_path / "archive"
    outside.mkdir()
    (outside / "1.nii.gz").touch()
    root = tmp_path / "set"
    put_files(root, [a_case(1)])
    (root / "ct" / "1.nii.gz").unlink()
    (root / "ct" / "1.nii.gz").symlink_to(outside / "1.nii.gz")
    dataset = write(root, [a_case(1, dose="ct/../dose/1.nii.gz")])
    assert dataset.cases[0].dose == root / "dose/1.nii.gz"


@pytest.mark.parametrize("field", ["bbox", "patient_name", "birth_date"])
def test_a_forbidden_field_is_refused_for_its_name_whatever_it_holds(
    tiny_dataset: Path, tmp_path: Path, field: str
) -> None:
    """To be told to write a box as a text would invite to try that."""
    shutil.copytree(tiny_dataset, tmp_path / "own")
    file = tmp_path / "own" / "dataset.json"
    content = json.loads(file.read_text())
    for value in ([1, 2, 3], None, {"a": 1}):
        content["cases"][0]["record"] = {field: value}
        file.write_text(json.dumps(content))
        with pytest.raises(RecordError, match=field):
            load_dataset(tmp_path / "own")
