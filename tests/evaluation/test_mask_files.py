"""Which files belong together, and that another order of axes is the same grid."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.data.nifti import Volume, read_label
from rtsam_jax.errors import (
    ConfigError,
    DatasetSchemaError,
    MissingFile,
    NoOverlap,
    UnreadableFile,
    VolumeError,
)
from rtsam_jax.evaluation.mask_files import (
    Owner,
    files_of,
    named_places,
    on_grid,
    parse_values,
    read_owners,
    same_grid,
    unmatched,
)

AFFINE = np.array([[1.0, 0, 0, -7], [0, 2, 0, 5], [0, 0, 3, 11], [0, 0, 0, 1]])
ORIENTATIONS = [
    np.array([*zip(axes, flips, strict=True)])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_a_folder_or_a_path_with_the_case_in_it(tmp_path: Path) -> None:
    for case in ("b", "a[1]"):
        touch(tmp_path / "flat" / f"{case}.nii.gz")
        touch(tmp_path / "deep" / case / "mask.nii")
        touch(tmp_path / "tail" / f"{case}_pred.nii.gz")
    touch(tmp_path / "flat" / "plans.json")
    for place in ("flat", "deep/{case}/mask.nii", "tail/{case}_pred.nii.gz"):
        assert list(files_of(str(tmp_path / place))) == ["a[1]", "b"]


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("none", MissingFile),
        ("empty", MissingFile),
        ("{case}/{case}.nii", ConfigError),
        ("flat/{case}.nii", MissingFile),
        ("flat/{case}.gz", None),
        ("other", UnreadableFile),
        ("other/{case}.mha", UnreadableFile),
        ("twice", DatasetSchemaError),
    ],
)
def test_places_that_hold_no_masks(
    tmp_path: Path, place: str, error: type[Exception] | None
) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "flat" / "a.nii.gz")
    touch(tmp_path / "other" / "a.mha")
    touch(tmp_path / "twice" / "a.nii.gz")
    touch(tmp_path / "twice" / "a.nii")
    if error is None:
        assert list(files_of(str(tmp_path / place))) == ["a.nii"]
        return
    with pytest.raises(error):
        files_of(str(tmp_path / place))


def test_places_are_named_or_called_after_their_folder() -> None:
    assert named_places(["nnunet=x/y", "z/swin", "w/{case}.nii"]) == {
        "nnunet": "x/y",
        "swin": "z/swin",
        "w": "w/{case}.nii",
    }
    with pytest.raises(ConfigError, match="two places are called 'p'"):
        named_places(["a/p", "b/p"])


def test_a_place_may_have_an_equals_sign_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "lr=1" / "x" / "a.nii")
    touch(tmp_path / "a_lr=1.nii")
    places = ["lr=1/x", "runs/lr=2/y", "{case}_lr=1.nii", "m=runs/lr=1/x"]
    assert list(named_places(places).items()) == [
        ("x", "lr=1/x"),
        ("y", "runs/lr=2/y"),
        ("{case}_lr=1.nii", "{case}_lr=1.nii"),
        ("m", "runs/lr=1/x"),
    ]
    for bad in ("=m/a", "a=", "=", ""):
        with pytest.raises(ConfigError, match="lacks a name or a place"):
            named_places([bad])


def test_values_are_whole_numbers_with_a_name_or_their_own() -> None:
    assert parse_values(["1=orn", "3"]) == {"orn": 1, "3": 3}
    for bad in (
        ["0"],
        ["-1=a"],
        ["x=a"],
        ["1=a", "2=a"],
        ["1=a", "1=b"],
        ["1=all"],
        ["1=a/b"],
        ["1.5"],
    ):
        with pytest.raises(ConfigError, match="--values"):
            parse_values(bad)
    with pytest.raises(ConfigError, match="--values -1 must be a whole number above 0"):
        parse_values(["-1"])


def test_owners_may_have_several_cases_and_cases_several_tasks(tmp_path: Path) -> None:
    table = tmp_path / "p.csv"
    table.write_text("case,patient\na,p\nb,p\n")
    assert read_owners(table) == {"a": Owner("p"), "b": Owner("p")}
    table.write_text("patient,task,case\np,orn,a\np,ce,a\n")
    assert read_owners(table) == {"a": Owner("p", ("orn", "ce"))}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "case,patient\n",
        "case\na\n",
        "case,patient\na,\n",
        "case,patient\na\n",
        "case,patient\na,p\na,q\n",
        "case,patient\na,p\na,p\n",
        "case,patient,task\na,p,orn\na,p,orn\n",
        "case,patient,task\na,p,orn\na,p,\n",
        b"\xff\xfe\x00",
    ],
)
def test_tables_of_patients_that_leave_a_doubt(tmp_path: Path, text: str | bytes) -> None:
    table = tmp_path / "p.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UnreadableFile, match="p.csv"):
        read_owners(table)


def test_a_task_must_have_a_name_that_tables_can_use(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("case,patient,task\na,p,all\n")
    with pytest.raises(ConfigError, match="'all'"):
        read_owners(tmp_path / "p.csv")
    with pytest.raises(MissingFile):
        read_owners(tmp_path / "none.csv")
    with pytest.raises(MissingFile, match=f"{tmp_path} is a folder; name a CSV"):
        read_owners(tmp_path)


def test_a_mask_is_no_folder_of_masks(tmp_path: Path) -> None:
    touch(tmp_path / "a.nii.gz")
    with pytest.raises(MissingFile, match="a.nii.gz is a file; name a folder of masks"):
        files_of(str(tmp_path / "a.nii.gz"))


def test_every_file_without_a_partner_is_named() -> None:
    truth = [f"c{i}" for i in range(9)]
    assert unmatched(truth, truth, "m", allow_missing=False) == []
    assert unmatched(truth, truth[2:], "m", allow_missing=True) == ["c0", "c1"]
    with pytest.raises(MissingFile, match=r"c0, c1 \(2 in all\).*--allow-missing"):
        unmatched(truth, truth[2:], "m", allow_missing=False)
    for allow in (True, False):
        with pytest.raises(MissingFile, match=r"^x, y of m \(2 in all\) has no truth"):
            unmatched(truth, [*truth, "x", "y"], "m", allow_missing=allow)


def stored(path: Path, array: np.ndarray, orientation: np.ndarray) -> Path:
    """A RAS+ array as a file whose axes run otherwise; the same voxels in world mm."""
    affine = AFFINE @ nibabel.orientations.inv_ornt_aff(orientation, array.shape)
    turned = nibabel.apply_orientation(array, orientation)
    nibabel.save(nibabel.Nifti1Image(turned.astype(np.uint8), affine), path)
    return path


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(ORIENTATIONS), st.integers(0, 2**32 - 1))
def test_the_order_of_axes_is_no_other_grid(
    tmp_path_factory: pytest.TempPathFactory, orientation: np.ndarray, seed: int
) -> None:
    array = np.random.default_rng(seed).random((4, 5, 6)) < 0.5
    path = tmp_path_factory.getbasetemp() / "turned.nii"
    mask = read_label(stored(path, array, orientation))
    grid = Volume(np.zeros((4, 5, 6), bool), AFFINE)
    assert same_grid(mask, grid)
    found = on_grid(mask, grid, what="mask", case="a", resampled=False)
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    ("shape", "move", "scale", "said"),
    [
        ((4, 5, 7), 0.0, 1.0, "4 x 5 x 7 voxels against 4 x 5 x 6"),
        ((4, 5, 6), 2.0, 1.0, "up to 2 mm away"),
        ((4, 5, 6), 0.0, 1.5, "1.5 x 3 x 4.5 mm against 1 x 2 x 3 mm"),
    ],
)
def test_another_grid_is_refused_by_what_differs(
    shape: tuple[int, ...], move: float, scale: float, said: str
) -> None:
    affine = AFFINE @ np.diag([scale, scale, scale, 1.0])
    affine[0, 3] += move
    mask, grid = Volume(np.ones(shape, bool), affine), Volume(np.zeros((4, 5, 6), bool), AFFINE)
    with pytest.raises(VolumeError, match=said) as caught:
        on_grid(mask, grid, what="mask of m", case="a", resampled=False)
    assert "mask of m of a" in str(caught.value) and "--resample" in str(caught.value)
    assert on_grid(mask, grid, what="mask", case="a", resampled=True).any()


def test_nearest_voxels_are_taken_and_beyond_is_background() -> None:
    """A mask of half the voxel size, on the left half of its truth only."""
    grid = Volume(np.zeros((4, 4, 4), bool), np.eye(4))
    fine = np.diag([0.5, 0.5, 0.5, 1.0])
    fine[:3, 3] = -0.25
    inside = np.zeros((4, 8, 8), bool)
    inside[:, :4] = True
    found = on_grid(Volume(inside, fine), grid, what="mask", case="a", resampled=True)
    expected = np.zeros((4, 4, 4), bool)
    expected[:2, :2] = True
    np.testing.assert_array_equal(found, expected)
    fine[:3, 3] = 100
    with pytest.raises(NoOverlap):
        on_grid(Volume(inside, fine), grid, what="mask", case="a", resampled=True)


def test_rounding_in_a_header_is_no_other_grid() -> None:
    affine = AFFINE.copy()
    affine[:3] += np.random.default_rng(0).uniform(-1e-3, 1e-3, (3, 4))
    grid = Volume(np.zeros((4, 5, 6), bool), AFFINE)
    assert same_grid(Volume(np.zeros((4, 5, 6), bool), affine), grid)
    affine[2, 3] += 0.2
    assert not same_grid(Volume(np.zeros((4, 5, 6), bool), affine), grid)
