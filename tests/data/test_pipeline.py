"""Batches: a function of seed and index; image, ROI and label move together."""

from __future__ import annotations

import itertools

import grain
import numpy as np
import pytest

from rtsam_jax.data.neighbourhood import Neighbourhood
from rtsam_jax.data.pipeline import (
    Plan,
    PromptIds,
    Share,
    batches_from,
    case_order,
    read_rows,
    training_batches,
)
from rtsam_jax.data.sample import Sample
from rtsam_jax.errors import ConfigError

grain.config.update("py_debug_mode", False)


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


@pytest.mark.parametrize("batch", [1, 3])
def test_a_run_of_any_length_has_batches(batch: int) -> None:
    far = 10**9
    (found,) = batches_from(batches_of(FIVE, batch), far, far + 1)
    assert found.image.shape[0] == batch


def test_nothing_left_to_take() -> None:
    assert list(batches_from(batches_of(FIVE), 7, 7)) == []


def test_seed_and_index_change_the_batch() -> None:
    a, b = batches_of(FIVE, seed=0), batches_of(FIVE, seed=1)
    assert not all(same(a[i], b[i]) for i in range(5))
    assert not same(a[0], a[5])  # five batches of two are two epochs


@pytest.mark.parametrize(("count", "batch"), [(5, 2), (4, 4), (3, 5), (1, 2), (3, 1)])
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
    assert same(batch, read_rows(FIVE, [Plan(0, 0.0, np.zeros(3, int), (0, 7))], 8))


def test_beyond_the_volume_lies_background() -> None:
    shift = np.array([-2, 3, 12]) - FIVE[0].origins[0]
    batch = read_rows(FIVE, [Plan(0, 0.0, shift, (0, -1))], 8)
    sample = Sample(*[part[0] for part in batch])
    assert (sample.image[:2] == -5).all() and (sample.image[..., 4:, 0] == -5).all()
    assert (sample.label[:2] == 0).all() and (sample.roi[..., 4:] == 0).all()
    assert (sample.image[2:, :, :4] > 0).all()


def test_a_box_larger_than_the_crop_is_visited_everywhere() -> None:
    origins = np.array([[0, 0, 0], [6, 0, 0], [0, 7, 0], [6, 7, 8]])
    case = Neighbourhood(FIVE[0].image, FIVE[0].roi, FIVE[0].label, origins, 0.0, 0)
    dataset = batches_of([case], 4, jitter=0)
    firsts = {int(x) - 1 for i in range(20) for x in dataset[i].image[:, 0, 0, 0, 0]}
    assert firsts == {int(np.ravel_multi_index(tuple(o), (14, 15, 16))) for o in origins}


def test_a_margin_surrounds_the_crop() -> None:
    bare = batches_of(FIVE, 3)
    prompts = [told(0, 0)] * 5
    wide = training_batches(FIVE, prompts, size=8, jitter=2, batch_size=3, seed=0, margin=3)
    for i in range(6):
        assert wide[i].image.shape == (3, 14, 14, 14, 1)
        inner = (slice(None), *[slice(3, -3)] * 3)
        for part in ("image", "label", "roi"):
            found, expected = getattr(wide[i], part), getattr(bare[i], part)
            np.testing.assert_array_equal(found[inner], expected)


def test_the_mirrored_text_is_that_of_the_chosen_wording() -> None:
    prompts = [told(0, 1, 2, 3, mirrored=(10, 11, 12, 13)), told(0, 1, 2, 3)]
    dataset = training_batches(
        FIVE[:2], prompts, size=8, jitter=0, batch_size=8, seed=0, record_dropout=0.3
    )
    seen = set()
    for i in range(6):
        batch = dataset[i]
        mirrored = np.where(batch.case_id == 0, batch.text_id + 10, -1)
        np.testing.assert_array_equal(batch.mirrored_text_id, mirrored)
        assert batch.mirrored_text_id.dtype == np.int32
        seen |= set(batch.text_id.tolist())
    assert seen == {0, 1, 2, 3}


def stream(**options: object) -> grain.MapDataset:
    return training_batches(FIVE, [told(0, 0)] * 5, size=8, jitter=2, seed=1, **options)


@pytest.mark.parametrize("rows", [0, 12])
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_processes_share_every_batch_whatever_their_number(count: int, rows: int) -> None:
    whole = stream(batch_size=6, rows=rows)
    parts = [stream(batch_size=6, rows=rows, share=Share(index, count)) for index in range(count)]
    for i in (0, 1, 7):
        read = [part[i] for part in parts]
        for name in Sample._fields:
            joined = np.concatenate([getattr(part, name) for part in read])
            np.testing.assert_array_equal(joined, getattr(whole[i], name))


@pytest.mark.parametrize("rows", [4, 5, 8, 11])
def test_rows_that_fill_a_batch_up_repeat_cases_and_do_not_count(rows: int) -> None:
    bare, filled = stream(batch_size=4), stream(batch_size=4, rows=rows)
    for i in (0, 3):
        assert filled[i].weight.tolist() == [1] * 4 + [0] * (rows - 4)
        for name in ("image", "label", "case_id", "text_id"):
            found, expected = getattr(filled[i], name), getattr(bare[i], name)
            np.testing.assert_array_equal(found, np.resize(expected, (rows, *expected.shape[1:])))


def test_the_last_batch_of_a_run_may_be_uneven() -> None:
    dataset = stream(batch_size=4, rows=6, samples=10)
    counted = [dataset[i].weight.tolist() for i in range(3)]
    assert counted == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
    met = np.concatenate([dataset[i].case_id[dataset[i].weight > 0] for i in range(3)])
    assert sorted(met) == sorted([*range(5)] * 2)  # two whole epochs


@pytest.mark.parametrize("rows", [3, 5])
def test_rows_that_hold_no_batch_in_equal_parts(rows: int) -> None:
    with pytest.raises(ConfigError, match=f"{rows} rows .* config.batch_size 4 in 2 equal parts"):
        stream(batch_size=4, rows=rows, share=Share(0, 2))


def test_balanced_tasks_are_met_equally_often_and_all_cases_of_each() -> None:
    tasks = np.array([0] * 20 + [1] * 3 + [2])
    order = case_order(tasks, seed=0, balanced=True)
    met = np.array([order[i] for i in range(300)])
    assert np.bincount(tasks[met]).tolist() == [100, 100, 100]
    for task, cases in ((0, range(20)), (1, range(20, 23)), (2, [23])):
        times = np.bincount(met[tasks[met] == task], minlength=24)[list(cases)]
        assert times.max() - times.min() <= 1  # in turn within its task
    assert all(len(set(tasks[met[i : i + 6]])) == 3 for i in range(0, 300, 6))  # a batch mixes
    plain = np.array([case_order(tasks, 0, balanced=False)[i] for i in range(24)])
    assert sorted(plain) == list(range(24))


def test_balance_reaches_the_batches() -> None:
    cases = [coordinates(0)] * 7 + [coordinates(1)]
    tasks = [0] * 7 + [1]
    dataset = training_batches(
        cases,
        [told(0, 0)] * 8,
        size=8,
        jitter=0,
        batch_size=4,
        seed=0,
        balanced_tasks=tasks,
    )
    for i in range(5):
        assert (dataset[i].case_id == 7).sum() == 2


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
