"""Preparing: once, in parallel, keyed by content; what fails is named and stops nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import fsspec.implementations.memory
import numpy as np
import pytest
from etils import epath

from rtsam_jax import prepare as prepare_command
from rtsam_jax.config import AugmentConfig
from rtsam_jax.data import prepare, scans
from rtsam_jax.data.augment import margin
from rtsam_jax.data.cases import Case, load_dataset
from rtsam_jax.data.crops import crop_origins, extract
from rtsam_jax.data.neighbourhood import Neighbourhood
from rtsam_jax.data.nifti import read_label, read_volume, write_volume
from rtsam_jax.data.prepare import Prepared, prepare_cases
from rtsam_jax.data.prepared import PreparedCases
from rtsam_jax.data.preprocess import PreprocessSpec, label_to_grid
from rtsam_jax.data.scans import CacheSettings, preprocess_scan, scan_source
from rtsam_jax.errors import CacheDamaged
from tests.data.bad_inputs import CORPUS, make_dataset
from tests.tiny import SPACING, TASKS, tiny_config, write_tiny_dataset

SIZE, REACH = 32, 3
SPEC = PreprocessSpec(SPACING, 0.5)
SETTINGS = CacheSettings(SPEC, "dose", SIZE, REACH, "float32")
MODALITY = {"orn": "CT", "ce": "MR", "crn": "MR"}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_tiny_dataset(tmp_path / "dataset")
    return tmp_path / "dataset"


def cases_of(root: Path) -> tuple[Case, ...]:
    return load_dataset(root).cases


def run(
    root: Path,
    settings: CacheSettings = SETTINGS,
    *,
    workers: int = 1,
    cases: Sequence[Case] | None = None,
) -> Prepared:
    cache = epath.Path(root / "prepared")
    return prepare_cases(cases or cases_of(root), MODALITY, settings, cache, workers)


def opened(done: Prepared, cases: Sequence[Case], source: str = "dose") -> PreparedCases:
    places = [done.entries[case.id] for case in cases]
    tasks = [TASKS.index(case.task) for case in cases]
    return PreparedCases(places, tasks, source, Path("unused"))


def same(a: Neighbourhood, b: Neighbourhood) -> bool:
    parts = [field.name for field in dataclasses.fields(Neighbourhood)]
    return all(np.array_equal(getattr(a, part), getattr(b, part)) for part in parts)


def names(done: Prepared, ending: str = "") -> list[str]:
    return sorted(p.name for p in done.folder.iterdir() if p.name.endswith(ending))


def change_voxel(path: Path) -> None:
    volume = read_volume(path)
    volume.array[0, 0, 0] = 1
    write_volume(path, volume, np.float32)


def test_a_crop_of_the_cache_is_that_crop_of_the_whole_volume(dataset: Path) -> None:
    cases = cases_of(dataset)
    read = opened(run(dataset), cases)
    assert len(read) == len(cases) == 6
    for case, near in zip(cases, read, strict=True):
        scan = preprocess_scan(scan_source(case, MODALITY, SPEC), SPEC, name=case.id)
        roi, box = scan.require_dose(name=case.id, purpose="this test")
        label = label_to_grid(read_label(case.label), scan.grid)
        origin = crop_origins(box, SIZE)[0]
        assert TASKS[near.task_id] == case.task and near.roi.any() and near.label.any()
        for shift in itertools.product((-REACH, REACH), repeat=3):
            for part, whole, fill in (
                (near.image, scan.image, scan.background),
                (near.roi, roi, 0),
                (near.label, label, 0),
            ):
                found = extract(part, near.origins[0] + shift, SIZE, fill)
                np.testing.assert_array_equal(found, extract(whole, origin + shift, SIZE, fill))


def test_a_scan_of_two_tasks_is_preprocessed_and_stored_once(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    real = prepare.preprocess_scan
    monkeypatch.setattr(
        prepare,
        "preprocess_scan",
        lambda s, *a, **k: (read.append(s.image.name), real(s, *a, **k))[1],
    )
    done = run(dataset)
    assert sorted(read) == [f"p{i}_image.nii.gz" for i in range(5)]
    (ce, of_ce), (crn, of_crn) = done.entries["p1_ce"], done.entries["p1_crn"]
    assert ce == crn and of_ce != of_crn
    a, b = opened(done, [c for c in cases_of(dataset) if c.patient == "p1"])
    assert np.array_equal(a.image, b.image) and not np.array_equal(a.label, b.label)


def test_what_is_there_is_not_prepared_again(dataset: Path) -> None:
    first = run(dataset)
    before = {p.name: p.stat().mtime for p in first.folder.iterdir()}
    again = run(dataset)
    assert (first.fresh, again.fresh) == (5, 0) and again.entries == first.entries
    assert {p.name: p.stat().mtime for p in again.folder.iterdir()} == before


@pytest.mark.parametrize("part", ["image", "dose", "label"])
def test_a_changed_file_is_prepared_again_and_no_other(dataset: Path, part: str) -> None:
    cases = cases_of(dataset)
    first = run(dataset)
    before = list(opened(first, cases))
    change_voxel(getattr(cases[0], part))
    done = run(dataset)
    assert done.fresh == 1
    unchanged = [same(a, b) for a, b in zip(before, opened(done, cases), strict=True)]
    # A corner's voxel is outside the neighbourhood, but the statistics of the image know it.
    assert unchanged == [part != "image", True, True, True, True, True]
    changed = [case for case in done.entries if done.entries[case] != first.entries[case]]
    assert changed == ["p0_orn"]


def test_same_content_elsewhere_is_found(dataset: Path, tmp_path: Path) -> None:
    done = run(dataset)
    moved = dataset.rename(tmp_path / "moved")
    again = run(moved)
    assert again.fresh == 0 and again.entries.keys() == done.entries.keys()


CHANGES = {
    "data__spacing_mm": 3.0,
    "data__jitter": 5,
    "data__interpolation": "bspline",
    "data__crop": "image",
    "data__cache_dtype": "float16",
    "dose__tau": 0.7,
    "dose__threshold": "d2",
    "dose__component": "all",
    "dose__roi": "mask",
    "dose__margin_mm": 4.0,
    "augment__affine": 0.5,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_setting_never_reads_what_another_wrote(dataset: Path, name: str) -> None:
    plain = tiny_config(dataset)
    settings = CacheSettings.from_config(plain, SIZE)
    other = CacheSettings.from_config(tiny_config(dataset, **{name: CHANGES[name]}), SIZE)
    assert settings.digest != other.digest
    cases = cases_of(dataset)[:1]
    a, b = (run(dataset, s, cases=cases) for s in (settings, other))
    assert b.fresh == 1 and a.folder != b.folder
    assert a.entries["p0_orn"][0].key != b.entries["p0_orn"][0].key


# Fields that change how prepared cases are used, not what they are.
USES = {
    "data": "dataset builder source builder_cases balance cache prepare_workers read_threads tasks "
    "train_split eval_split split_seed inner_folds inner_fold",
    "dose": "box_jitter",
    "augment": "flip_axes flip noise noise_std blur blur_sigma gamma gamma_range intensity "
    "intensity_scale intensity_shift",
}


def other_value(value):
    """One that is allowed and another."""
    if isinstance(value, tuple):
        return (0,)
    if isinstance(value, str):
        names = {"dmax": "d2", "largest": "all", "dose": "mask", "linear": "bspline"}
        return names.get(value, "float16")
    return value + 1 if isinstance(value, int) else 2 * value + 1.25


@pytest.mark.parametrize("section", USES)
def test_every_field_that_decides_a_record_is_part_of_its_key(section: str) -> None:
    def digest(**changes) -> str:
        cfg = tiny_config(augment__affine=0.5, augment__shear=0.1)
        for name, value in changes.items():
            setattr(getattr(cfg, section), name, value)
        return CacheSettings.from_config(cfg, SIZE).digest

    fields = dataclasses.asdict(getattr(tiny_config(augment__affine=0.5), section))
    for name, value in fields.items():
        new = "label" if name == "source" else other_value(value)
        # A probability decides only whether there is a margin at all.
        new = 0.0 if name == "affine" else new
        assert (digest(**{name: new}) == digest()) == (name in USES[section].split()), name


def test_the_reach_covers_jitter_and_affine() -> None:
    cfg = tiny_config(data__jitter=4, augment__affine=0.5, augment__rotation_deg=20.0)
    assert CacheSettings.from_config(cfg, SIZE).reach == 4 + margin(cfg.augment, SIZE)
    assert margin(cfg.augment, SIZE) > 0 == margin(AugmentConfig(), SIZE)


def test_two_processes_give_what_one_gives(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = cases_of(dataset)
    one = list(opened(run(dataset), cases))
    for path in run(dataset).folder.iterdir():
        path.unlink()
    monkeypatch.setattr(prepare, "_FEW", 1)
    done = run(dataset, workers=2)
    assert done.fresh == 5 and not done.failures
    assert all(same(a, b) for a, b in zip(one, opened(done, cases), strict=True))


def test_large_records_are_not_gathered(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = cases_of(dataset)
    few = list(opened(run(dataset), cases))
    for path in run(dataset).folder.iterdir():
        path.unlink()
    monkeypatch.setattr(prepare, "_SHARD_BYTES", 1)
    done = run(dataset)
    assert len(names(done, ".array_record")) == 5
    assert all(same(a, b) for a, b in zip(few, opened(done, cases), strict=True))


def test_float16_is_near(dataset: Path) -> None:
    cases = cases_of(dataset)
    full = opened(run(dataset), cases)
    half = opened(run(dataset, dataclasses.replace(SETTINGS, dtype="float16")), cases)
    for a, b in zip(full, half, strict=True):
        assert b.image.dtype == np.float16 and np.array_equal(a.label, b.label)
        np.testing.assert_allclose(a.image, b.image.astype(np.float32), rtol=5e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, bad in CORPUS.items() if bad.strikes == "case"])
def test_a_bad_case_is_named_and_the_other_is_prepared(tmp_path: Path, name: str) -> None:
    bad = CORPUS[name]
    if bad.needs is not None and not bad.needs.exists():
        pytest.skip(f"needs {bad.needs}, which this system lacks")
    make_dataset(tmp_path)
    bad.damage(tmp_path)
    spec = PreprocessSpec(spacing_mm=1.0, tau=0.8, **bad.dose)
    settings = CacheSettings(spec, "dose", 8, 0, "float32")
    for _ in range(2):  # it is not forgotten either
        done = run(tmp_path, settings)
        (failure,) = done.failures
        assert failure.case == "beta" and failure.code == bad.code
        assert bad.says(failure.message, tmp_path), failure.message
        assert list(done.entries) == ["alpha"]
        assert not [p for p in names(done) if ".part" in p]
        assert len(names(done, ".array_record")) == len(names(done, ".json")) - 1
        (near,) = opened(done, cases_of(tmp_path)[:1])
        assert near.label.any()


@pytest.mark.parametrize("name", [name for name, bad in CORPUS.items() if bad.strikes == "dataset"])
def test_a_bad_dataset_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    bad = CORPUS[name]
    make_dataset(tmp_path)
    bad.damage(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(bad.error) as caught:
        prepare_command.run(tiny_config(tmp_path, dose__tau=0.8, data__spacing_mm=1.0))
    assert bad.says(str(caught.value), tmp_path), caught.value
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_bad_label_spoils_no_other_task_of_its_scan(dataset: Path) -> None:
    (dataset / "p1_ce_label.nii.gz").write_bytes(b"no volume")
    for _ in range(2):
        done = run(dataset)
        assert [failure.case for failure in done.failures] == ["p1_ce"]
        assert "p1_crn" in done.entries and "p1_ce" not in done.entries
    assert done.fresh == 0  # though it was tried again, in case the disk was to blame
    write_volume(dataset / "p1_ce_label.nii.gz", read_volume(dataset / "p1_crn_label.nii.gz"), "u1")
    assert not run(dataset).failures


def test_an_incomplete_case_is_kept_for_what_it_has(dataset: Path) -> None:
    document = json.loads((dataset / "dataset.json").read_text())
    del document["cases"][0]["dose"], document["cases"][3]["label"]
    del document["cases"][4]["label"], document["cases"][4]["dose"]
    (dataset / "dataset.json").write_text(json.dumps(document))
    cases = cases_of(dataset)
    done = run(dataset)
    read = dict(zip([case.id for case in cases], opened(done, cases), strict=True))
    assert not read["p0_orn"].roi.any() and read["p0_orn"].label.any()
    assert read["p2_orn"].roi.any() and not read["p2_orn"].label.any()
    assert not read["p3_orn"].roi.any() and read["p3_orn"].image.shape == (40, 40, 40)  # the whole


@pytest.mark.parametrize("dose", ["none", "unusable", "sound"])
@pytest.mark.parametrize("source", ["label", "none"])
def test_without_dose_crops_lie_around_the_label(dataset: Path, source: str, dose: str) -> None:
    """Whatever dose a case has: it is not looked at."""
    document = json.loads((dataset / "dataset.json").read_text())
    for case in document["cases"]:
        if dose == "none":
            del case["dose"]
        elif dose == "unusable":
            (dataset / case["dose"]).write_bytes(b"no volume")
    (dataset / "dataset.json").write_text(json.dumps(document))
    cases = cases_of(dataset)
    settings = dataclasses.replace(SETTINGS, source=source)
    for near in opened(run(dataset, settings), cases, source):
        crop = extract(near.label, near.origins[0], SIZE, 0)
        assert crop.sum() == near.label.sum() > 0
        inside = np.argwhere(near.label)
        box = np.zeros_like(near.label)
        box[tuple(map(slice, inside.min(0), inside.max(0) + 1))] = 1
        assert np.array_equal(near.roi, box if source == "label" else np.ones_like(box))


def test_a_prescription_counts_only_where_it_is_used(dataset: Path) -> None:
    cases = cases_of(dataset)[:1]
    prescribed = [dataclasses.replace(cases[0], record={"prescription_gy": gy}) for gy in (60, 66)]
    absolute = dataclasses.replace(SPEC, threshold="prescription")
    for spec, distinct in ((SPEC, 1), (absolute, 2)):
        sources = {scan_source(case, MODALITY, spec) for case in prescribed}
        assert len(sources) == distinct


@pytest.mark.parametrize("damage", ["cut", "gone", "index"])
def test_a_damaged_shard_is_prepared_again(
    dataset: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = cases_of(dataset)
    before = list(opened(run(dataset), cases))
    done = run(dataset)
    shard = Path(done.entries["p0_orn"][0].shard)
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-1000])
    elif damage == "gone":
        shard.unlink()
    else:
        shard.with_suffix(".json").write_text("{")
    capsys.readouterr()
    again = run(dataset)
    assert again.fresh == done.entries["p0_orn"][0].records
    assert capsys.readouterr().out.count("is damaged or incomplete") == 1
    assert all(same(a, b) for a, b in zip(before, opened(again, cases), strict=True))


def test_a_flipped_bit_is_an_error_that_names_the_file(dataset: Path) -> None:
    done = run(dataset)
    shard = Path(done.entries["p0_orn"][0].shard)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    with pytest.raises(CacheDamaged, match=f"{shard} cannot be read .*delete that file"):
        list(opened(done, cases_of(dataset)))
    shard.unlink()
    assert run(dataset).fresh == done.entries["p0_orn"][0].records


def test_halves_of_a_killed_command_are_removed(dataset: Path) -> None:
    folder = run(dataset).folder
    shard = next(p for p in folder.iterdir() if p.name.endswith(".array_record"))
    (folder / ".x.array_record.123.part").write_bytes(b"half")
    (folder / "y.array_record").write_bytes(b"without its index")
    (folder / shard.name.replace(".array_record", ".json")).unlink()
    done = run(dataset)
    assert done.fresh > 0 and not done.failures
    assert not {".x.array_record.123.part", "y.array_record"} & set(names(done))
    assert len(names(done, ".json")) == len(names(done, ".array_record")) + 1  # and the settings


def test_a_killed_process_names_its_scan_and_the_rest_goes_on(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second image takes whoever prepares it along; here the process really dies."""
    monkeypatch.setattr(prepare, "_FEW", 1)
    monkeypatch.setattr(prepare, "prepare_chunk", _deadly)
    done = run(dataset, workers=2)
    assert {failure.case for failure in done.failures} == {"p1_ce", "p1_crn"}
    assert {failure.code for failure in done.failures} == {"worker_killed"}
    assert len(done.entries) == 4


_real_chunk = prepare.prepare_chunk


def _deadly(chunk, settings, folder):
    if any(scan.source.image.name == "p1_image.nii.gz" for scan in chunk):
        os.abort()
    return _real_chunk(chunk, settings, folder)


def test_unexpected_faults_are_named_too(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def strange(scan, *rest, **named):
        if scan.image.name == "p2_image.nii.gz":
            raise ArithmeticError("seven")
        return real(scan, *rest, **named)

    real = prepare.preprocess_scan
    monkeypatch.setattr(prepare, "preprocess_scan", strange)
    done = run(dataset)
    (failure,) = done.failures
    assert failure.case == "p2_orn" and failure.code == "unexpected"
    assert "p2_image.nii.gz" in failure.message and "ArithmeticError: seven" in failure.message


def test_the_format_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = SETTINGS.digest
    monkeypatch.setattr(scans, "FORMAT", scans.FORMAT + 1)
    assert SETTINGS.digest != before


def test_a_cache_in_cloud_storage(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket in memory stands in for the real one; epath and our code are the real ones."""
    memory = fsspec.implementations.memory.MemoryFileSystem
    fsspec.register_implementation("gcs", memory, clobber=True)
    backend = epath.backend.fsspec_backend
    backend._get_filesystem.cache_clear()
    try:
        cases, cache = cases_of(dataset), epath.Path("gs://bucket/cache")
        first = prepare_cases(cases, MODALITY, SETTINGS, cache, 1)
        assert first.fresh == 5 and str(first.folder).startswith("gs://bucket/cache/")
        again = prepare_cases(cases, MODALITY, SETTINGS, cache, 1)
        assert again.fresh == 0 and again.entries == first.entries
        local = opened(run(dataset), cases)
        places = [again.entries[case.id] for case in cases]
        tasks = [TASKS.index(case.task) for case in cases]
        copies = dataset.parent / "copies"
        fetched = PreparedCases(places, tasks, "dose", copies)
        assert all(same(a, b) for a, b in zip(local, fetched, strict=True))
        kept = {path: path.stat().st_mtime_ns for path in copies.rglob("*.array_record")}
        assert kept
        PreparedCases(places, tasks, "dose", copies)  # fetched once
        assert kept == {path: path.stat().st_mtime_ns for path in copies.rglob("*.array_record")}
    finally:
        backend._get_filesystem.cache_clear()
        memory.store.clear()


def test_whole_volume_statistics_are_in_the_index(dataset: Path) -> None:
    done = run(dataset)
    for case in cases_of(dataset):
        scan = preprocess_scan(scan_source(case, MODALITY, SPEC), SPEC, name=case.id)
        about = done.entries[case.id][0].about
        assert about["shape"] == list(scan.grid.shape)
        for name in ("mean", "std", "dmax", "threshold_gy", "fraction_outside_dose"):
            assert about[name] == getattr(scan, name)


def test_a_file_that_changes_while_it_is_prepared_is_not_stored(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or its new content would lie under the key of the old one."""
    real = prepare.preprocess_scan

    def meanwhile(scan, *rest, **named):
        found = real(scan, *rest, **named)
        if scan.image.name == "p0_image.nii.gz":
            change_voxel(scan.image)
        return found

    monkeypatch.setattr(prepare, "preprocess_scan", meanwhile)
    (failure,) = run(dataset).failures
    assert failure.case == "p0_orn" and failure.code == "unreadable_file"
    assert failure.message.endswith(
        "p0_image.nii.gz was changed while it was prepared; start again."
    )
    monkeypatch.setattr(prepare, "preprocess_scan", real)
    done = run(dataset)
    assert done.fresh == 1 and not done.failures


def test_empty_labels_are_known(dataset: Path) -> None:
    document = json.loads((dataset / "dataset.json").read_text())
    document["cases"][0]["label_value"] = 5  # which its map does not hold
    (dataset / "dataset.json").write_text(json.dumps(document))
    done = run(dataset)
    assert done.empty == ["p0_orn"] and not done.failures
    assert not opened(done, cases_of(dataset))[0].label.any()


def test_more_shards_than_files_may_be_open(dataset: Path) -> None:
    cases = cases_of(dataset)
    read = opened(run(dataset), cases)
    before = len(os.listdir("/proc/self/fd"))
    for near in [*read, *read]:
        assert near.label.any()
    assert len(os.listdir("/proc/self/fd")) <= before
