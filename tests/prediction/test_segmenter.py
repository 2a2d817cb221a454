"""A case is encoded once; every prompt then costs the decoder, and compiles nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax import errors
from rtsam_jax.data.crops import extract
from rtsam_jax.data.neighbourhood import decode, encode
from rtsam_jax.data.nifti import Volume, read_volume
from rtsam_jax.data.preprocess import to_native
from rtsam_jax.evaluation.inference import make_crop_predictor, predict_volume
from rtsam_jax.prediction.segmenter import Click, Prediction, Prompts, Segmenter
from rtsam_jax.prediction.trained import load_trained
from rtsam_jax.prompts.dose import box_corners
from tests.prediction.smooth_phantom import turned
from tests.tiny import SHAPE, SPACING

# Inclusive voxels of the model grid, which is the image's: one crop, and several.
ONE = np.array([(10, 11, 12), (24, 25, 26)])
SEVERAL = np.array([(1, 4, 10), (38, 25, 26)])
CENTRE = (40.0, 38.0, 42.0)  # mm
FIRST, SECOND = Click(CENTRE, True), Click((36.0, 48.0, 30.0), False)


@pytest.fixture(scope="module")
def segmenter(run: Path) -> Segmenter:
    return Segmenter.from_checkpoint(run)


@pytest.fixture
def case(segmenter: Segmenter, tiny_dataset: Path) -> Callable[..., Segmenter]:
    def opened(box: np.ndarray | None = None, task: str = "orn") -> Segmenter:
        image, dose = tiny_dataset / "p3_image.nii.gz", tiny_dataset / "p3_dose.nii.gz"
        segmenter.set_case(image, dose, task=task, box=box, name="p3")
        return segmenter

    return opened


def same(a: Prediction, b: Prediction) -> bool:
    return np.array_equal(a.probability, b.probability)


@pytest.mark.parametrize("box", [None, SEVERAL], ids=["one crop", "several"])
def test_without_prompts_it_is_what_an_evaluation_scores(case, run: Path, box) -> None:
    segmenter = case(box)
    opened = segmenter.opened
    assert len(opened.tiles) == (1 if box is None else 2)
    trained = load_trained(run)
    predict = make_crop_predictor(trained.graphdef, trained.params, trained.cfg)
    scan = opened.scan
    if box is not None:  # as if the dose had made that box
        scan = type(scan)(**vars(scan) | {"roi": opened.tiles.roi, "box": box})
    whole = predict_volume(predict, scan, 0, trained.size, name="p3")
    found = segmenter.predict()
    np.testing.assert_allclose(found.probability, whole[opened.tiles.place], atol=1e-5)
    native = to_native(whole, scan.grid, opened.native)
    np.testing.assert_allclose(found.native_probability().array, native, atol=1e-5)
    mask, sure = found.mask(), np.abs(native - 0.5) > 1e-4
    np.testing.assert_array_equal(mask.array[sure], (native >= 0.5)[sure])
    assert 0 < mask.array.sum() < mask.array.size and mask.array.shape == SHAPE
    np.testing.assert_array_equal(mask.affine, opened.native.affine)
    assert found.volume_ml == pytest.approx(mask.array.sum() * SPACING**3 / 1000)


@pytest.mark.parametrize("box", [ONE, SEVERAL], ids=["one crop", "several"])
def test_clicks_one_by_one_or_at_once_and_taken_back(case, box) -> None:
    segmenter = case(box)
    first = segmenter.predict()
    one = segmenter.click(FIRST.at_mm, FIRST.positive)
    two = segmenter.click(SECOND.at_mm, SECOND.positive)
    assert not same(first, one) and not same(one, two)
    assert same(segmenter.undo(), one) and same(segmenter.undo(), first)
    with pytest.raises(errors.ConfigError, match="no click to undo"):
        segmenter.undo()
    assert same(segmenter.predict(Prompts(clicks=(FIRST, SECOND))), two)
    assert same(segmenter.undo(), one)
    assert same(segmenter.predict(), first)


def test_a_click_goes_to_the_crops_that_hold_it(case) -> None:
    segmenter = case(SEVERAL)
    grid, origins = segmenter.opened.scan.grid, segmenter.opened.origins
    edge = grid.to_world(segmenter.opened.tiles.low + origins[0] + 2)  # in the first crop alone
    turn = segmenter.click(tuple(edge.tolist()), True).turn
    assert (turn.labels >= 0).sum(1).tolist() == [1, 0]
    np.testing.assert_array_equal(turn.points[0, 0], [2, 2, 2])
    np.testing.assert_array_equal(turn.low_res[1], segmenter.opened.first.low_res[1])


def test_clicks_that_outgrow_the_buffer_count_as_in_a_longer_one(
    case, run: Path, tiny_dataset: Path
) -> None:
    clicks = tuple(Click((40.0 + 2 * i, 38.0, 42.0 - 2 * i), i % 2 == 0) for i in range(5))
    long = case(ONE).predict(Prompts(clicks))
    segmenter = Segmenter.from_checkpoint(run)
    segmenter.model = segmenter.trained.click_model(clicks=2)
    segmenter.set_case(tiny_dataset / "p3_image.nii.gz", task="orn", box=ONE)
    short = segmenter.predict(Prompts(clicks))
    assert short.turn.labels.shape == (1, 8) and long.turn.labels.shape == (1, 16)
    np.testing.assert_allclose(short.probability, long.probability, atol=1e-5)
    segmenter.model.accumulate = False  # trained to be given the newest click alone
    newest = segmenter.predict(Prompts(clicks))
    assert newest.turn.labels.shape == (1, 2) and (newest.turn.labels >= 0).sum() == 1
    assert not same(newest, short)


def compiled(caplog: pytest.LogCaptureFixture, do: Callable[[], object]) -> list[str]:
    """The programs that are compiled meanwhile, also those that the disk holds."""
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.DEBUG):
        do()
    return [
        record.getMessage().split()[1]
        for record in caplog.records
        if record.getMessage().startswith("Compiling ")
    ]


def test_nothing_is_compiled_after_the_first_case(
    text_run: Path, tiny_dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However many clicks, crops and sentences; a 17th click compiles the decoder once more."""
    segmenter = Segmenter.from_checkpoint(text_run)

    def open_case(patient: str, **more: object) -> None:
        image, dose = (tiny_dataset / f"{patient}_{what}.nii.gz" for what in ("image", "dose"))
        segmenter.set_case(image, dose, task="orn", **more)
        segmenter.predict()

    def clicks(count: int) -> None:
        for at in range(count):
            segmenter.click((30.0 + 2 * (at % 9), 40.0, 44.0 - 2 * (at % 7)), at % 3 != 0)

    programs = compiled(caplog, lambda: open_case("p3"))
    assert {"jit(encode)", "jit(decode)"} <= set(programs)
    assert len(segmenter.opened.tiles) == 1
    mask = segmenter.predict().mask()
    said = {"age": 61, "sex": "female", "side": "left", "fractions": 30}
    segmenter.trained.text("orn", said)  # a new text runs the language model
    assert compiled(caplog, lambda: clicks(10)) == []
    assert compiled(caplog, lambda: open_case("p4", record=said, box=SEVERAL)) == []
    assert len(segmenter.opened.tiles) == 2
    assert compiled(caplog, lambda: (clicks(10), segmenter.undo(), clicks(7))) == []
    assert compiled(caplog, lambda: segmenter.predict(Prompts(mask=mask))) == []
    segmenter.predict(Prompts((FIRST,) * 16))
    assert compiled(caplog, lambda: clicks(1)) == ["jit(decode)"]
    assert compiled(caplog, lambda: clicks(9)) == []


def test_only_a_case_is_encoded_and_only_once(
    case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compilations do not show it: encoding again compiles nothing."""
    segmenter = case(SEVERAL, task="ce")
    encoded, compiled_one = [], segmenter.model._encode

    def counted(params: object, image: np.ndarray, roi: np.ndarray) -> object:
        encoded.append(image.shape)
        return compiled_one(params, image, roi)

    monkeypatch.setattr(segmenter.model, "_encode", counted)
    segmenter.predict()
    mask = segmenter.predict(Prompts((FIRST,))).mask()
    segmenter.click(SECOND.at_mm, SECOND.positive)
    segmenter.undo()
    segmenter.save(tmp_path / "session.json")
    segmenter.predict(Prompts((SECOND,), mask))
    segmenter.set_task("crn")
    segmenter.predict()
    assert encoded == []
    assert len(case(SEVERAL).opened.tiles) == len(encoded) == 2
    segmenter.load(tmp_path / "session.json")
    assert len(encoded) == 4


@pytest.fixture
def trained_with(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Segmenter]:
    """The same weights as of a model that was trained with a box from elsewhere."""

    def changed(source: str) -> Segmenter:
        monkeypatch.setattr(segmenter.trained.cfg.dose, "source", source)
        monkeypatch.setattr(segmenter.model, "told_box", source != "none")
        return segmenter

    return changed


def test_a_model_trained_on_boxes_of_labels_is_given_one(trained_with, tiny_dataset: Path) -> None:
    segmenter = trained_with("label")
    image, dose = tiny_dataset / "p3_image.nii.gz", tiny_dataset / "p3_dose.nii.gz"
    with pytest.raises(errors.IncompleteCase, match="Case p3 has no box, and the model was train"):
        segmenter.set_case(image, dose, task="orn", name="p3")
    label = read_volume(tiny_dataset / "p3_orn_label.nii.gz").array.astype(np.uint8)
    opened = segmenter.set_case(image, dose, task="orn", box=box_corners(label))
    told = segmenter.predict()
    assert segmenter.warnings == () and opened.scan.roi is None
    size = opened.tiles.size
    record = encode(opened.scan, [label], size=size, reach=0, dtype="float32")
    trained_on = decode(record, 0, 0, "label")
    (origin,) = trained_on.origins
    np.testing.assert_array_equal(opened.rois[0], extract(trained_on.roi, origin, size, 0))
    np.testing.assert_array_equal(
        opened.images[0], extract(trained_on.image, origin, size, trained_on.background)
    )
    segmenter.set_case(image, task="orn", box=box_corners(label))
    assert same(segmenter.predict(), told)


def test_a_model_trained_without_doses_heeds_none(trained_with, tiny_dataset: Path) -> None:
    segmenter = trained_with("none")
    image, dose = tiny_dataset / "p3_image.nii.gz", tiny_dataset / "p3_dose.nii.gz"
    opened = segmenter.set_case(image, task="orn")
    without = segmenter.predict()
    assert segmenter.warnings == () and len(opened.tiles) == 8 and opened.tiles.roi.all()
    segmenter.set_case(image, dose, task="orn")
    (said,) = segmenter.warnings
    assert said.startswith("the model was trained without doses, so the dose makes no region")
    assert same(segmenter.predict(), without)


@pytest.mark.parametrize(
    ("threshold", "scale", "error"),
    [
        ("dmax", 0, errors.ZeroDose),
        ("absolute", 1e-6, errors.EmptyROI),
        ("absolute", 100, errors.DoseUnit),
        ("prescription", 1, errors.IncompleteCase),
    ],
)
def test_beside_a_box_a_dose_without_a_threshold_stops_nothing(
    case, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch, threshold, scale, error
) -> None:
    segmenter = case(ONE)
    alone = segmenter.predict()
    monkeypatch.setattr(segmenter.trained.cfg.dose, "threshold", threshold)
    monkeypatch.setattr(segmenter.trained.cfg.dose, "gy", 30.0)
    image, dose = (read_volume(tiny_dataset / f"p3_{what}.nii.gz") for what in ("image", "dose"))
    dose = Volume(scale * dose.array, dose.affine)
    with pytest.raises(error):
        segmenter.set_case(image, dose, task="orn")
    opened = segmenter.set_case(image, dose, task="orn", box=ONE)
    assert opened.scan.threshold_gy is None and opened.scan.dmax == dose.array.max()
    assert same(segmenter.predict(), alone)


@pytest.mark.parametrize("axes", ["LPS", "SAL"])
def test_a_volume_in_memory_is_turned_as_a_file_is(case, tiny_dataset: Path, axes: str) -> None:
    segmenter = case()
    expected = segmenter.click(CENTRE)
    image, dose = (
        Volume(*turned(read_volume(tiny_dataset / f"p3_{what}.nii.gz").array, code))
        for what, code in (("image", axes), ("dose", axes[::-1]))
    )
    segmenter.set_case(image, dose, task="orn")
    found = segmenter.click(CENTRE)
    assert same(found, expected) and 0 < expected.mask().array.sum()
    np.testing.assert_array_equal(found.mask().array, expected.mask().array)
    np.testing.assert_allclose(found.mask().affine, expected.mask().affine)
    np.testing.assert_array_equal(segmenter.opened.images, case().opened.images)


def test_another_task_on_the_open_case_is_that_task_opened(case) -> None:
    segmenter = case(ONE, task="ce")
    ce = segmenter.predict()
    crn = case(ONE, task="crn").predict()
    assert not same(ce, crn)
    segmenter = case(ONE, task="ce")
    segmenter.click(CENTRE)
    crops = segmenter.opened.crops.embedding
    assert segmenter.set_task("crn").task.name == "crn"
    assert same(segmenter.predict(), crn) and segmenter.opened.crops.embedding is crops
    with pytest.raises(errors.ConfigError, match="orn is on CT, but p3 was opened for crn on MR"):
        segmenter.set_task("orn")


def test_a_task_that_cannot_be_set_leaves_the_open_one(
    case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = case(ONE, task="ce")

    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(segmenter.model, "first", fail)
        with pytest.raises(MemoryError):
            segmenter.set_task("crn")
    assert segmenter.opened.task.name == "ce"
    segmenter.save(tmp_path / "session.json")
    assert json.loads((tmp_path / "session.json").read_text())["case"]["task"] == "ce"


def test_an_initial_mask_is_the_logits_of_a_pass_before(case) -> None:
    """Share of foreground by block of the prompt's grid, from -8 to 8, in every crop."""
    segmenter = case(SEVERAL)
    opened, side = segmenter.opened, segmenter.model.spec.mask_size
    mask = np.zeros(SHAPE, bool)
    mask[8:29, 9:24, 12:20] = True
    prompt = opened.mask_prompt(Volume(mask, opened.native.affine), side)
    assert prompt.shape == (2, side, side, side, 1) and prompt.dtype == np.float32
    for row, origin in enumerate(opened.origins + opened.tiles.low):
        for at in np.ndindex(3, 3, 3):
            block = np.array(at) * 5
            low = origin + 2 * block
            voxels = [low + np.array(offset) for offset in np.ndindex(2, 2, 2)]
            inside = [mask[tuple(v)] for v in voxels if ((v >= 0) & (v < SHAPE)).all()]
            assert prompt[(row, *block, 0)] == pytest.approx(16 * sum(inside) / 8 - 8)
    refined = segmenter.predict(Prompts(mask=Volume(mask, opened.native.affine)))
    assert not same(refined, segmenter.predict())
    marked = Volume(np.zeros(SHAPE, bool), opened.native.affine)
    with pytest.raises(errors.PromptOutside, match="initial mask of p3 marks no voxel"):
        segmenter.predict(Prompts(mask=marked))


@settings(max_examples=10, deadline=None)
@given(flips=st.tuples(*[st.booleans()] * 3), order=st.permutations(range(3)))
def test_an_initial_mask_may_lie_on_any_grid(segmenter, tiny_dataset, flips, order) -> None:
    image = read_volume(tiny_dataset / "p3_image.nii.gz")
    if segmenter._state is None:
        segmenter.set_case(image, task="orn", box=ONE)
    mask = np.zeros(SHAPE, bool)
    mask[10:22, 13:19, 15:30] = True
    expected = segmenter.opened.mask_prompt(Volume(mask, image.affine), 16)
    turned, affine = mask, image.affine
    for axis, flip in enumerate(flips):
        if flip:
            turned, step = np.flip(turned, axis), np.eye(4)
            step[axis, axis], step[axis, 3] = -1, SHAPE[axis] - 1
            affine = affine @ step
    permutation = np.eye(4)[:, [*order, 3]]
    other = Volume(turned.transpose(order), affine @ permutation)
    np.testing.assert_allclose(segmenter.opened.mask_prompt(other, 16), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("at", "named"),
    [
        ((-3.0, 40.0, 40.0), r"\(-3, 40, 40\) mm on p3 is outside the image"),
        ((float("nan"), 40.0, 40.0), "outside the image"),
        ((40.0, 79.5, 40.0), "outside the image"),
        ((1.0, 1.0, 1.0), "outside the region that the model is shown"),
    ],
)
def test_a_click_that_the_model_cannot_see_changes_nothing(case, at, named) -> None:
    segmenter = case(np.array([(20, 20, 20), (30, 30, 30)]))
    before = segmenter.click((50.0, 50.0, 50.0))
    with pytest.raises(errors.PromptOutside, match=named):
        segmenter.click(at)
    with pytest.raises(errors.PromptOutside, match=named):
        segmenter.predict(Prompts(clicks=(FIRST, Click(at, False))))
    for point in ((50.0, 50.0), "here", 5.0, None):
        with pytest.raises(errors.ConfigError, match="is not a point; give x, y and z in world mm"):
            segmenter.click(point)
    assert same(segmenter._open.prediction, before)


def test_a_case_that_cannot_be_opened_leaves_the_open_one(case, tiny_dataset: Path) -> None:
    before = case(ONE).predict()
    segmenter, image = case(ONE), tiny_dataset / "p3_image.nii.gz"
    for more, error, named in (
        ({"task": "orn"}, errors.IncompleteCase, "Case case has neither a dose nor a box"),
        ({"task": "lung", "box": ONE}, errors.ConfigError, "'lung'; name one of orn, ce, crn"),
        ({"task": "orn", "box": ONE + 20}, errors.PromptOutside, "box of case reaches from"),
        (
            {"task": "orn", "box": ONE, "record": {"tumor_side": "left"}},
            errors.RecordError,
            "case 'case': record field 'tumor_side' is unknown",
        ),
        (
            {"task": "orn", "dose": tiny_dataset / "none.nii.gz"},
            errors.MissingFile,
            "none.nii.gz",
        ),
    ):
        with pytest.raises(error, match=named):
            segmenter.set_case(image, **more)
    with pytest.raises(errors.ConfigError, match="image is of type ndarray; give a path, or a V"):
        segmenter.set_case(np.zeros((4, 4, 4)), task="orn", box=ONE)
    with pytest.raises(errors.ConfigError, match="initial mask is of type ndarray"):
        segmenter.predict(Prompts(mask=np.zeros((4, 4, 4))))
    assert same(segmenter.predict(), before)


def test_a_malformed_box_record_or_volume_is_told_so(segmenter, tiny_dataset: Path) -> None:
    image = tiny_dataset / "p3_image.nii.gz"
    for box in (
        [1, 2, 3],
        [[1, 2], [3, 4]],
        "abc",
        [[0, 0, 0], [1e30, 1, 1]],
        [[1.9, 0, 0], [3, 4, 5]],
        [[0, 0, 0], [float("nan"), 4, 5]],
        [[0, 0, 0], [10**400, 4, 5]],
    ):
        with pytest.raises(errors.ConfigError, match="box of case 'case' is not two corners"):
            segmenter.set_case(image, task="orn", box=box)
    for record in ({"age": None}, {"age": [61]}, [61], {7: 1}):
        with pytest.raises(errors.RecordError, match="record"):
            segmenter.set_case(image, task="orn", box=ONE, record=record)
    array, flat = np.ones((4, 4, 4)), np.diag([1.0, 1.0, 0.0, 1.0])
    for volume, named in (
        (Volume(array, flat), "in memory has a singular"),
        (Volume(array, np.eye(3)), r"an affine \(3, 3\)"),
        (Volume(array, "here"), "none of numbers"),
        (Volume(array[0], np.eye(4)), r"array of float64 \(4, 4\)"),
        (Volume(array * 1j, np.eye(4)), "array of complex128"),
        (Volume(array[:0], np.eye(4)), "no voxels"),
        (Volume(array * np.nan, np.eye(4)), "in memory has 64 NaN"),
    ):
        for files in ((volume,), (image, volume)):
            with pytest.raises(errors.VolumeError, match=named):
                segmenter.set_case(*files, task="orn", box=ONE)


def test_wrong_calls_are_told(case) -> None:
    segmenter, point = case(ONE), (50.0, 50.0, 50.0)
    for sign in (-1, 0, "-", "no", None):
        with pytest.raises(errors.ConfigError, match="give True for a point inside, False for"):
            segmenter.click(point, positive=sign)
    with pytest.raises(errors.ConfigError, match="prompts are of type tuple; give Prompts"):
        segmenter.predict((Click(point, True),))
    for clicks in ((point,), Click(point, True), "here"):
        with pytest.raises(errors.ConfigError, match=r"give a tuple of Click\(at_mm, positive\)"):
            Prompts(clicks=clicks)
    assert Prompts(clicks=[Click(point, np.True_)]).clicks == (Click(point, True),)
    for wrong in (-1, 1.5, "2", None, True, np.int64(-1)):
        for name in ("repeats", "seed"):
            with pytest.raises(errors.ConfigError, match=f"^{name} is .*, but it must be a whole"):
                segmenter.confidence(**{"repeats": 0, name: wrong})
    assert segmenter.confidence(repeats=np.int64(0), seed=np.int64(1)).agreement is None


def test_no_case_is_open(run: Path) -> None:
    segmenter = Segmenter(load_trained(run))
    for ask in (segmenter.predict, segmenter.undo, lambda: segmenter.click(CENTRE)):
        with pytest.raises(errors.ConfigError, match="no case is open; call set_case first"):
            ask()
