"""Random changes of training crops on the device (Sec. 4.1): one warp, then the image's values.

Flip and affine are one matrix, so that a crop is resampled once. Coordinates are voxels from a
crop's centre, columns of a matrix the axes (i, j, k) of the crop, rows those of its source.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from rtsam_jax.config import AugmentConfig
from rtsam_jax.data.sample import Sample
from rtsam_jax.errors import ConfigError

_TRUNCATE = 4.0  # a blur's radius in standard deviations, as in scipy
_SHARP = 0.01  # voxels; a blur of this standard deviation is the identity in float32
_TINY = np.finfo(np.float32).tiny  # the smallest range that can be divided by


def augment(batch: Sample, keys: jax.Array, cfg: AugmentConfig, size: int) -> Sample:
    """Crops of side `size`, each changed by draws of its own key: pure, for use under `jit`.

    A change of probability or strength 0 is not in the program. A sample for which a change is not
    drawn is bit-equal to one without it. Image values stay finite up to 1e37 in size.

    Args:
        batch: `image` [B, P, P, P, 1] float32, `label` and `roi` [B, P, P, P] uint8 of 0 and 1,
            P = size + 2 * margin(cfg, size), around the crops' centres.
        keys: [B], one per sample, so that the result depends on neither batch nor devices.

    Returns:
        `image` [B, S, S, S, 1] float32, `label` and `roi` [B, S, S, S] uint8, S = size; `text_id`
        and `mirrored_text_id` change places where axis 0 is reversed, which it never is where
        `mirrored_text_id` is -1.

    Raises:
        ConfigError: the batch has another side than P.
    """
    side = size + 2 * margin(cfg, size)
    if batch.label.shape[1:] != (side,) * 3:
        raise ConfigError(
            f"crops of {batch.label.shape[1:]} voxels came to config.augment, whose strengths "
            f"need {side} along each axis for a crop of {size}: cut them with its margin."
        )
    return jax.vmap(functools.partial(_augment_one, cfg=cfg, size=size))(batch, keys)


def margin(cfg: AugmentConfig, size: int) -> int:
    """Voxels needed on either side of a crop, so that no affine reads beyond its source.

    With h = (size - 1) / 2, a crop's voxel o, |o_j| <= h, is read at t R S o: t <= 1 + scale, R a
    rotation, S a shear. Along axis i that is at most t h |S^T u|_1, u the i-th row of R. The row
    sums of |S| are at most w = (1 + 2 shear, 1 + shear, 1), so |S^T u|_1 <= sum_k w_k |u_k|. Now u
    has length 1, and its angle phi with axis i is bounded: cos(phi) = R_ii is at least cos(r)^2 for
    the first and last axis, cos(r)^2 - sin(r)^3 for the second, r the largest angle up to 90 deg.
    With v the length of the other two weights the sum is then at most w_i cos(phi) + v sin(phi),
    which grows up to tan(phi) = v / w_i. There it is |w|, which never exceeds sqrt(3) times the
    largest stretch of S: the margin is at most what the cube's diagonal would ask for.
    """
    if not moves(cfg):
        return 0
    angle = math.radians(min(cfg.rotation_deg, 90.0))
    cos2, sin3 = math.cos(angle) ** 2, math.sin(angle) ** 3
    weights = np.array([1 + 2 * cfg.shear, 1 + cfg.shear, 1.0])
    reach = 0.0
    for axis, least_cosine in enumerate((cos2, cos2 - sin3, cos2)):
        own, others = weights[axis], float(np.linalg.norm(np.delete(weights, axis)))
        tilt = min(math.acos(least_cosine), math.atan2(others, own))
        reach = max(reach, own * math.cos(tilt) + others * math.sin(tilt))
    half = (size - 1) / 2
    return math.ceil(half * (1 + cfg.scale) * reach - half)


def moves(cfg: AugmentConfig) -> bool:
    """Whether an affine other than the identity can be drawn."""
    return cfg.affine > 0 and max(cfg.rotation_deg, cfg.scale, cfg.shear) > 0


def draw_map(
    key: jax.Array, cfg: AugmentConfig, mirrorable: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Which axes are reversed, bool [3], and the map from a crop's voxel to its source's.

    Returns:
        The reversed axes, axis 0 only where `mirrorable`; and `affine_matrix` of the draws with the
        columns of those axes negated, float32 [3, 3].
    """
    k_flip, k_drawn, k_angles, k_stretch, k_shears = jax.random.split(key, 5)
    flipped = jax.random.bernoulli(k_flip, cfg.flip, (3,))
    flipped &= jnp.array([axis in cfg.flip_axes for axis in range(3)])
    flipped = flipped.at[0].set(flipped[0] & mirrorable)
    matrix = affine_matrix(
        math.radians(cfg.rotation_deg) * _symmetric(k_angles, (3,)),
        (1 + cfg.scale) ** _symmetric(k_stretch),
        cfg.shear * _symmetric(k_shears, (3,)),
    )
    matrix = jnp.where(jax.random.bernoulli(k_drawn, cfg.affine), matrix, jnp.eye(3))
    return flipped, matrix * jnp.where(flipped, -1, 1)


def affine_matrix(angles: jax.Array, stretch: jax.Array, shears: jax.Array) -> jax.Array:
    """stretch * R_k R_j R_i S, float32 [3, 3].

    Scale is isotropic: the grid is, and a lesion keeps its shape. S is upper triangular with ones
    on its diagonal: invertible at any strength, and it keeps volumes.

    Args:
        angles: [3], radians, about axes i, j, k.
        stretch: of the source per voxel of the crop; the anatomy scales by its inverse.
        shears: [3], voxels per voxel: of i along j, of i along k, of j along k.
    """
    matrix = jnp.eye(3).at[(0, 0, 1), (1, 2, 2)].set(shears)
    for axis, angle in enumerate(angles):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        # Row by row, not as a matrix product, which accelerators round to fewer bits.
        row_a, row_b = matrix[a], matrix[b]
        matrix = matrix.at[a].set(cos * row_a - sin * row_b).at[b].set(sin * row_a + cos * row_b)
    return stretch * matrix


def positions(matrix: jax.Array, size: int, side: int) -> list[jax.Array]:
    """Where a crop's voxels lie in a source around the same centre: indices, 3 x [S, S, S]."""
    steps = jnp.arange(size, dtype=jnp.float32) - (size - 1) / 2
    i, j, k = steps[:, None, None], steps[None, :, None], steps[None, None, :]
    return [row[0] * i + row[1] * j + row[2] * k + (side - 1) / 2 for row in matrix]


def _augment_one(sample: Sample, key: jax.Array, *, cfg: AugmentConfig, size: int) -> Sample:
    k_map, k_values = jax.random.split(key)
    flipped, matrix = draw_map(k_map, cfg, sample.mirrored_text_id >= 0)
    volumes = sample.image[..., 0], sample.label, sample.roi
    if moves(cfg):
        image, label, roi = _warp(*volumes, matrix, size)
    else:
        image, label, roi = (_reverse(volume, flipped, cfg) for volume in volumes)
    image = _change_values(k_values, image, cfg)
    text_id, mirrored = _swap(flipped[0], sample.text_id, sample.mirrored_text_id)
    return sample._replace(
        image=image[..., None], label=label, roi=roi, text_id=text_id, mirrored_text_id=mirrored
    )


def _swap(swapped: jax.Array, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.where(swapped, b, a), jnp.where(swapped, a, b)


def _reverse(volume: jax.Array, flipped: jax.Array, cfg: AugmentConfig) -> jax.Array:
    for axis in cfg.flip_axes if cfg.flip > 0 else ():
        volume = jnp.where(flipped[axis], jnp.flip(volume, axis), volume)
    return volume


def _warp(
    image: jax.Array, label: jax.Array, roi: jax.Array, matrix: jax.Array, size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    at = positions(matrix, size, label.shape[0])
    # Nearest neighbour keeps the expected volume of the smallest lesion. Linear weights cut at one
    # half would leave 4 (1 - ln 2 - ln(2)^2 / 2), about 0.27, of a voxel that stands alone.
    # Both masks in one gather, which takes as long as one mask.
    masks = map_coordinates(label | roi << 1, at, order=0, mode="nearest")
    return map_coordinates(image, at, order=1, mode="nearest"), masks & 1, masks >> 1


def _change_values(key: jax.Array, image: jax.Array, cfg: AugmentConfig) -> jax.Array:
    """In the order in which a scanner makes them: optics, contrast, gain, then noise.

    Noise is last: before the blur it would be weaker than drawn, and before the gamma its outliers
    would set the range.
    """
    k_blur, k_gamma, k_gain, k_noise = jax.random.split(key, 4)
    # All are cut off where the widest is, so that one program serves every draw.
    radius = int(_TRUNCATE * cfg.blur_sigma + 0.5)
    if cfg.blur > 0 and radius > 0:
        sigma = _drawn_strength(k_blur, cfg.blur, cfg.blur_sigma)
        image = jnp.where(sigma > 0, _blur(image, sigma, radius), image)
    if cfg.gamma > 0 and cfg.gamma_range > 0:
        k_drawn, k_exponent = jax.random.split(k_gamma)
        exponent = (1 + cfg.gamma_range) ** _symmetric(k_exponent)
        drawn = jax.random.bernoulli(k_drawn, cfg.gamma)
        image = jnp.where(drawn, _gamma(image, exponent), image)
    if cfg.intensity > 0 and max(cfg.intensity_scale, cfg.intensity_shift) > 0:
        k_drawn, k_change = jax.random.split(k_gain)
        drawn = jax.random.bernoulli(k_drawn, cfg.intensity)
        u, v = jnp.where(drawn, _symmetric(k_change, (2,)), 0)
        image = image * (1 + u * cfg.intensity_scale) + v * cfg.intensity_shift
    if cfg.noise > 0 and cfg.noise_std > 0:
        k_std, k_values = jax.random.split(k_noise)
        std = _drawn_strength(k_std, cfg.noise, cfg.noise_std)
        image = image + std * jax.random.normal(k_values, image.shape)
    return image


def blur_matrix(sigma: jax.Array, radius: int, side: int) -> jax.Array:
    """A Gaussian blur along one axis as a matrix: float32 [side, side], rows sum to 1.

    Beyond an edge it sees the edge's value, so that no edge darkens.

    Args:
        sigma: standard deviation, voxels.
        radius: where the Gaussian is cut off, voxels.
    """
    distance = jnp.arange(-radius, radius + 1)
    weights = jnp.exp(-0.5 * (distance / jnp.maximum(sigma, _SHARP)) ** 2)
    voxel = jnp.arange(side)
    seen = jnp.clip(voxel[:, None] + distance, 0, side - 1)
    taps = jnp.where(seen[..., None] == voxel, (weights / weights.sum())[:, None], 0)
    return taps.sum(1)


def _blur(image: jax.Array, sigma: jax.Array, radius: int) -> jax.Array:
    # Sums of shifted copies do less arithmetic, but a CPU's XLA then resamples the source for each.
    matrix = blur_matrix(sigma, radius, image.shape[0])
    for axes in ("ai,ijk->ajk", "aj,ijk->iak", "ak,ijk->ija"):
        image = jnp.einsum(axes, matrix, image, precision=jax.lax.Precision.HIGHEST)
    return image


def _gamma(image: jax.Array, exponent: jax.Array) -> jax.Array:
    """On the image's own range, which it keeps; a constant image is unchanged."""
    low = image.min()
    span = image.max() - low
    return ((image - low) / jnp.where(span > _TINY, span, 1)) ** exponent * span + low


def _drawn_strength(key: jax.Array, probability: float, largest: float) -> jax.Array:
    """Uniform over (0, largest] with the probability given, else 0."""
    k_drawn, k_strength = jax.random.split(key)
    drawn = jax.random.bernoulli(k_drawn, probability)
    return jnp.where(drawn, largest * (1 - jax.random.uniform(k_strength)), 0)


def _symmetric(key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
    """Uniform over [-1, 1)."""
    return jax.random.uniform(key, shape, minval=-1, maxval=1)
