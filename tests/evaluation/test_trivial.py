"""Trivial predictors on constructed crops whose best rule is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.errors import EmptyROI, VolumeError
from rtsam_jax.evaluation.trivial import (
    AtlasRule,
    RoiRule,
    ThresholdRule,
    TrainingCrop,
    fit_atlas,
    fit_threshold,
)
from rtsam_jax.metrics.overlap import dice

SIZE = 12


def roi_ball() -> np.ndarray:
    centre = (SIZE - 1) / 2
    return sum((g - centre) ** 2 for g in np.indices((SIZE,) * 3)) <= 25


def bright_crop(seed: int, cut: float, *, above: bool = True, task: str = "orn") -> TrainingCrop:
    """A noise image whose label is what lies beyond `cut` inside the ROI."""
    image = np.random.default_rng(seed).random((SIZE,) * 3).astype(np.float32)
    beyond = image >= np.float32(cut) if above else image <= np.float32(cut)
    return TrainingCrop(task, image, beyond & roi_ball(), roi_ball())


def test_roi_rule_is_the_roi() -> None:
    crop = bright_crop(0, 0.5)
    result = RoiRule().predict(crop.image, crop.roi.astype(np.uint8))
    assert result.dtype == bool and (result == crop.roi).all()


@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize("cut", [0.15, 0.5, 0.97])
def test_threshold_finds_the_cut_and_the_direction(cut: float, above: bool) -> None:
    crops = [bright_crop(seed, cut, above=above) for seed in range(5)]
    rule = fit_threshold(crops)["orn"]
    assert rule.above == above
    assert rule.threshold == pytest.approx(cut, abs=0.01)
    assert rule.train_dice == 1
    for crop in crops:
        assert (rule.predict(crop.image, crop.roi) == crop.label).all()


def test_tasks_have_their_own_thresholds() -> None:
    crops = [bright_crop(s, 0.8, task="orn") for s in range(3)]
    crops += [bright_crop(s, 0.3, above=False, task="ce") for s in range(3)]
    rules = fit_threshold(iter(crops))  # a generator is enough
    assert (rules["orn"].above, rules["ce"].above) == (True, False)
    assert rules["orn"].threshold == pytest.approx(0.8, abs=0.01)
    assert rules["ce"].threshold == pytest.approx(0.3, abs=0.01)


def test_a_threshold_says_nothing_outside_the_roi() -> None:
    rule = ThresholdRule(threshold=0.5, above=True, train_dice=0.0)
    image, roi = np.ones((4, 4, 4), np.float32), np.zeros((4, 4, 4), np.uint8)
    roi[1, 1, 1] = 1
    assert rule.predict(image, roi).sum() == 1


def test_both_directions_include_the_threshold() -> None:
    image, roi = np.array([[[0.0, 1.0, 2.0]]], np.float32), np.ones((1, 1, 3), bool)
    assert ThresholdRule(1.0, True, 0.0).predict(image, roi).tolist() == [[[False, True, True]]]
    assert ThresholdRule(1.0, False, 0.0).predict(image, roi).tolist() == [[[True, True, False]]]


def test_label_outside_the_roi_counts_as_missed() -> None:
    crop = bright_crop(1, 0.5)
    label = crop.label.copy()
    label[0] = True  # the ROI does not reach this plane
    rule = fit_threshold([TrainingCrop("orn", crop.image, label, crop.roi)])["orn"]
    inside = int(crop.label.sum())
    assert rule.train_dice == pytest.approx(2 * inside / (2 * inside + SIZE**2))


def test_cases_weigh_the_same_whatever_their_size() -> None:
    # Two small lesions at >= 0.9 outvote one huge one at >= 0.1, though it has most of the voxels.
    small = [bright_crop(seed, 0.9) for seed in range(2)]
    huge = bright_crop(9, 0.1)
    assert fit_threshold([*small, huge])["orn"].threshold > 0.8


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_no_threshold_on_the_grid_is_better(seed: int, n: int) -> None:
    """The fit by counting equals a search that builds every mask and measures it."""
    rng = np.random.default_rng(seed)
    crops = []
    for _ in range(n):
        image = rng.integers(0, 6, (4, 4, 4)).astype(np.float32)
        label, roi = rng.random((2, 4, 4, 4)) < [[[[0.3]]], [[[0.6]]]]
        roi[0, 0, 0] = True
        crops.append(TrainingCrop("t", image, label, roi))
    rule = fit_threshold(crops)["t"]

    def mean_dice(candidate: ThresholdRule) -> float:
        return float(np.mean([dice(candidate.predict(c.image, c.roi), c.label) for c in crops]))

    values = np.unique(np.concatenate([c.image[c.roi] for c in crops]))
    every = [mean_dice(ThresholdRule(float(v), up, 0.0)) for v in values for up in (True, False)]
    assert mean_dice(rule) == pytest.approx(max(every)) == pytest.approx(rule.train_dice)


def test_an_empty_roi_everywhere_is_an_error_somewhere_is_not() -> None:
    crop = bright_crop(0, 0.5)
    nothing = TrainingCrop("orn", crop.image, crop.label, np.zeros_like(crop.roi))
    with pytest.raises(EmptyROI, match="'orn'"):
        fit_threshold([nothing])
    assert fit_threshold([nothing, crop])["orn"].train_dice == pytest.approx(0.5)


def test_no_crop_no_rule() -> None:
    assert fit_threshold([]) == {} and fit_atlas([]) == {}


def located(start: int, task: str = "left") -> TrainingCrop:
    """A slab of two planes; the image is noise that knows nothing."""
    label = np.zeros((SIZE,) * 3, bool)
    label[start : start + 2] = True
    image = np.random.default_rng(start).normal(size=label.shape).astype(np.float32)
    return TrainingCrop(task, image, label, roi_ball())


def test_atlas_of_equal_labels_is_the_label() -> None:
    rules = fit_atlas(located(*args) for args in [(2, "left"), (2, "left"), (8, "right")])
    for task, start in (("left", 2), ("right", 8)):
        crop = located(start)
        assert rules[task].train_dice == 1
        assert (rules[task].predict(crop.image, crop.roi) == crop.label).all()


def test_atlas_cuts_where_the_mean_dice_is_best() -> None:
    # Slabs at 2, 3, 3, 4: planes 2-5 lie in 1, 3, 3, 1 of 4 labels. Cut at >= 2 or 3 labels (planes
    # 3, 4): Dice 1/2, 1, 1, 1/2. Cut at >= 1 (four planes): 2/3 each. So the two planes win.
    rule = fit_atlas([located(start) for start in (2, 3, 3, 4)])["left"]
    assert rule.train_dice == pytest.approx(0.75)
    assert np.flatnonzero(rule.predict(*([located(3).image] * 2))[:, 0, 0]).tolist() == [3, 4]
    assert rule.mean_map[:, 0, 0].tolist() == pytest.approx(
        [0, 0, 1 / 4, 3 / 4, 3 / 4, 1 / 4] + [0] * 6
    )


def test_atlas_keeps_everything_where_labels_never_meet() -> None:
    # Slabs at 2 and 8: no voxel lies in both, so the union (Dice 2/3) is all there is.
    rule = fit_atlas([located(2), located(8)])["left"]
    assert rule.train_dice == pytest.approx(2 / 3)
    assert rule.predict(located(2).image, roi_ball())[[2, 3, 8, 9]].all()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 7))
def test_no_cut_of_the_atlas_is_better(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    shared = rng.random((4, 4, 4))
    labels = [rng.random((4, 4, 4)) < shared for _ in range(n)]
    crops = [TrainingCrop("t", np.zeros((4, 4, 4), np.float32), m, m) for m in labels]
    rule = fit_atlas(crops)["t"]

    def mean_dice(threshold: float) -> float:
        cut = AtlasRule(rule.mean_map, threshold, 0.0)
        return float(np.mean([dice(cut.predict(c.image, c.roi), c.label) for c in crops]))

    every = [mean_dice((k - 0.5) / n) for k in range(1, n + 1)]
    assert mean_dice(rule.threshold) == pytest.approx(max(every)) == pytest.approx(rule.train_dice)


def test_shapes_must_agree() -> None:
    crop = located(2)
    with pytest.raises(VolumeError, match="'left'"):
        TrainingCrop("left", crop.image, crop.label[:5], crop.roi)
    small = TrainingCrop("left", crop.image[:5], crop.label[:5], crop.roi[:5])
    with pytest.raises(VolumeError, match="one size"):
        fit_atlas([crop, small])
    with pytest.raises(VolumeError, match="same size"):
        fit_atlas([crop])["left"].predict(small.image, small.roi)
