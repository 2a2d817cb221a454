"""Batches: a function of seed and index; image, ROI and label move together."""

from __future__ import annotations

import itertools
from pathlib import Path

import grain
import numpy as np
import pytest

from rtsam_jax.data import pipeline
from rtsam_jax.data.cases import load_dataset
from rtsam_jax.data.nifti import read_label
from rtsam_jax.data.pipeline import (
    Neighbourhood,
    PromptIds,
    batches_from,
    crop,
    load_neighbourhoods,
    training_batches,
)
from rtsam_jax.data.preprocess import PreprocessSpec, label_to_grid
from tests.tiny import SPACING, TASKS, TRAIN

grain.config.update("py_debug_mode", False)
SIZE, JITTER = 32, 3
SPEC = PreprocessSpec(SPACING, 0.5)
MODALITY = {"orn": "CT", "ce": "MR", "crn": "MR"}


@pytest.fixture(scope="module")
def loaded(tiny_dataset: Path) -> list[Neighbourhood]:
    cases = [case for case in load_dataset(tiny_dataset).cases if case.split == "train"]
    assert [case.id for case in cases] == TRAIN
    return load_neighbourhoods(cases, MODALITY, TASKS, SPEC, size=SIZE, jitter=JITTER)


def coordinates(case_id: int, shape=(14, 15, 16), size: int = 8) -> Neighbourhood:
    """Each voxel's value says where it lies, in image, ROI and label alike."""
    index = np.arange(1, np.prod(shape) + 1).reshape(shape)
    byte = (index % 251).astype(np.uint8)
    origin = np.array([[3, 3, 4]])
    return Neighbourhood(index.astype(np.float32), byte, byte, origin, -5.0, case_id % 2)


def told(*ids: int, mirrored: tuple[int, ...] | None = None) -> PromptIds:
    return PromptIds(np.array(ids), None if mirrored is None else np.array(mirrored))


def batches_of(cases, batch: int = 2, seed: int = 0, jitter: int = 2, size: int = 8):
    prompts = [told(case.task_id, case.task_id, mirrored=(7, 7)) for case in cases]
    return training_batches(cases, prompts, size=size, jitter=jitter, batch_size=batch, seed=seed)


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


FIVE = [coordinates(i) for i in range(5)]


@pytest.mark.parametrize("start", [0, 1, 3, 11])
def test_iterating_from_anywhere_equals_random_access(start: int) -> None:
    dataset = batches_of(FIVE)
    again = batches_of(FIVE)
    found = list(batches_from(dataset, start, start + 4))
    assert len(found) == 4
    for i, batch in enumerate(found, start):
        assert same(batch, again[i])
    assert same(again[start], dataset[start])  # whatever was read in between


def test_nothing_left_to_take() -> None:
    assert list(batches_from(batches_of(FIVE), 7, 7)) == []


def test_seed_and_index_change_the_batch() -> None:
    a, b = batches_of(FIVE, seed=0), batches_of(FIVE, seed=1)
    assert not all(same(a[i], b[i]) for i in range(5))
    assert not same(a[0], a[5])  # five batches of two are two epochs


@pytest.mark.parametrize(("count", "batch"), [(5, 2), (4, 4), (3, 5), (1, 2)])
def test_every_epoch_takes_each_case_once(count: int, batch: int) -> None:
    dataset = batches_of(FIVE[:count], batch)
    epochs = 6
    ids = [dataset[i].case_id.tolist() for i in range(-(-epochs * count // batch))]
    flat = list(itertools.chain(*ids))
    orders = [tuple(flat[e * count : (e + 1) * count]) for e in range(epochs)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    if count > 2:
        assert len(set(orders)) > 1  # a new order


def test_a_batch_holds_what_it_says() -> None:
    batch = batches_of(FIVE, 3)[0]
    assert batch.image.shape == (3, 8, 8, 8, 1) and batch.image.dtype == np.float32
    for part in (batch.label, batch.roi):
        assert part.shape == (3, 8, 8, 8) and part.dtype == np.uint8
    assert batch.case_id.dtype == batch.text_id.dtype == np.int32
    np.testing.assert_array_equal(batch.text_id, batch.case_id % 2)


def test_image_roi_and_label_move_together_and_within_the_jitter() -> None:
    dataset, shifts = batches_of([FIVE[0]], 8), []
    for i in range(20):
        batch = dataset[i]
        np.testing.assert_array_equal(batch.label, batch.roi)
        np.testing.assert_array_equal(batch.image[..., 0].astype(int) % 251, batch.label)
        first = batch.image[:, 0, 0, 0, 0].astype(int) - 1
        shifts.append(np.stack(np.unravel_index(first, (14, 15, 16)), -1) - FIVE[0].origins[0])
    found = np.concatenate(shifts)
    assert found.min(0).tolist() == [-2] * 3 and found.max(0).tolist() == [2] * 3


def test_no_jitter_is_the_crop_of_prediction() -> None:
    batch = batches_of([FIVE[0]], 1, jitter=0)[0]
    assert same([x[0] for x in batch], crop(FIVE[0], 0, 0, FIVE[0].origins[0], 8))


def test_beyond_the_volume_lies_background() -> None:
    sample = crop(FIVE[0], 0, 0, np.array([-2, 3, 12]), 8)
    assert (sample.image[:2] == -5).all() and (sample.image[..., 4:, 0] == -5).all()
    assert (sample.label[:2] == 0).all() and (sample.roi[..., 4:] == 0).all()
    assert (sample.image[2:, :, :4] > 0).all()


def test_a_box_larger_than_the_crop_is_visited_everywhere() -> None:
    origins = np.array([[0, 0, 0], [6, 0, 0], [0, 7, 0], [6, 7, 8]])
    case = Neighbourhood(FIVE[0].image, FIVE[0].roi, FIVE[0].label, origins, 0.0, 0)
    dataset = batches_of([case], 4, jitter=0)
    firsts = {int(x) - 1 for i in range(20) for x in dataset[i].image[:, 0, 0, 0, 0]}
    assert firsts == {int(np.ravel_multi_index(tuple(o), (14, 15, 16))) for o in origins}


def test_a_neighbourhood_is_a_part_of_the_model_grid(
    loaded: list[Neighbourhood], tiny_dataset: Path
) -> None:
    """A crop equals the same crop of the whole volumes, jitter included."""
    cases = [case for case in load_dataset(tiny_dataset).cases if case.split == "train"]
    for number, (case, near) in enumerate(zip(cases, loaded, strict=True)):
        scan = pipeline.preprocess_case(case, MODALITY[case.task], SPEC)
        label = label_to_grid(read_label(case.label), scan.grid)
        origin = pipeline.crop_origins(scan.box, SIZE)[0]
        assert TASKS[near.task_id] == case.task
        for shift in itertools.product((-JITTER, JITTER), repeat=3):
            found = crop(near, number, 0, near.origins[0] + shift, SIZE)
            for part, whole, fill in (
                (found.image[..., 0], scan.image, scan.background),
                (found.roi, scan.roi, 0),
                (found.label, label, 0),
            ):
                expected = pipeline.extract(whole, origin + shift, SIZE, fill)
                np.testing.assert_array_equal(part, expected)
        assert near.roi.any() and near.label.any()


def test_a_scan_of_two_tasks_is_read_once(
    tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = pipeline.preprocess_case

    def counted(case, *rest):
        read.append(case.id)
        return real(case, *rest)

    monkeypatch.setattr(pipeline, "preprocess_case", counted)
    cases = [case for case in load_dataset(tiny_dataset).cases if case.split == "train"]
    found = load_neighbourhoods(cases, MODALITY, TASKS, SPEC, size=SIZE, jitter=JITTER)
    assert read == ["p0_orn", "p1_ce", "p2_orn"]
    ce, crn = found[1], found[2]
    assert ce.image is crn.image and ce.roi is crn.roi
    assert not np.array_equal(ce.label, crn.label)


def test_flips_and_intensities_are_drawn_and_move_image_label_and_roi_together() -> None:
    plain = batches_of(FIVE, jitter=0)
    flipped = training_batches(
        FIVE,
        [told(0, 0, mirrored=(1, 1))] * 5,
        size=8,
        jitter=0,
        batch_size=2,
        seed=0,
        flip_axes=(0, 2),
        intensity_jitter=0.2,
    )
    seen = set()
    for i in range(12):
        a, b = plain[i], flipped[i]
        assert same(a.case_id, b.case_id)
        for k in range(2):
            ways = {
                axes: np.flip(a.label[k], axes)
                for axes in [(), (0,), (2,), (0, 2)]
                if np.array_equal(np.flip(a.label[k], axes), b.label[k])
            }
            assert len(ways) == 1  # one of the four, and never along axis 1
            axes = next(iter(ways))
            seen.add(axes)
            assert b.text_id[k] == (0 in axes)  # left-right takes the mirrored prompt
            assert np.array_equal(np.flip(a.roi[k], axes), b.roi[k])
            expected = np.flip(a.image[k], axes).ravel()
            scale, shift = np.polyfit(expected, b.image[k].ravel(), 1)
            assert np.allclose(scale * expected + shift, b.image[k].ravel(), atol=1e-3)
            assert abs(scale - 1) <= 0.2 and abs(shift) <= 0.2 + 1e-3
    assert seen == {(), (0,), (2,), (0, 2)}


def test_a_side_that_cannot_be_swapped_is_never_flipped() -> None:
    prompts = [told(0, 0)] * 5
    dataset = training_batches(
        FIVE, prompts, size=8, jitter=0, batch_size=2, seed=0, flip_axes=(0, 1)
    )
    plain, seen = batches_of(FIVE, jitter=0), set()
    for i in range(12):
        for k in range(2):
            one, other = plain[i].label[k], dataset[i].label[k]
            assert np.array_equal(one, other) or np.array_equal(np.flip(one, 1), other)
            seen.add(np.array_equal(one, other))
    assert seen == {True, False}


def test_wordings_are_drawn_evenly_and_the_record_is_dropped_at_its_rate() -> None:
    def drawn(dropout: float) -> np.ndarray:
        dataset = training_batches(
            FIVE,
            [told(9, 0, 1, 2)] * 5,
            size=8,
            jitter=0,
            batch_size=10,
            seed=3,
            record_dropout=dropout,
        )
        return np.concatenate([dataset[i].text_id for i in range(60)])

    never, some, always = drawn(0.0), drawn(0.3), drawn(1.0)
    assert set(always) == {9} and set(never) == {0, 1, 2}
    share = np.bincount(never) / len(never)
    assert abs(share - 1 / 3).max() < 0.08
    assert abs((some == 9).mean() - 0.3) < 0.08
    assert np.array_equal(some[some != 9], never[some != 9])  # dropout changes nothing else
