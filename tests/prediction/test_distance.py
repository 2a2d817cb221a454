"""The distance from the training cases: what it is, what it ignores, what it notices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rtsam_jax.errors import UnreadableFile
from rtsam_jax.evaluation.click_model import ClickModel
from rtsam_jax.prediction.distance import (
    FILE,
    LEAST_PATIENTS,
    Reference,
    ledoit_wolf,
    pooled,
    replaced,
    sha256,
)
from tests.models.random_model import random_model
from tests.tiny import tiny_config

SIZE, TASK = 32, "orn"


def features(count: int, channels: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, channels)) * np.linspace(0.7, 2, channels) + 5


def one_each(count: int) -> np.ndarray:
    return np.array([f"p{at}" for at in range(count)])


def fitted(of: np.ndarray, patients: np.ndarray) -> Reference:
    found = Reference.fit(of, patients, np.full(len(of), TASK))
    assert found is not None
    return found


def test_of_many_cases_the_square_is_a_chi_square_of_as_many_degrees_as_channels() -> None:
    known = fitted(features(400, 6), one_each(400))
    squares = [known.distance(feature, TASK) ** 2 for feature in features(500, 6, seed=1)]
    assert np.mean(squares) == pytest.approx(6, rel=0.1)
    assert np.mean(known.distances**2) == pytest.approx(6, rel=0.1)
    new = [known.percentile(known.distance(feature, TASK)) for feature in features(500, 6, seed=2)]
    assert np.mean(new) == pytest.approx(50, abs=5)
    assert known.percentile(known.distance(np.full(6, 50.0), TASK)) == 100
    assert known.percentile(known.distance(known.middle, TASK)) == 0


def test_shrinkage_is_ledoit_and_wolfs() -> None:
    apart = features(20, 30)
    apart -= apart.mean(0)
    covariance = apart.T @ apart / 20
    level = np.trace(covariance) / 30
    error = sum(((np.outer(x, x) - covariance) ** 2).sum() for x in apart) / 20**2
    spread = ((covariance - level * np.eye(30)) ** 2).sum()
    assert ledoit_wolf(apart, covariance) == pytest.approx(error / spread)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), st.floats(0.1, 10), st.floats(-20, 20))
def test_only_the_shape_of_the_cloud_matters(seed: int, scale: float, shift: float) -> None:
    """Turned, scaled or moved, features of fewer cases than channels are as far apart as before."""
    of, patients = features(12, 20, seed), one_each(12)
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((20, 20)))[0]
    new = features(1, 20, seed + 1)[0]
    before, after = fitted(of, patients), fitted(scale * of @ turn + shift, patients)
    np.testing.assert_allclose(after.distances, before.distances, rtol=1e-5)
    assert after.distance(scale * new @ turn + shift, TASK) == pytest.approx(
        before.distance(new, TASK), rel=1e-5
    )


def test_a_training_case_is_measured_against_other_patients() -> None:
    """Two equal scans of one patient far from all others: each would vouch for the other."""
    of = features(20, 4)
    of[:2] = 40.0
    together = one_each(20)
    together[1] = together[0]
    assert fitted(of, together).distances[-1] > 3 * fitted(of, one_each(20)).distances[-1]


def test_tasks_whose_images_differ_leave_no_room_between_them() -> None:
    """Half way between two clouds is near their common mean, and far from either."""
    tasks = np.repeat(["ce", "orn"], 20)
    of = features(40, 4) + 12 * (tasks == "orn")[:, None]
    known = Reference.fit(of, one_each(40), tasks)
    assert known is not None
    between = of.mean(0)
    assert all(known.percentile(known.distance(between, task)) == 100 for task in ("ce", "orn"))
    assert known.percentile(known.distance(of[:20].mean(0), "ce")) == 0
    assert known.percentile(known.distance(of[:20].mean(0), "orn")) == 100
    assert known.distance(between, "crn") == 0  # of a task without a case, from the middle of all


def test_of_two_patients_there_is_no_reference_and_equal_ones_are_near() -> None:
    patients = np.array(["a", "a", "b", "b"])
    assert Reference.fit(features(4, 3), patients, np.full(4, TASK)) is None
    same = fitted(np.ones((LEAST_PATIENTS, 5)), one_each(LEAST_PATIENTS))
    assert same.percentile(same.distance(np.ones(5), TASK)) == 100 and same.distances.max() == 0
    assert same.distance(np.full(5, 2.0), TASK) > 1e3


def test_it_comes_back_from_disk_or_says_why_not(tmp_path: Path) -> None:
    known = fitted(features(9, 5), one_each(9))
    digest = sha256(known.packed())
    with replaced(tmp_path, known.packed()):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    again = Reference.read(tmp_path, digest)
    new = features(1, 5, seed=3)[0]
    assert again.distance(new, TASK) == known.distance(new, TASK)
    np.testing.assert_array_equal(again.distances, known.distances)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-7])
    with pytest.raises(UnreadableFile, match="is not the one that model.json"):
        Reference.read(tmp_path, digest)
    (tmp_path / FILE).unlink()
    with pytest.raises(UnreadableFile, match="is not there that model.json"):
        Reference.read(tmp_path, digest)


def test_at_any_moment_of_replacing_it_the_one_that_is_named_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (fitted(features(9, 5, seed=seed), one_each(9)).packed() for seed in (0, 1))
    with replaced(tmp_path, first):
        pass
    with pytest.raises(KeyboardInterrupt), replaced(tmp_path, second):
        for packed in (first, second):  # before and after model.json was written
            Reference.read(tmp_path, sha256(packed))
        raise KeyboardInterrupt
    for packed in (first, second):
        Reference.read(tmp_path, sha256(packed))
    with replaced(tmp_path, second):
        pass
    Reference.read(tmp_path, sha256(second))
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    with pytest.raises(UnreadableFile, match="not the one"):
        Reference.read(tmp_path, sha256(first))


def test_a_case_is_the_mean_of_the_tokens_that_touch_its_box() -> None:
    embedding = np.random.default_rng(0).standard_normal((3, 4, 4, 4, 2)).astype(np.float32)
    rois = np.zeros((3, SIZE, SIZE, SIZE), np.uint8)
    rois[0, 8:16, 15:17, 31] = 1  # tokens of 8 voxels: 1; 1 and 2; 3
    rois[2, :, :, :] = 1
    expected = (embedding[0, 1, 1:3, 3].mean(0) + embedding[2].mean((0, 1, 2))) / 2
    np.testing.assert_allclose(pooled(embedding, rois, "dose"), expected, rtol=1e-6)
    everywhere = embedding.mean((0, 1, 2, 3))
    np.testing.assert_allclose(
        pooled(embedding, np.zeros_like(rois), "dose"), everywhere, rtol=1e-5
    )
    np.testing.assert_allclose(pooled(embedding, rois, "none"), everywhere, rtol=1e-5)


def test_noise_and_shifted_intensities_are_far_from_the_training_cases() -> None:
    model = ClickModel(*nnx.split(random_model(seed=3, tasks=1)), tiny_config(), clicks=1, batch=1)
    rng = np.random.default_rng(0)
    roi = np.zeros((1, SIZE, SIZE, SIZE), np.uint8)
    roi[0, 6:26, 8:24, 7:25] = 1

    def anatomy() -> np.ndarray:
        smooth = ndimage.gaussian_filter(rng.standard_normal((SIZE,) * 3), 3)
        return (smooth / smooth.std()).astype(np.float32)

    def feature(image: np.ndarray) -> np.ndarray:
        return pooled(model.encode(image[None], roi, 0).embedding, roi, "dose")

    known = fitted(np.stack([feature(anatomy()) for _ in range(24)]), one_each(24))

    def percentile(image: np.ndarray) -> float:
        return known.percentile(known.distance(feature(image), TASK))

    assert np.median([percentile(anatomy()) for _ in range(6)]) < 95
    noise = rng.standard_normal((SIZE,) * 3).astype(np.float32)
    assert percentile(noise) == 100
    assert percentile(anatomy() + 4) == 100
