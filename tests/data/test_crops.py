"""Crops cover the box, centre on it, and blend back without a trace."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.data.crops import blend, crop_origins, extract, insert
from rtsam_jax.errors import ConfigError, VolumeError

BOXES = st.tuples(st.tuples(*[st.integers(-5, 20)] * 3), st.tuples(*[st.integers(0, 30)] * 3)).map(
    lambda pair: np.array([pair[0], np.add(*pair)])
)


@settings(deadline=None, max_examples=80)
@given(box=BOXES, size=st.integers(1, 16), overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]))
def test_crops_cover_the_box_and_overlap_enough(box, size: int, overlap: float) -> None:
    origins = crop_origins(box, size, overlap)
    low, high = box
    for axis in range(3):
        starts = np.unique(origins[:, axis])
        extent = high[axis] - low[axis] + 1
        if extent <= size:
            assert len(starts) == 1
            before, after = low[axis] - starts[0], starts[0] + size - 1 - high[axis]
            assert before >= 0 and after >= 0 and before - after in (0, 1)
        else:
            assert starts[0] == low[axis] and starts[-1] + size - 1 == high[axis]
            gaps = np.diff(starts)
            assert gaps.max() - gaps.min() <= 1
            assert (size - gaps >= min(overlap * size, size - 1)).all()
    assert len(np.unique(origins, axis=0)) == len(origins)


def test_origins_by_hand() -> None:
    box = np.array([[10, 10, 10], [13, 14, 25]])
    assert crop_origins(box, 8).tolist() == [[8, 8, 10], [8, 8, 14], [8, 8, 18]]
    assert crop_origins(np.array([[0, 0, 0], [1, 1, 1]]), 6).tolist() == [[-2, -2, -2]]


@settings(deadline=None, max_examples=30)
@given(
    origin=st.tuples(*[st.integers(-9, 15)] * 3), size=st.integers(1, 12), seed=st.integers(0, 9)
)
def test_a_crop_alone_is_its_own_average_bit_for_bit(origin, size: int, seed: int) -> None:
    crop = np.random.default_rng(seed).random((size,) * 3, np.float32) ** 8
    alone = insert(crop, origin, (14, 9, 11))
    assert alone.dtype == np.float32
    assert alone.tobytes() == blend(crop[None], np.array([origin]), (14, 9, 11)).tobytes()
    seen = extract(alone, origin, size, 0)
    assert ((seen == crop) | (seen == 0)).all()


def test_wrong_arguments() -> None:
    box = np.array([[0, 0, 0], [1, 1, 1]])
    with pytest.raises(ConfigError, match="edge is 0"):
        crop_origins(box, 0)
    with pytest.raises(ConfigError, match="overlap is 1"):
        crop_origins(box, 4, 1.0)
    with pytest.raises(VolumeError, match="empty"):
        crop_origins(box[::-1], 4)


@settings(deadline=None, max_examples=60)
@given(origin=st.tuples(*[st.integers(-9, 12)] * 3), size=st.integers(1, 7))
def test_extract_is_the_padded_volumes_window(origin, size: int) -> None:
    array = np.arange(1, 5 * 6 * 4 + 1, dtype=np.float32).reshape(5, 6, 4)
    crop = extract(array, origin, size, -3.0)
    padded = np.pad(array, 20, constant_values=-3.0)
    window = tuple(slice(o + 20, o + 20 + size) for o in origin)
    assert crop.dtype == np.float32
    np.testing.assert_array_equal(crop, padded[window])


@settings(deadline=None, max_examples=40)
@given(box=BOXES, size=st.integers(2, 12), seed=st.integers(0, 99))
def test_extract_and_blend_give_the_volume_back(box, size: int, seed: int) -> None:
    """Overlapping crops that agree blend to what they agree on, bit by bit; elsewhere 0."""
    shape = (24, 20, 22)
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    origins = crop_origins(box, size)
    crops = np.stack([extract(array, origin, size, 0.0) for origin in origins])
    result = blend(crops, origins, shape)
    reached = np.zeros(shape, bool)
    for origin in origins:
        window = tuple(slice(max(o, 0), max(o + size, 0)) for o in origin)
        reached[window] = True
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, np.where(reached, array, 0))


@settings(deadline=None, max_examples=30)
@given(value=st.floats(0, 1, width=32), box=BOXES)
def test_a_constant_stays_exactly_constant(value: float, box) -> None:
    origins = crop_origins(box, 8)
    result = blend(np.full((len(origins), 8, 8, 8), value, np.float32), origins, (30, 30, 30))
    assert set(np.unique(result)) <= {np.float32(0), np.float32(value)}


def test_weights_are_gaussian_and_favour_the_centre() -> None:
    origins = np.array([[0, 0, 0], [4, 0, 0]])
    crops = np.stack([np.zeros((8, 8, 8)), np.ones((8, 8, 8))])
    line = blend(crops, origins, (12, 8, 8))[:, 4, 4]
    x = np.arange(4, 8)
    first, second = (np.exp(-0.5 * ((x - centre) / (8 / 8)) ** 2) for centre in (3.5, 7.5))
    np.testing.assert_allclose(line[4:8], second / (first + second), rtol=1e-6)
    assert (line[:4] == 0).all() and (line[8:] == 1).all()
