"""Augmentation: what is drawn is what happens, to image, label, ROI and text alike."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from rtsam_jax.config import AugmentConfig
from rtsam_jax.data import augment as module
from rtsam_jax.data.augment import affine_matrix, augment, blur_matrix, draw_map, margin, positions
from rtsam_jax.data.sample import Sample
from rtsam_jax.errors import ConfigError
from tests.tiny import tiny_config

BATCH, SIZE = 4, 12
SEED = st.integers(0, 2**31 - 1)
OFF = {"intensity": 0.0}
AFFINE = {"affine": 1.0, "rotation_deg": 25.0, "scale": 0.2, "shear": 0.1}
CERTAIN = {"affine": 1.0, "noise": 1.0, "blur": 1.0, "gamma": 1.0, "intensity": 1.0}
VALUES = ("noise_std", "blur_sigma", "gamma_range", "intensity_scale", "intensity_shift")
STRENGTHS = ("rotation_deg", "scale", "shear", *VALUES)
LARGEST = dict(zip(STRENGTHS, (180.0, 1.0, 1.0, 10.0, 3.0, 9.0, 0.99, 10.0), strict=True))


def config(**fields: object) -> AugmentConfig:
    cfg = AugmentConfig(**fields)
    tiny_config(augment=cfg)  # raises where the ranges forbid it
    return cfg


def noise_batch(cfg: AugmentConfig, size: int, batch: int = BATCH, seed: int = 0) -> Sample:
    """Nothing is symmetric, the last sample cannot be mirrored."""
    rng = np.random.default_rng(seed)
    shape = (batch, *(size + 2 * margin(cfg, size),) * 3)
    ids = np.arange(batch, dtype=np.int32)
    return Sample(
        image=rng.standard_normal((*shape, 1), dtype=np.float32),
        label=(rng.random(shape) < 0.3).astype(np.uint8),
        roi=(rng.random(shape) < 0.6).astype(np.uint8),
        text_id=ids,
        mirrored_text_id=np.append(ids[:-1] + 100, -1).astype(np.int32),
        case_id=ids + 7,
        weight=(ids != 1).astype(np.float32),
        view=ids - 1,
    )


@functools.cache
def program(size: int, **fields: object) -> tuple[AugmentConfig, jax.stages.Wrapped]:
    cfg = config(**fields)

    def run(batch: Sample, key: jax.Array) -> Sample:
        return augment(batch, jax.random.split(key, len(batch.weight)), cfg, size)

    return cfg, jax.jit(run)


def values_only(image: np.ndarray, seed: int, **fields: float) -> np.ndarray:
    """What becomes of images [B, S, S, S] that no map moves."""
    cfg, run = program(image.shape[1], **{**OFF, **fields})
    batch = noise_batch(cfg, image.shape[1], len(image))._replace(image=image[..., None])
    return np.asarray(run(batch, jax.random.key(seed)).image)[..., 0]


def maps(key: jax.Array, cfg: AugmentConfig, mirrored: np.ndarray) -> tuple[np.ndarray, ...]:
    """The draws that `augment` makes for a batch: flips [B, 3], matrices [B, 3, 3]."""
    keys = jax.vmap(lambda k: jax.random.split(k)[0])(jax.random.split(key, len(mirrored)))
    flipped, matrices = jax.vmap(lambda k, m: draw_map(k, cfg, m))(keys, mirrored >= 0)
    return np.asarray(flipped), np.asarray(matrices, np.float64)


def assert_same(one: Sample, other: Sample) -> None:
    for name, a, b in zip(Sample._fields, one, other, strict=True):
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_at_no_strength_certain_changes_change_nothing() -> None:
    cfg, run = program(SIZE, **CERTAIN, **dict.fromkeys(STRENGTHS, 0.0))
    batch = noise_batch(cfg, SIZE)
    assert_same(run(batch, jax.random.key(0)), batch)


# 1e-7 is never drawn here, and yet all of its program runs.
@pytest.mark.parametrize("chance", [0.0, 1e-7])
@settings(deadline=None, max_examples=10)
@given(seed=SEED, flip=st.sampled_from([0.5, 1.0]))
def test_an_undrawn_sample_is_its_exact_crop(chance: float, seed: int, flip: float) -> None:
    chances = dict.fromkeys(CERTAIN, chance)
    cfg, run = program(SIZE, **chances, intensity_scale=0.5, flip_axes=(0, 2), flip=flip)
    batch, key, border = noise_batch(cfg, SIZE), jax.random.key(seed), margin(cfg, SIZE)
    assert (border > 0) == (chance > 0)
    inside = (slice(border, border + SIZE),) * 3
    flipped, _ = maps(key, cfg, batch.mirrored_text_id)
    got = run(batch, key)
    for b, axes in enumerate(map(np.flatnonzero, flipped)):
        for moved, source in ((got.image, batch.image), (got.label, batch.label)):
            np.testing.assert_array_equal(moved[b], np.flip(source[b][inside], axes))
        np.testing.assert_array_equal(got.roi[b], np.flip(batch.roi[b][inside], axes))


@pytest.mark.parametrize("affine", [0.0, 1.0])
@settings(deadline=None, max_examples=10)
@given(seed=SEED, flip=st.sampled_from([0.5, 1.0]))
def test_a_flip_takes_the_mirrored_text_and_spares_what_has_none(
    affine: float, seed: int, flip: float
) -> None:
    cfg, run = program(4, **OFF, affine=affine, flip_axes=(0, 1), flip=flip)
    batch, key = noise_batch(cfg, 4), jax.random.key(seed)
    # A ramp along axis 0 that no rotation of 15 degrees turns round.
    ramp = np.arange(batch.image.shape[1], dtype=np.float32)[:, None, None, None]
    got = run(batch._replace(image=np.zeros_like(batch.image) + ramp), key)
    reversed_ = np.asarray(got.image[:, -1].mean((1, 2, 3)) < got.image[:, 0].mean((1, 2, 3)))
    assert not reversed_[-1]
    assert cfg.flip < 1 or reversed_[:-1].all()
    one, other = batch.text_id, batch.mirrored_text_id
    np.testing.assert_array_equal(got.text_id, np.where(reversed_, other, one))
    np.testing.assert_array_equal(got.mirrored_text_id, np.where(reversed_, one, other))
    np.testing.assert_array_equal(got.case_id, batch.case_id)


MARKED_SIZE = 40
MARKED, marked = program(MARKED_SIZE, **OFF, **AFFINE, flip_axes=(0, 1, 2))


@settings(deadline=None, max_examples=10)
@given(seed=SEED)
def test_painted_markers_land_where_the_drawn_maps_say(seed: int) -> None:
    batch, key = noise_batch(MARKED, MARKED_SIZE, batch=8), jax.random.key(seed)
    _, matrices = maps(key, MARKED, batch.mirrored_text_id)
    side, middle = batch.label.shape[1], (MARKED_SIZE - 1) / 2
    targets = np.random.default_rng(seed).uniform(-4, 4, (8, 3))  # from the crop's centre
    sources = np.einsum("bij,bj->bi", matrices, targets) + (side - 1) / 2
    axes = [np.arange(side) - at[:, None] for at in sources.T]
    i, j, k = axes[0][:, :, None, None], axes[1][:, None, :, None], axes[2][:, None, None, :]
    distance = np.sqrt(i**2 + j**2 + k**2)
    radii = {"label": 7, "roi": 9}
    balls = {name: (distance < radius).astype(np.uint8) for name, radius in radii.items()}
    blob = np.exp(-0.5 * (distance / 2) ** 2).astype(np.float32)[..., None]
    got = marked(batch._replace(image=blob, **balls), key)

    for crop, target in zip(np.asarray(got.image[..., 0]), targets, strict=True):
        landed = np.array(ndimage.center_of_mass(crop)) - middle
        np.testing.assert_allclose(landed, target, atol=0.1)
    index = np.indices((MARKED_SIZE,) * 3).reshape(3, -1) - middle
    for name, radius in radii.items():
        apart = []
        for crop, matrix, target in zip(getattr(got, name), matrices, targets, strict=True):
            # Exactly: what is read is the nearest voxel, at most sqrt(3) / 2 away.
            read = np.linalg.norm(matrix @ (index - target[:, None]), axis=0)
            inside = np.asarray(crop).ravel() == 1
            assert inside[read < radius - 0.87].all() and not inside[read >= radius + 0.87].any()
            apart.append(np.array(ndimage.center_of_mass(np.asarray(crop))) - middle - target)
        # Where a map is nearly parallel to the grid, nearest neighbours of a single ball may all
        # lean to one side, but not those of many.
        np.testing.assert_allclose(np.mean(apart, 0), 0, atol=0.1, err_msg=name)


@settings(deadline=None, max_examples=10)
@given(seed=SEED)
def test_label_roi_and_image_stay_aligned(seed: int) -> None:
    batch, key = noise_batch(MARKED, MARKED_SIZE, batch=1, seed=seed), jax.random.key(seed)
    blobs = ndimage.uniform_filter(batch.label.astype(np.float32), 5) > 0.3
    same = blobs.astype(np.uint8)
    got = marked(
        batch._replace(image=same.astype(np.float32)[..., None], label=same, roi=same), key
    )
    np.testing.assert_array_equal(got.label, got.roi)
    image, label = np.asarray(got.image[..., 0]), np.asarray(got.label)
    # Where all neighbours agree, so does the nearest; it is among those with the largest weights.
    assert (label[image > 0.9999] == 1).all() and (label[image < 0.0001] == 0).all()
    assert 0.1 < label.mean() < 0.9 and image[label == 1].min() > 1 / 8 - 1e-4


@settings(deadline=None, max_examples=30)
@given(
    rotation=st.floats(0, 180),
    scale=st.floats(0, 1),
    shear=st.floats(0, 1),
    size=st.integers(2, 200),
)
def test_no_allowed_map_reads_beyond_the_margin(
    rotation: float, scale: float, shear: float, size: int
) -> None:
    cfg = config(affine=1.0, rotation_deg=rotation, scale=scale, shear=shear)
    angles = np.deg2rad(np.linspace(-rotation, rotation, 7))
    angles = np.array(list(itertools.product(angles, repeat=3)), np.float32)
    shears = np.array(list(itertools.product((-shear, shear), repeat=3)), np.float32)
    stretch = jnp.full(1, 1 + scale, jnp.float32)
    every = jax.vmap(affine_matrix, (0, None, None))
    every = jax.vmap(jax.vmap(every, (None, None, 0)), (None, 0, None))
    matrices = np.asarray(every(angles, stretch, shears)).reshape(-1, 3, 3)
    half, border = (size - 1) / 2, margin(cfg, size)
    reach = np.abs(matrices).sum(-1).max() * half  # that of the crop's corners
    assert reach <= half + border + 1e-3
    largest = np.linalg.norm(matrices, 2, axis=(-2, -1)).max()
    upper = np.linalg.norm(np.eye(3) + np.triu(np.full((3, 3), shear), 1), 2) * (1 + scale)
    assert largest <= upper * (1 + 1e-5)
    assert border <= np.ceil((np.sqrt(3) * upper - 1) * half + 1e-6)


@settings(deadline=None, max_examples=10)
@given(seed=SEED)
def test_drawn_coordinates_lie_in_the_source(seed: int) -> None:
    _, matrices = maps(jax.random.key(seed), MARKED, np.zeros(2))
    side = SIZE + 2 * margin(MARKED, SIZE)
    for matrix in matrices:
        for index in positions(jnp.array(matrix), SIZE, side):
            assert -1e-3 <= float(index.min()) and float(index.max()) <= side - 1 + 1e-3


def test_the_margin_of_the_defaults_is_near_what_the_worst_draw_needs() -> None:
    cfg = config(affine=1.0)
    angles = np.deg2rad(15) * np.array(list(itertools.product((-1, 1), repeat=3)))
    matrices = [affine_matrix(a, jnp.float32(1.1), jnp.zeros(3)) for a in jnp.array(angles)]
    needed = np.abs(np.array(matrices)).sum(-1).max() * 63.5 - 63.5
    assert needed <= margin(cfg, 128) <= needed + 2


@settings(deadline=None, max_examples=10)
@given(seed=SEED)
def test_the_affine_is_a_scaled_rotation_about_i_then_j_then_k_of_a_shear(seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles, shears, stretch = rng.uniform(-3, 3, 3), rng.uniform(-1, 1, 3), rng.uniform(0.5, 2)
    shear = np.eye(3)
    shear[np.triu_indices(3, 1)] = shears
    expected = stretch * Rotation.from_euler("xyz", angles).as_matrix() @ shear
    got = affine_matrix(jnp.array(angles, jnp.float32), stretch, jnp.array(shears, jnp.float32))
    np.testing.assert_allclose(got, expected, atol=1e-5)


@settings(deadline=None, max_examples=10)
@given(seed=SEED)
def test_without_shear_a_drawn_map_is_a_rotation_within_its_scale(seed: int) -> None:
    cfg = config(affine=1.0, rotation_deg=40.0, scale=0.3)
    _, (matrix,) = maps(jax.random.key(seed), cfg, np.zeros(1))
    stretch = np.cbrt(np.linalg.det(matrix))
    assert 1 / 1.3 - 1e-5 <= stretch <= 1.3 + 1e-5
    np.testing.assert_allclose(matrix @ matrix.T, stretch**2 * np.eye(3), atol=1e-5)


@settings(deadline=None, max_examples=5)
@given(seed=SEED)
def test_single_voxel_lesions_keep_their_volume(seed: int) -> None:
    batch, key = noise_batch(MARKED, MARKED_SIZE, batch=1), jax.random.key(seed)
    lesions = np.zeros_like(batch.label)
    lesions[:, ::2, ::2, ::2] = 1
    got = marked(batch._replace(label=lesions), key)
    # A cut of linear weights would leave 0.27 of it.
    assert float(got.label.mean()) == pytest.approx(1 / 8, rel=0.25)


@settings(deadline=None, max_examples=10)
@given(seed=SEED, sigma=st.floats(0.2, 3))
def test_the_blur_is_scipys(seed: int, sigma: float) -> None:
    image = np.random.default_rng(seed).standard_normal((17, 17, 17), dtype=np.float32)
    radius = 12
    rows = np.asarray(blur_matrix(jnp.float32(sigma), radius, 17)).sum(1)
    np.testing.assert_allclose(rows, 1, atol=1e-6)
    expected = ndimage.gaussian_filter(image, sigma, mode="nearest", radius=radius)
    got = module._blur(jnp.asarray(image), jnp.float32(sigma), radius)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@settings(deadline=None, max_examples=10)
@given(seed=SEED)
def test_a_drawn_blur_lies_between_none_and_the_widest(seed: int) -> None:
    image = np.zeros((1, 25, 25, 25), np.float32)
    image[0, 12, 12, 12] = 1
    peak = values_only(image, seed, blur=1.0, blur_sigma=2.0)[0, 12, 12, 12]
    assert ndimage.gaussian_filter(image[0], 2.0).max() - 1e-6 <= peak <= 1


@settings(deadline=None, max_examples=10)
@given(seed=SEED)
def test_gamma_keeps_range_and_order(seed: int) -> None:
    image = np.random.default_rng(seed).uniform(-1, 3, (2, 5, 5, 5)).astype(np.float32)
    image[1] = 0.37  # constant
    got = values_only(image, seed, gamma=1.0, gamma_range=2.0)
    np.testing.assert_array_equal(got[1], image[1])
    order = np.argsort(image[0], axis=None)
    assert (np.diff(got[0].ravel()[order]) >= 0).all()
    np.testing.assert_allclose(
        (got[0].min(), got[0].max()), (image[0].min(), image[0].max()), atol=1e-6
    )
    share = (image[0] - image[0].min()) / np.ptp(image[0])
    moved = (got[0] - got[0].min()) / np.ptp(got[0])
    inner = (share > 0.2) & (share < 0.8)
    exponent = np.log(moved[inner]) / np.log(share[inner])
    assert np.ptp(exponent) < 1e-4 and 1 / 3 - 1e-4 < exponent.mean() < 3 + 1e-4


@settings(deadline=None, max_examples=10)
@given(seed=SEED)
def test_scale_and_shift_are_one_line_within_their_ranges(seed: int) -> None:
    image = np.random.default_rng(seed).standard_normal((1, 5, 5, 5)).astype(np.float32)
    got = values_only(image, seed, intensity=1.0, intensity_scale=0.4, intensity_shift=0.3)
    slope, offset = np.polyfit(image.ravel(), got.ravel(), 1)
    np.testing.assert_allclose(got, slope * image + offset, atol=1e-5)
    assert abs(slope - 1) <= 0.4 + 1e-5 and abs(offset) <= 0.3 + 1e-5


def test_noise_is_gaussian_and_at_most_as_strong_as_asked() -> None:
    zeros = np.zeros((16, 16, 16, 16), np.float32)
    noise = values_only(zeros, 0, noise=1.0, noise_std=2.0)
    std = noise.std((1, 2, 3))
    assert (std > 0).all() and std.max() <= 2.05 and np.ptp(std) > 0.5
    standard = noise / std[:, None, None, None]
    assert abs(standard.mean()) < 0.02 and abs((standard**4).mean() - 3) < 0.1


@settings(deadline=None, max_examples=20)
@given(
    seed=SEED,
    strengths=st.sampled_from([LARGEST, dict.fromkeys(STRENGTHS, 1e-30)]),
    size=st.sampled_from([0.0, 1e-42, 1e-38, 1.0, 1e30, 1e37]),
    kind=st.sampled_from(["constant", "noise", "spike"]),
)
def test_every_value_is_finite_at_the_ends_of_every_range(
    seed: int, strengths: dict[str, float], size: float, kind: str
) -> None:
    cfg, run = program(3, **CERTAIN, **strengths, flip_axes=(0, 1, 2))
    batch = noise_batch(cfg, 3, seed=seed)
    image = {
        "constant": np.ones_like(batch.image),
        "noise": np.tanh(batch.image),
        "spike": (batch.image == batch.image.max()).astype(np.float32),
    }[kind]
    got = run(batch._replace(image=image * np.float32(size)), jax.random.key(seed))
    assert got.image.dtype == jnp.float32 and np.isfinite(got.image).all()
    assert got.label.dtype == got.roi.dtype == jnp.uint8
    assert int(got.label.max()) <= 1 and int(got.roi.max()) <= 1


def test_same_key_same_result_and_one_compilation() -> None:
    cfg, run = program(SIZE, **CERTAIN, intensity_scale=0.1, flip_axes=(0, 1, 2))
    batch = noise_batch(cfg, SIZE)
    once = run(batch, jax.random.key(3))
    assert_same(run(batch, jax.random.key(3)), once)
    other = run(noise_batch(cfg, SIZE, seed=1), jax.random.key(4))
    assert not np.array_equal(other.label, once.label)
    assert not np.array_equal(once.image[0], once.image[1])
    assert run._cache_size() == 1


def test_a_batch_without_the_margin_is_refused() -> None:
    cfg = config(affine=1.0)
    batch = noise_batch(AugmentConfig(), SIZE)
    with pytest.raises(ConfigError, match=r"\(12, 12, 12\) voxels.*need 20 along each axis"):
        augment(batch, jax.random.split(jax.random.key(0), BATCH), cfg, SIZE)
