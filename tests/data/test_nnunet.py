"""nnU-Net's folders: every structure in every map becomes a case, or is said to be missing."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtsam_jax import errors
from rtsam_jax.data import nnunet
from rtsam_jax.data.cases import Dataset, load_dataset
from rtsam_jax.data.import_folder import volumes_in
from rtsam_jax.data.nifti import Volume, read_label, read_volume, write_volume
from rtsam_jax.errors import run_command

AFFINE = np.diag([-2.0, 2.0, 3.0, 1.0])  # stored to the patient's left
V2 = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "left kidney": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
    "description": "Made up.",
}


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 1)
    nibabel.save(image, path)


def label_map(*values: int, seed: int = 0) -> np.ndarray:
    """A map that holds 0 and every value."""
    array = np.random.default_rng(seed).choice([0, *values], (4, 5, 6)).astype(np.uint8)
    array[0, 0, : len(values) + 1] = [0, *values]
    return array


def write_folder(
    root: Path,
    document: dict[str, Any] = V2,
    maps: dict[str, tuple[int, ...]] | None = None,
    *,
    side: str = "Tr",
    ending: str = ".nii.gz",
) -> Path:
    """A folder with these cases: name -> values that its map holds."""
    maps = {"a_01": (1, 2), "b_02": (1,)} if maps is None else maps
    for seed, (name, values) in enumerate(maps.items()):
        for channel in range(len(document.get("channel_names", document.get("modality", "?")))):
            image = np.full((4, 5, 6), 100 * seed + channel, np.int16)
            write(root / f"images{side}" / f"{name}_{channel:04d}{ending}", image)
        write(root / f"labels{side}" / f"{name}{ending}", label_map(*values, seed=seed))
    (root / "dataset.json").write_text(json.dumps(document))
    return root


def imported(tmp_path: Path, source: Path, **options: Any) -> Dataset:
    nnunet.build(source, tmp_path / "out", **options)
    return load_dataset(tmp_path / "out")


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("copy", [False, True])
def test_a_case_per_image_and_structure(
    tmp_path: Path, ending: str, copy: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_folder(tmp_path / "Dataset001_Made", ending=ending)
    dataset = imported(tmp_path, source, copy=copy)
    assert (dataset.name, dataset.kind) == ("Dataset001_Made", "surrogate")
    assert [(t.name, t.modality, t.title) for t in dataset.tasks] == [
        ("liver", "CT", "liver"),
        ("left_kidney", "CT", "left kidney"),
    ]
    assert [(c.id, c.patient, c.task, c.label_value, c.split) for c in dataset.cases] == [
        ("a_01_liver", "a_01", "liver", 1, None),
        ("a_01_left_kidney", "a_01", "left_kidney", 2, None),
        ("b_02_liver", "b_02", "liver", 1, None),
    ]
    for case in dataset.cases:
        assert case.label is not None and case.missing == ("dose",)
        assert case.image.is_symlink() == case.label.is_symlink() == (not copy)
        original = source / "labelsTr" / f"{case.patient}{ending}"
        assert case.label.read_bytes() == original.read_bytes()
        inside = read_label(case.label, case.label_value)
        np.testing.assert_array_equal(inside.array, read_volume(original).array == case.label_value)
        assert inside.array.any()
    assert "left kidney: 1 cases; not in 1 maps (b_02)" in capsys.readouterr().out


def test_links_survive_moving_source_and_dataset_together(tmp_path: Path) -> None:
    write_folder(tmp_path / "here" / "source")
    nnunet.build(tmp_path / "here" / "source", tmp_path / "here" / "deep" / "out")
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert len(load_dataset(tmp_path / "there" / "deep" / "out").cases) == 3


def test_links_lead_home_where_the_output_is_reached_through_a_link(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source")
    (tmp_path / "disk" / "a" / "b").mkdir(parents=True)
    (tmp_path / "short").symlink_to(tmp_path / "disk" / "a" / "b")
    nnunet.build(source, tmp_path / "short" / "out")
    assert len(load_dataset(tmp_path / "disk" / "a" / "b" / "out").cases) == 3


def test_version_1(tmp_path: Path) -> None:
    document = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "numTraining": 2,
        "training": [
            {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in "xy"
        ],
        "test": ["./imagesTs/z.nii.gz"],
    }
    source = write_folder(tmp_path / "Task004", document, {"x": (1, 2), "y": (2,)})
    dataset = imported(tmp_path, source)
    assert [case.id for case in dataset.cases] == ["x_Anterior", "x_Posterior", "y_Posterior"]
    assert {task.modality for task in dataset.tasks} == {"MR"}


def test_both_sides_are_the_splits(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source")
    write_folder(source, maps={"c_03": (2,)}, side="Ts")
    assert {case.id: case.split for case in imported(tmp_path, source).cases} == {
        "a_01_liver": "train",
        "a_01_left_kidney": "train",
        "b_02_liver": "train",
        "c_03_left_kidney": "test",
    }


def test_a_test_side_without_labels_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_folder(tmp_path / "source")
    write_folder(source, maps={"c_03": (2,)}, side="Ts")
    shutil.rmtree(source / "labelsTs")
    assert {case.split for case in imported(tmp_path, source).cases} == {None}
    assert "imagesTs has no labelsTs, left out: 1 files" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folders", "dose"), [(("dosesTr", "dosesTs"), ""), (("rdTr", "rdTs"), "rdTr"), (("rd",), "rd")]
)
def test_dose_beside_the_images(
    tmp_path: Path, folders: tuple[str, ...], dose: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_folder(tmp_path / "source")
    write_folder(source, maps={"c_03": (1,)}, side="Ts")
    for name, folder in (("a_01", folders[0]), ("c_03", folders[-1]), ("gone", folders[0])):
        write(source / folder / f"{name}.nii.gz", np.full((2, 2, 2), 60, np.float32))
    dataset = imported(tmp_path, source, dose=dose)
    assert {case.patient for case in dataset.cases if case.dose} == {"a_01", "c_03"}
    assert read_volume(next(c.dose for c in dataset.cases if c.dose)).array.max() == 60
    out = capsys.readouterr().out
    assert "3 images, 2 doses" in out and "left out: 1 (gone)" in out


def test_regions_become_files_of_their_own(tmp_path: Path) -> None:
    labels = {"background": 0, "whole tumor": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
    document = {**V2, "labels": labels, "numTraining": 1}
    source = write_folder(tmp_path / "source", document, {"a": (1, 2, 3)})
    cases = {case.task: case for case in imported(tmp_path, source).cases}
    whole = read_volume(source / "labelsTr" / "a.nii.gz")
    for task, values in (("whole_tumor", (1, 2, 3)), ("core", (2, 3)), ("enhancing", (3,))):
        label = read_label(cases[task].label, cases[task].label_value)
        np.testing.assert_array_equal(label.array, np.isin(whole.array, values))
        np.testing.assert_allclose(label.affine, whole.affine)
    assert cases["enhancing"].label_value == 3 and cases["core"].label_value is None


def test_maps_with_voxels_to_ignore_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {"background": 0, "liver": 1, "ignore": 2}
    source = write_folder(tmp_path / "source", {**V2, "labels": labels})
    assert [case.id for case in imported(tmp_path, source).cases] == ["b_02_liver"]
    assert "to ignore, left out: 1 (a_01)" in capsys.readouterr().out


def test_one_channel_of_several(tmp_path: Path) -> None:
    document = {**V2, "channel_names": {"0": "T1", "1": "noNorm"}}
    source = write_folder(tmp_path / "source", document)
    with pytest.raises(errors.ConfigError, match=r"channels 0 \(T1\), 1 \(noNorm\); choose"):
        imported(tmp_path, source)
    with pytest.raises(errors.ConfigError, match="--channel 2 is not in"):
        imported(tmp_path, source, channel=2)
    with pytest.raises(errors.ConfigError, match="channel 1 'noNorm', .* --modality CT"):
        imported(tmp_path, source, channel=1)
    dataset = imported(tmp_path, source, channel=1, modality="MR")
    assert {int(read_volume(case.image).array.max()) for case in dataset.cases} == {1, 101}


@pytest.mark.parametrize(
    "name", ["T1", "T1w", "t1ce", "T2-FLAIR", "T2f", "FLAIR", "mri", "MR", "ADC"]
)
def test_channels_that_are_mr(tmp_path: Path, name: str) -> None:
    source = write_folder(tmp_path / "source", {**V2, "channel_names": {"0": name}})
    assert {task.modality for task in imported(tmp_path, source).tasks} == {"MR"}


@pytest.mark.parametrize("name", ["noNorm", "PET", "CT-MR", "T10", "tumour", "CBCT", ""])
def test_channels_that_are_neither(tmp_path: Path, name: str) -> None:
    source = write_folder(tmp_path / "source", {**V2, "channel_names": {"0": name}})
    with pytest.raises(errors.ConfigError, match="--modality"):
        imported(tmp_path, source)


def test_patients_by_name(tmp_path: Path) -> None:
    maps = {"P1_a": (1,), "P1_b": (1,)}
    source = write_folder(tmp_path / "source", maps=maps)
    with pytest.raises(errors.ConfigError, match="finds no patient in the name 'P1_a'"):
        imported(tmp_path, source, patient="x+")
    with pytest.raises(errors.ConfigError, match="no regular expression"):
        imported(tmp_path, source, patient="(")
    write_folder(source, maps={"P1_c": (1,)}, side="Ts")
    with pytest.raises(errors.SplitError, match="source: patient P1 is in split 'train'"):
        imported(tmp_path, source, patient="(P[0-9]+)_")
    shutil.rmtree(source / "imagesTs")
    shutil.rmtree(source / "labelsTs")
    assert {c.patient for c in imported(tmp_path, source, patient="P[0-9]+").cases} == {"P1"}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sets(st.integers(1, 4)), min_size=1, max_size=4).filter(any))
def test_cases_are_exactly_what_the_maps_hold(
    tmp_path_factory: pytest.TempPathFactory, held: list[set[int]]
) -> None:
    root = tmp_path_factory.mktemp("law")
    labels = {"background": 0, **{f"s{value}": value for value in range(1, 5)}}
    document = {**V2, "labels": labels, "numTraining": len(held)}
    maps = {f"c{at}": tuple(values) for at, values in enumerate(held)}
    cases = imported(root, write_folder(root / "source", document, maps)).cases
    found = {(case.patient, case.label_value) for case in cases}
    assert found == {(name, value) for name, values in maps.items() for value in values}


def test_a_value_that_nobody_declared(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", maps={"a": (1, 7), "b": (1,)})
    with pytest.raises(
        errors.VolumeError, match=r"1 of 2 .*labelsTr/a.nii.gz holds 7, which .*json"
    ):
        imported(tmp_path, source)
    array = np.where(label_map(1) == 1, 1.5, 0).astype(np.float32)
    write(source / "labelsTr" / "a.nii.gz", array)
    with pytest.raises(errors.VolumeError, match="holds 1.5"):
        imported(tmp_path, source)
    assert not (tmp_path / "out").exists()


def strip(pattern: str) -> Callable[[Path], None]:
    return lambda root: [path.unlink() for path in root.glob(pattern)] and None


def rewrite(**changes: Any) -> Callable[[Path], None]:
    return lambda root: (root / "dataset.json").write_text(json.dumps({**V2, **changes})) and None


def loop(root: Path) -> None:
    (root / "imagesTr" / "l_0000.nii.gz").symlink_to("l_0000.nii.gz")


def labels(**entries: Any) -> Callable[[Path], None]:
    return rewrite(labels=entries)


BAD: dict[str, tuple[Callable[[Path], Any], type[errors.RTSamError], str]] = {
    "image without label": (
        strip("labelsTr/a*"),
        errors.MissingFile,
        "a_01 of imagesTr .*labelsTr",
    ),
    "label without image": (strip("imagesTr/b*"), errors.MissingFile, "b_02 of labelsTr"),
    "no labels": (lambda r: shutil.rmtree(r / "labelsTr"), errors.MissingFile, "labelsTr"),
    "no sides": (
        lambda r: [shutil.rmtree(r / f) for f in ("imagesTr", "labelsTr")],
        errors.MissingFile,
        "no folders imagesTr and labelsTr",
    ),
    "no json": (strip("dataset.json"), errors.MissingFile, "no .*dataset.json"),
    "no JSON": (
        lambda r: (r / "dataset.json").write_text("{"),
        errors.DatasetSchemaError,
        "not valid JSON",
    ),
    "another object": (
        lambda r: (r / "dataset.json").write_text("[]"),
        errors.DatasetSchemaError,
        "one JSON object",
    ),
    "no channels": (rewrite(channel_names={}), errors.DatasetSchemaError, "'channel_names'"),
    "no labels declared": (rewrite(labels=[]), errors.DatasetSchemaError, "'labels'"),
    "background alone": (labels(background=0), errors.DatasetSchemaError, "besides the background"),
    "a text for a label": (labels(a="1", b=2), errors.DatasetSchemaError, "'labels.a'"),
    "a region of 0": (labels(a=[0, 1]), errors.DatasetSchemaError, "'labels.a'"),
    "a region of nothing": (labels(a=[]), errors.DatasetSchemaError, "'labels.a'"),
    "ignore is a structure": (labels(a=1, ignore=1), errors.DatasetSchemaError, "labels.ignore"),
    "two with one name": (
        labels(**{"a b": 1, "a_b": 2}),
        errors.DatasetSchemaError,
        "'a b' and 'a_b' would both be called a_b",
    ),
    "a name of nothing": (labels(**{"肝": 1, "b": 2}), errors.DatasetSchemaError, "no letter"),
    "nrrd declared": (rewrite(file_ending=".nrrd"), errors.DatasetSchemaError, "file_ending"),
    "files listed": (rewrite(dataset={}), errors.DatasetSchemaError, "'dataset'"),
    "a number of cases": (rewrite(numTraining="2"), errors.DatasetSchemaError, "numTraining"),
    "cases are missing": (rewrite(numTraining=3), errors.MissingFile, "numTraining 3.* 2 cases"),
    "nrrd": (lambda r: (r / "imagesTr" / "c.nrrd").touch(), errors.UnreadableFile, "c.nrrd"),
    "no channel in the name": (
        lambda r: (r / "imagesTr" / "c.nii.gz").touch(),
        errors.DatasetSchemaError,
        "c.nii.gz does not end in a channel",
    ),
    "an undeclared channel": (
        lambda r: (r / "imagesTr" / "a_01_0001.nii.gz").touch(),
        errors.DatasetSchemaError,
        "a_01_0001.nii.gz does not end in a channel",
    ),
    "both endings": (
        lambda r: (r / "labelsTr" / "a_01.nii").touch(),
        errors.DatasetSchemaError,
        "both a_01.nii and a_01.nii.gz",
    ),
    "a loop of links": (loop, errors.MissingFile, "l_0000.nii.gz is no file"),
    "a folder of a label's name": (
        lambda r: (r / "labelsTr" / "c.nii.gz").mkdir(),
        errors.MissingFile,
        "c.nii.gz is no file",
    ),
    "a truncated map": (
        lambda r: (r / "labelsTr" / "a_01.nii.gz").write_bytes(b"\x1f\x8b\x08\x00"),
        errors.UnreadableFile,
        "1 of 2 label maps cannot be used, so nothing was written: .*a_01",
    ),
    "doses of other names": (
        lambda r: write(r / "dosesTr" / "a_01_0000.nii.gz", np.ones((2, 2, 2))),
        errors.MissingFile,
        "No dose .* a_01_0000",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_folder_is_one_sentence_and_writes_nothing(tmp_path: Path, what: str) -> None:
    break_it, kind, sentence = BAD[what]
    source = write_folder(tmp_path / "source")
    break_it(source)
    with pytest.raises(kind, match=sentence) as error:
        imported(tmp_path, source)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_ids_that_two_cases_would_share(tmp_path: Path) -> None:
    document = {**V2, "labels": {"background": 0, "b_c": 1, "c": 2}}
    source = write_folder(tmp_path / "source", document, {"a": (1,), "a_b": (2,)})
    with pytest.raises(errors.DatasetSchemaError, match="two cases would be called a_b_c"):
        imported(tmp_path, source)
    other = write_folder(tmp_path / "other", maps={"a": (1,), "b": (1,)})
    write_folder(other, maps={"a": (1,)}, side="Ts")
    with pytest.raises(errors.DatasetSchemaError, match="two cases would be called a_liver"):
        imported(tmp_path, other)


def test_a_folder_that_holds_nothing_declared(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", maps={"a": (), "b": ()})
    with pytest.raises(errors.DatasetSchemaError, match="No map in .* holds a structure"):
        imported(tmp_path, source)


def test_a_named_dose_folder_must_be_there(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source")
    with pytest.raises(errors.MissingFile, match="no folder .*rdTr; .* --dose"):
        imported(tmp_path, source, dose="rdTr")


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source")
    with pytest.raises(errors.OutputExists):
        nnunet.build(source, source)


def test_hidden_files_and_sidecars_are_passed_over(tmp_path: Path) -> None:
    for name in (".DS_Store", "._a.nii.gz", "a.json", "README.md", "a.nii.gz"):
        (tmp_path / name).touch()
    assert volumes_in(tmp_path) == {"a": tmp_path / "a.nii.gz"}


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_folder(tmp_path / "source"), tmp_path / "out"
    command = ["nnunet", str(source), str(out), "--kind", "synthetic", "--patient", "^[ab]"]
    monkeypatch.setattr(sys, "argv", command)
    nnunet.main()
    dataset = load_dataset(out)
    assert dataset.kind == "synthetic" and {c.patient for c in dataset.cases} == {"a", "b"}
    with pytest.raises(SystemExit) as left:
        run_command(nnunet.main)
    assert left.value.code == 3 and capsys.readouterr().err.endswith("another folder.\n")


def test_a_real_map_of_many_structures(data_pack: Path, tmp_path: Path) -> None:
    """Its map is padded: it covers only the first slices of the image."""
    image = read_volume(data_pack / "ct_labels" / "ct.nii.gz")
    part = read_volume(data_pack / "ct_labels" / "totalsegmentator.nii.gz")
    whole = np.zeros(image.shape, np.uint8)
    whole[:, :, : part.shape[2]] = part.array
    source = tmp_path / "source"
    write_volume(source / "imagesTr" / "s1_0000.nii.gz", image, np.int16)
    write_volume(source / "labelsTr" / "s1.nii.gz", Volume(whole, image.affine), np.uint8)
    structures = {f"structure {value}": value for value in range(1, 118)}
    document = {**V2, "labels": {"background": 0, **structures}, "numTraining": 1}
    (source / "dataset.json").write_text(json.dumps(document))
    dataset = imported(tmp_path, source)
    values = set(np.unique(part.array).astype(int)) - {0}
    assert (
        {case.label_value for case in dataset.cases}
        == values
        == set(int(task.name.removeprefix("structure_")) for task in dataset.tasks)
    )
    for case in dataset.cases[::10]:
        inside = read_label(case.label, case.label_value)
        assert inside.array.sum() == (part.array == case.label_value).sum()


def test_a_structure_with_the_name_of_the_row_over_all(tmp_path: Path) -> None:
    document = {**V2, "labels": {"background": 0, "all": 1, "other": 2}}
    source = write_folder(tmp_path / "source", document)
    with pytest.raises(errors.DatasetSchemaError, match=f"^{source}: a structure is called 'all'"):
        imported(tmp_path, source)
    assert not (tmp_path / "out").exists()
