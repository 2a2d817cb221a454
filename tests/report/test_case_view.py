"""One case's row of the report: what is measured, what is warned of, what is drawn where."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pickle
import warnings
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from PIL import Image

from rtsam_jax.data.cases import Case, load_dataset
from rtsam_jax.data.crops import crop_origins
from rtsam_jax.data.grid import Grid
from rtsam_jax.data.nifti import Volume, read_volume, write_volume
from rtsam_jax.data.preprocess import Preprocessed, PreprocessSpec, preprocess
from rtsam_jax.errors import IncompleteCase, VolumeError
from rtsam_jax.prompts.dose import box_corners
from rtsam_jax.report import canvas, case_facts
from rtsam_jax.report.case_facts import CaseFacts, DoseFacts, LabelFacts, measure, stored_axes
from rtsam_jax.report.case_picture import ISODOSES, LABEL, REGION, Line, draw_case
from rtsam_jax.report.case_view import CaseView, view_case
from rtsam_jax.report.case_warnings import percent, warnings_of
from tests import tiny

SPEC = PreprocessSpec(spacing_mm=tiny.SPACING, tau=0.5)
CROP = 32
few = settings(max_examples=15, deadline=None)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """Collects the matplotlib figures as they are encoded."""
    kept: list = []
    jpeg = canvas.jpeg
    monkeypatch.setattr(canvas, "jpeg", lambda figure: (kept.append(figure), jpeg(figure))[1])
    return kept


@pytest.fixture(scope="module")
def case(tiny_dataset: Path) -> Case:
    """A CT with dose and label."""
    return load_dataset(tiny_dataset).cases[0]


@pytest.fixture(scope="module")
def view(case: Case) -> CaseView:
    return view_case(case, "CT", SPEC, CROP)


def lines_of(axis, line: Line) -> np.ndarray:
    """Vertices [n, 2] in mm of the contours drawn so."""
    dashes = [length * line.width for length in line.dashes] or None
    found = [
        path.vertices
        for collection in axis.collections
        if np.allclose(collection.get_edgecolor()[:, :3], to_rgb(line.colour))
        and collection.get_linestyle() == [(0, dashes)]
        for path in collection.get_paths()
    ]
    return np.concatenate([np.empty((0, 2)), *found])


def test_facts_are_those_of_the_files(view: CaseView, case: Case) -> None:
    image, dose, label = (read_volume(path) for path in (case.image, case.dose, case.label))
    facts = view.facts
    assert (view.id, view.patient, view.task, view.split) == ("p0_orn", "p0", "orn", "train")
    assert view.status == "complete"
    assert facts.shape == tiny.SHAPE and facts.stored_axes == "RAS"
    assert facts.spacing_mm == pytest.approx((tiny.SPACING,) * 3)
    expected = np.percentile(image.array, (0, 1, 50, 99, 100))
    assert facts.intensities == pytest.approx(expected, rel=1e-5)
    assert facts.crop_mm == pytest.approx(CROP * tiny.SPACING)
    assert facts.dose is not None and facts.label is not None
    assert facts.dose.dmax == pytest.approx(dose.array.max())
    assert facts.dose.threshold == pytest.approx(0.5 * dose.array.max())
    inside = dose.array >= 0.5 * dose.array.max()  # one ball, so one component
    assert facts.dose.roi_ml == pytest.approx(inside.sum() * tiny.SPACING**3 / 1000)
    extent = np.ptp(np.argwhere(inside), axis=0) + 1
    assert facts.dose.box_mm == pytest.approx(extent * tiny.SPACING)
    assert (facts.dose.crops, facts.dose.outside) == (1, 0.0)
    assert facts.label.ml == pytest.approx((label.array > 0).sum() * tiny.SPACING**3 / 1000)
    assert (facts.label.lesions, facts.label.outside_roi) == (1, 0.0)


def test_a_view_survives_the_way_out_of_a_process(view: CaseView) -> None:
    assert pickle.loads(pickle.dumps(view)) == view
    picture = Image.open(BytesIO(view.picture))
    assert picture.format == "JPEG" and min(picture.size) > 200


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        (("dose",), "incomplete: no dose"),
        (("label",), "incomplete: no label"),
        (("dose", "label"), "incomplete: no dose, no label"),
    ],
)
def test_an_incomplete_case_is_shown_with_what_it_has(
    case: Case, parts: tuple[str, ...], status: str
) -> None:
    view = view_case(dataclasses.replace(case, **dict.fromkeys(parts)), "CT", SPEC, CROP)
    assert view.status == status
    for part in ("dose", "label"):
        assert (getattr(view.facts, part) is None) == (part in parts)
        assert any(f"no {part}" in sentence for sentence in view.warnings) == (part in parts)
    if parts == ("dose",):
        assert view.facts.label is not None and view.facts.label.outside_roi is None
    assert Image.open(BytesIO(view.picture)).format == "JPEG"


def test_label_value_names_the_structure(case: Case, tmp_path: Path) -> None:
    label = np.zeros(tiny.SHAPE, np.uint8)
    label[10:14, 10:14, 10:14], label[20:22, 20:22, 20:22] = 1, 2
    path = tmp_path / "map.nii.gz"
    write_volume(path, Volume(label, read_volume(case.image).affine), np.uint8)
    named = view_case(dataclasses.replace(case, label=path, label_value=2), "CT", SPEC, CROP)
    assert named.facts.label is not None
    assert named.facts.label.ml == pytest.approx(8 * tiny.SPACING**3 / 1000)
    with pytest.raises(VolumeError, match="label_value"):
        view_case(dataclasses.replace(case, label=path), "CT", SPEC, CROP)


def test_the_prescription_reaches_the_threshold(case: Case) -> None:
    spec = dataclasses.replace(SPEC, threshold="prescription")
    view = view_case(dataclasses.replace(case, record={"prescription_gy": 60}), "CT", spec, CROP)
    assert view.facts.dose is not None and view.facts.dose.threshold == pytest.approx(30)
    with pytest.raises(IncompleteCase, match="prescription_gy"):
        view_case(dataclasses.replace(case, record={}), "CT", spec, CROP)


@settings(max_examples=10, deadline=None)
@given(
    order=st.permutations(range(3)),
    flips=st.tuples(*[st.booleans()] * 3),
    second=st.booleans(),
    zipped=st.booleans(),
)
def test_axis_order_and_format_of_the_file_change_nothing_but_the_stored_axes(
    tmp_path_factory: pytest.TempPathFactory,
    case: Case,
    view: CaseView,
    order: list[int],
    flips: tuple[bool, ...],
    second: bool,
    zipped: bool,
) -> None:
    volume = read_volume(case.image)
    orientation = np.stack([order, np.where(flips, -1, 1)], axis=1)
    array = nibabel.apply_orientation(volume.array, orientation)
    affine = volume.affine @ nibabel.orientations.inv_ornt_aff(orientation, tiny.SHAPE)
    image = (nibabel.Nifti2Image if second else nibabel.Nifti1Image)(array, affine)
    image.set_sform(affine, code=1)
    path = tmp_path_factory.mktemp("turned") / f"image.nii{'.gz' if zipped else ''}"
    nibabel.save(image, path)
    axes = "".join(nibabel.aff2axcodes(affine))
    assert stored_axes(path) == axes
    turned = view_case(dataclasses.replace(case, image=path), "CT", SPEC, CROP)
    assert turned.picture == view.picture
    assert dataclasses.replace(turned.facts, stored_axes="RAS") == view.facts


def test_percentiles_of_a_sample_keep_the_extremes(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).normal(0, 100, (60, 50, 7)).astype(np.float32)
    array[59, 49, 6], array[1, 1, 1] = 5000, -5000
    whole = case_facts._intensities(array)
    monkeypatch.setattr(case_facts, "_SAMPLED", array.size // 8)
    sampled = case_facts._intensities(array)
    assert sampled[0] == -5000 and sampled[4] == 5000
    assert sampled[1:4] == pytest.approx(whole[1:4], abs=25) and sampled != whole


def label_facts(
    tmp_path: Path, label: np.ndarray, roi: np.ndarray, spacing: float, size: int
) -> LabelFacts:
    """Facts of a label whose model grid is its own, at `spacing` mm in both."""
    volume = Volume(label, np.diag([spacing, spacing, spacing, 1.0]))
    path = tmp_path / "image.nii"
    if not path.exists():
        write_volume(path, Volume(label.astype(np.uint8), volume.affine), np.uint8)
    scan = Preprocessed(
        image=np.zeros(label.shape, np.float32),
        roi=roi.astype(np.uint8),
        box=box_corners(roi),
        dmax=60.0,
        threshold_gy=30.0,
        grid=Grid(volume.shape, volume.affine),
        modality="MR",
        fraction_outside_dose=0.0,
        mean=0.0,
        std=1.0,
        background=0.0,
        diagonal_mm=1.0,
    )
    dose = Volume(roi.astype(np.float32), volume.affine)
    image = Volume(np.zeros(label.shape, np.float32), volume.affine)
    facts = measure(path, image, dose, volume, scan, label.astype(np.uint8), size=size)
    assert facts.label is not None
    return facts.label


@few
@given(
    edges=st.lists(st.integers(1, 3), max_size=6),
    model=st.sampled_from([1.0, 1.5, 2.0]),
)
def test_lesions_are_counted_and_sized_against_model_voxels(edges: list[int], model: float) -> None:
    label = np.zeros((30, 6, 6), bool)
    for number, edge in enumerate(edges):  # a cube per five voxels: none touches the next
        start = 5 * number
        label[start : start + edge, :edge, :edge] = True
    lesions = case_facts._components(label)
    assert sorted(lesions) == sorted(edge**3 for edge in edges)
    volumes = np.array([edge**3 for edge in edges], float)
    assert case_facts._below(lesions * 1.0, model**3) == (volumes < model**3).sum()
    assert case_facts._below(lesions * 1.0, 27 * model**3) == (volumes < 27 * model**3).sum()


def test_a_lesion_of_exactly_one_voxel_is_not_below_it() -> None:
    assert 0.7**3 < 0.343  # one volume, computed twice
    assert case_facts._below(np.array([0.7**3]), 0.343) == 0
    assert case_facts._below(np.array([0.342]), 0.343) == 1


def test_voxels_that_share_a_corner_are_one_lesion(tmp_path: Path) -> None:
    label = np.zeros((9, 9, 9), bool)
    label[4, 4, 4] = label[5, 5, 5] = label[1, 1, 1] = True
    facts = label_facts(tmp_path, label, np.ones_like(label), 2.0, 8)
    assert (facts.lesions, facts.below_voxel, facts.below_small) == (2, 0, 2)
    assert facts.ml == pytest.approx(0.024)


@few
@given(seed=st.integers(0, 999), size=st.integers(1, 14), corner=st.integers(0, 8))
def test_shares_outside_the_region_and_the_crops_agree_with_counting(
    tmp_path_factory: pytest.TempPathFactory, seed: int, size: int, corner: int
) -> None:
    shape = (14, 11, 12)
    label = np.random.default_rng(seed).random(shape) < 0.1
    label[3, 3, 3] = True
    roi = np.zeros(shape, bool)
    roi[corner : corner + 5, corner // 2 : corner + 3, 2:9] = True
    facts = label_facts(tmp_path_factory.mktemp("label"), label, roi, 1.0, size)
    box = box_corners(roi)
    assert box is not None
    seen = 0
    origins = crop_origins(box, size)
    for voxel in np.argwhere(label):
        seen += bool(((voxel >= origins) & (voxel < origins + size)).all(axis=1).any())
    assert facts.outside_crops == pytest.approx(1 - seen / label.sum())
    assert facts.outside_roi == pytest.approx((label & ~roi).sum() / label.sum())


@pytest.mark.parametrize(
    ("voxel", "touches"), [((0, 4, 4), True), ((4, 8, 4), True), ((1, 7, 4), False)]
)
def test_a_label_at_the_border_is_told(
    tmp_path: Path, voxel: tuple[int, ...], touches: bool
) -> None:
    label = np.zeros((9, 9, 9), bool)
    label[voxel] = True
    assert label_facts(tmp_path, label, np.ones_like(label), 1.0, 8).at_border == touches


DOSE = DoseFacts(
    spacing_mm=(2.5, 2.5, 2.5),
    dmax=70.0,
    threshold=56.0,
    roi_ml=200.0,
    box_mm=(80.0, 90.0, 100.0),
    crops=1,
    outside=0.0,
)
TRUTH = LabelFacts(
    ml=12.0,
    lesions=3,
    below_voxel=0,
    below_small=0,
    at_border=False,
    outside_roi=0.2,
    outside_crops=0.0,
)
PLAIN = CaseFacts(
    modality="CT",
    shape=(512, 512, 100),
    spacing_mm=(0.9, 0.9, 3.0),
    stored_axes="LPS",
    model_spacing_mm=1.0,
    crop_mm=128.0,
    intensities=(-1024.0, -1000.0, -200.0, 300.0, 2900.0),
    mean=20.0,
    std=200.0,
    dose=DOSE,
    label=TRUTH,
)
SUSPICIOUS: list[tuple[dict, str]] = [
    (
        {"intensities": (-499.0, 0.0, 10.0, 300.0, 2900.0)},
        "The smallest value is -499, but air in a CT is near -1000 HU: check that the values are "
        "HU.",
    ),
    (
        {"modality": "MR", "intensities": (-2.5, 0.0, 10.0, 300.0, 2900.0)},
        "The smallest value is -2.5, but an MR magnitude image has no negative values: check that "
        "it is not normalised already, since zero counts as background.",
    ),
    (
        {"spacing_mm": (0.5, 0.5, 6.0)},
        "Voxels of 0.5 × 0.5 × 6 mm are 12.0 times as long as wide: between slices, most of the "
        "model's image is interpolated.",
    ),
    (
        {"dose": dataclasses.replace(DOSE, dmax=6800.0)},
        "The largest dose is 6800, implausible in Gy (5 to 120): check the dose's unit and "
        "scaling.",
    ),
    (
        {"dose": dataclasses.replace(DOSE, dmax=1.07)},
        "The largest dose is 1.07, implausible in Gy (5 to 120): check the dose's unit and "
        "scaling.",
    ),
    (
        {"dose": dataclasses.replace(DOSE, box_mm=(156.0, 80.0, 90.0), crops=2)},
        "The dose box of 156 × 80 × 90 mm is larger than the crop of 128 mm: it takes 2 "
        "overlapping crops.",
    ),
    (
        {"dose": dataclasses.replace(DOSE, outside=0.34)},
        "34 % of the image lies outside the dose grid, where the dose counts as 0.",
    ),
    (
        {"label": dataclasses.replace(TRUTH, outside_roi=0.81)},
        "81 % of the label lies outside the high-dose region.",
    ),
    (
        {"label": dataclasses.replace(TRUTH, outside_crops=0.123)},
        "12.3 % of the label lies outside every crop and will count as missed.",
    ),
    (
        {"label": dataclasses.replace(TRUTH, at_border=True)},
        "The label touches the image's border: a part of it may be cut off.",
    ),
    (
        {"label": dataclasses.replace(TRUTH, below_voxel=1, below_small=1)},
        "1 of 3 lesions is smaller than one model voxel (1 mm³).",
    ),
    (
        {"label": dataclasses.replace(TRUTH, below_small=2)},
        "2 of 3 lesions are smaller than 27 model voxels of 1 mm³.",
    ),
    (
        {"label": dataclasses.replace(TRUTH, lesions=1, below_small=1)},
        "The lesion is smaller than 27 model voxels of 1 mm³.",
    ),
    (
        {"label": LabelFacts(0.0, 0, 0, 0, False, None, None)},
        "The label is empty.",
    ),
    ({"dose": None}, "There is no dose, and so no dose box; what needs one leaves the case out."),
    (
        {"label": None},
        "There is no label; the case cannot be trained on or scored.",
    ),
]


def test_a_plausible_case_has_no_warning() -> None:
    assert warnings_of(PLAIN) == ()
    rim = dataclasses.replace(DOSE, outside=0.1, dmax=120.0)
    half = dataclasses.replace(TRUTH, outside_roi=0.5)
    at_the_bounds = dataclasses.replace(PLAIN, spacing_mm=(1.0, 1.0, 5.0), dose=rim, label=half)
    assert warnings_of(at_the_bounds) == ()


@pytest.mark.parametrize(("change", "sentence"), SUSPICIOUS, ids=[s for _, s in SUSPICIOUS])
def test_each_suspicion_has_its_sentence(change: dict, sentence: str) -> None:
    assert warnings_of(dataclasses.replace(PLAIN, **change)) == (sentence,)


@few
@given(st.floats(0, 1))
def test_a_share_is_never_rounded_to_none_or_all(share: float) -> None:
    assert (percent(share) == "0 %") == (share == 0)
    assert (percent(share) == "100 %") == (share == 1)


def ramp(tmp_path: Path, *, low: float = -400.0) -> tuple[Case, Volume]:
    """A coarse, shifted dose that rises along R by 1 per mm, 100 at R = 50 mm, on a finer image."""
    image = Volume(
        np.random.default_rng(0).normal(40, 10, (60, 50, 20)).astype(np.float32),
        np.array([[2.0, 0, 0, -60], [0, 2, 0, -50], [0, 0, 4, -40], [0, 0, 0, 1]]),
    )
    affine = np.array([[5.0, 0, 0, low], [0, 5, 0, -80], [0, 0, 5, -80], [0, 0, 0, 1]])
    right = low + 5.0 * np.arange(round((50 - low) / 5) + 1)
    dose = np.broadcast_to(np.maximum(right + 50, 0)[:, None, None], (right.size, 33, 33))
    paths = [tmp_path / f"{name}.nii.gz" for name in ("image", "dose")]
    write_volume(paths[0], image, np.float32)
    write_volume(paths[1], Volume(np.ascontiguousarray(dose, np.float32), affine), np.float32)
    return Case("ramp", "p", "ce", paths[0], paths[1]), image


def test_isodose_lines_lie_where_the_dose_says(tmp_path: Path, drawn: list) -> None:
    case, image = ramp(tmp_path)
    view_case(case, "MR", PreprocessSpec(spacing_mm=2.0, tau=0.6), CROP)
    axial, coronal, sagittal = drawn[0].axes
    for axis in (axial, coronal):
        for share, line in ISODOSES.items():
            right = lines_of(axis, line)[:, 0] + image.affine[0, 3]
            assert right.size and right == pytest.approx(100 * share - 50, abs=0.01)
        outline = lines_of(axis, REGION)[:, 0] + image.affine[0, 3]
        assert outline.min() == pytest.approx(10, abs=2.0)  # 60 % of the ramp, to a voxel
    # The dose is constant in that plane, so no line crosses it.
    assert not any(lines_of(sagittal, line).size for line in ISODOSES.values())


def test_isodose_lines_end_with_the_dose_grid(tmp_path: Path, drawn: list) -> None:
    case, image = ramp(tmp_path, low=20.0)  # the dose starts at 70 % within the image
    view_case(case, "MR", PreprocessSpec(spacing_mm=2.0, tau=0.8), CROP)
    for axis in drawn[0].axes[:2]:
        for line in ISODOSES.values():
            right = lines_of(axis, line)[:, 0] + image.affine[0, 3]
            assert (right >= 20 - 2.5 - 0.01).all()
        # The step from 70 % to nothing is the grid's end, no isodose.
        assert [share for share, line in ISODOSES.items() if lines_of(axis, line).size] == [
            0.80,
            0.95,
        ]


def test_whole_slices_are_shown_at_one_scale(tmp_path: Path, drawn: list) -> None:
    case, _ = ramp(tmp_path)
    view_case(case, "MR", PreprocessSpec(spacing_mm=2.0, tau=0.6), CROP)
    extent = np.array([60 * 2.0, 50 * 2.0, 20 * 4.0])
    scales = []
    for axis, (across, up) in zip(drawn[0].axes, ((0, 1), (0, 2), (1, 2)), strict=True):
        left, right = axis.get_xlim()
        bottom, top = axis.get_ylim()
        assert (left - right, top - bottom) == pytest.approx((extent[across], extent[up]))
        place = axis.get_window_extent()
        scales += [place.width / extent[across], place.height / extent[up]]
    assert scales == pytest.approx([scales[0]] * 6, rel=1e-3)


def test_planes_pass_through_the_label_and_the_box_stands_in_mm(
    view: CaseView, case: Case, drawn: list
) -> None:
    view_case(case, "CT", SPEC, CROP)
    assert view.facts.dose is not None
    for axis in drawn[0].axes:
        assert lines_of(axis, LABEL).size
        (box,) = axis.patches
        sides = (box.get_width(), box.get_height())
        assert all(any(math.isclose(s, mm) for mm in view.facts.dose.box_mm) for s in sides)


@pytest.mark.parametrize(("lowest", "window"), [(-1000.0, (-250, 700)), (0.0, None)])
def test_ct_has_a_fixed_window_if_it_is_in_hu(
    case: Case, tmp_path: Path, drawn: list, lowest: float, window: tuple[int, int] | None
) -> None:
    volume = read_volume(case.image)
    volume.array[0, 0, 0] = lowest
    volume.array[:] = np.maximum(volume.array, lowest)
    path = tmp_path / "image.nii.gz"
    write_volume(path, volume, np.float32)
    facts = view_case(dataclasses.replace(case, image=path), "CT", SPEC, CROP).facts
    shown = np.array(drawn[0].axes[0].images[0].get_clim()) * facts.std + facts.mean
    if window:
        assert shown == pytest.approx(window)
    else:
        assert 0 <= shown[0] < shown[1] < 500


@pytest.mark.parametrize("shape", list(itertools.permutations((1, 30, 20))))
def test_volumes_one_voxel_thick_are_drawn(shape: tuple[int, int, int]) -> None:
    volume = Volume(np.random.default_rng(0).random(shape, np.float32) + 1, np.eye(4))
    scan = preprocess(volume, volume, "MR", PreprocessSpec(tau=0.1), name="thin")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = draw_case(scan, volume, np.ones(shape, np.uint8), in_hu=False)
    assert Image.open(BytesIO(picture)).format == "JPEG"


def test_public_scans_are_viewed(data_pack: Path) -> None:
    patient = data_pack / "openkbp" / "train" / "pt_1"
    mandible = Case(
        id="pt_1_mandible",
        patient="pt_1",
        task="mandible",
        image=patient / "ct.nii.gz",
        dose=patient / "dose.nii.gz",
        label=patient / "oar.nii.gz",
        label_value=7,
    )
    view = view_case(mandible, "CT", PreprocessSpec(spacing_mm=3.0, tau=0.5), 96)
    assert view.warnings == () and view.status == "complete"
    assert view.facts.dose is not None and 71 <= view.facts.dose.dmax <= 80
    assert view.facts.label is not None and 0.1 < view.facts.label.outside_roi < 0.8
    assert len(view.picture) < 75_000
    mr = Case("t1c", "m", "crn", data_pack / "mr" / "t1c.nii.gz")
    view = view_case(mr, "MR", PreprocessSpec(spacing_mm=2.0), 96)
    assert view.status == "incomplete: no dose, no label"
    assert view.facts.shape == (240, 240, 155) and view.facts.intensities[0] == 0
