"""Shapes in head coordinates, painted with partial volume onto a voxel grid.

Head coordinates are millimetres: x to the patient's right, y anterior, z superior; the origin lies
between the ears, a little above the skull base. A shape is a signed distance (mm, negative
inside); voxels that its surface crosses are mixed in proportion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Point = Sequence[float] | np.ndarray  # three numbers
MARGIN_MM = 7.0  # the warp moves no point farther than this


def rotation(degrees: Point) -> np.ndarray:
    """Rotation matrix `[3, 3]` from angles about x, y and z, applied in this order."""
    out = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(np.asarray(degrees, float))):
        c, s = np.cos(angle), np.sin(angle)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        one = np.eye(3)
        one[a, a] = one[b, b] = c
        one[a, b], one[b, a] = -s, s
        out = one @ out
    return out


def smooth_noise(
    rng: np.random.Generator, shape: Sequence[int], spacing: Point, wavelength: float
) -> np.ndarray:
    """A smooth random field of about mean 0 and deviation 1, float32 `[X, Y, Z]`.

    Args:
      rng: source of randomness.
      shape: voxels per axis.
      spacing: mm per voxel and axis.
      wavelength: typical size of one bump, mm.
    """
    knot = 0.7 * wavelength
    weights = [
        _spline_weights(n, float(s) / knot, rng.random())
        for n, s in zip(shape, spacing, strict=True)
    ]
    field = rng.standard_normal([w.shape[1] for w in weights], dtype=np.float32)
    field = np.matmul(weights[1], field @ weights[2].T)
    field = (weights[0] @ field.reshape(len(field), -1)).reshape(tuple(shape))
    return field / np.float32((151 / 315) ** 1.5)


def _spline_weights(count: int, step: float, start: float) -> np.ndarray:
    """Uniform cubic B-spline weights of `count` samples, `step` knots apart, `[count, knots]`."""
    at = start + step * np.arange(count)
    knots = int(at[-1]) + 4
    distance = np.abs(at[:, None] + 1 - np.arange(knots))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.maximum(2 - distance, 0) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


@dataclass(frozen=True)
class Frame:
    """A voxel grid and its place in head coordinates.

    Attributes:
      points: head coordinates (mm) of each voxel centre, float32 `[3, X, Y, Z]`.
      affine: voxel index -> world RAS (mm), `[4, 4]`.
      head: head coordinates -> world without the warp, `[4, 4]`.
    """

    points: np.ndarray
    affine: np.ndarray
    head: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels per axis."""
        x, y, z = self.points.shape[1:]
        return x, y, z

    @property
    def spacing(self) -> np.ndarray:
        """Voxel edges in mm, `[3]`."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in mL."""
        return float(np.prod(self.spacing)) / 1000.0

    def window(self, low: Point, high: Point) -> tuple[slice, slice, slice]:
        """Slices of the voxels that can lie in the head-coordinate box `low..high` (mm)."""
        corners = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), -1).reshape(
            -1, 3
        )
        to_index = np.linalg.inv(self.affine) @ self.head
        index = corners @ to_index[:3, :3].T + to_index[:3, 3]
        margin = MARGIN_MM / self.spacing
        first = np.clip(np.floor(index.min(0) - margin), 0, self.shape).astype(int)
        last = np.clip(np.ceil(index.max(0) + margin) + 1, 0, self.shape).astype(int)
        x, y, z = (slice(int(a), int(max(a, b))) for a, b in zip(first, last, strict=True))
        return x, y, z


def make_frame(
    rng: np.random.Generator, *, spacing: Point, field_mm: Point, centre: Point, scale: Point
) -> Frame:
    """A grid of `field_mm` around the head point `centre`, with a random pose and a smooth warp."""
    shape = tuple(int(round(f / s)) for f, s in zip(field_mm, spacing, strict=True))
    head = np.eye(4)
    turn = rotation(rng.uniform(-6, 6, 3))
    head[:3, :3] = turn * np.asarray(scale, float)
    head[:3, 3] = rng.uniform(-25, 25, 3)
    affine = np.diag([*spacing, 1.0])
    middle = head[:3, :3] @ np.asarray(centre, float) + head[:3, 3] + rng.uniform(-4, 4, 3)
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    to_head = np.linalg.inv(head) @ affine
    axes = [np.arange(n, dtype=np.float32) for n in shape]
    points = np.empty((3, *shape), np.float32)
    for row in range(3):
        a, b, c = (to_head[row, k] * axes[k] for k in range(3))
        points[row] = a[:, None, None] + b[None, :, None] + c[None, None, :] + to_head[row, 3]
        points[row] += 1.6 * smooth_noise(rng, shape, spacing, 55.0)  # asymmetry between the sides
    return Frame(points, affine, head)


def ellipsoid(p: np.ndarray, centre: Point, radii: Point) -> np.ndarray:
    """Approximate signed distance (mm) to an ellipsoid along the axes; `p` is `[3, ...]`."""
    inner = np.zeros(p.shape[1:], np.float32)
    outer = np.zeros(p.shape[1:], np.float32)
    for row in range(3):
        q = (p[row] - np.float32(centre[row])) * np.float32(1 / radii[row])
        q *= q
        inner += q
        q *= np.float32(1 / radii[row] ** 2)
        outer += q
    np.sqrt(inner, out=inner)
    np.sqrt(outer, out=outer)
    return inner * (inner - 1) / np.maximum(outer, np.float32(1e-4))


def capsule(p: np.ndarray, start: Point, end: Point, radius: float) -> np.ndarray:
    """Signed distance (mm) to a rounded rod."""
    a = np.asarray(start, np.float32)
    b = np.asarray(end, np.float32) - a
    d = [p[row] - a[row] for row in range(3)]
    along = np.clip(sum(d[row] * b[row] for row in range(3)) / np.float32(b @ b), 0, 1)
    return np.sqrt(sum((d[row] - along * b[row]) ** 2 for row in range(3))) - np.float32(radius)


def block(p: np.ndarray, centre: Point, half: Point, rounding: float = 2.0) -> np.ndarray:
    """Signed distance (mm, exact outside) to a block with rounded edges."""
    q = [np.abs(p[r] - np.float32(centre[r])) - np.float32(half[r] - rounding) for r in range(3)]
    outside = np.sqrt(sum(np.maximum(v, 0) ** 2 for v in q))
    return outside + np.minimum(np.maximum(np.maximum(q[0], q[1]), q[2]), 0) - np.float32(rounding)


def ribbon(
    p: np.ndarray, path: np.ndarray, *, thickness: float, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Signed distance (mm) to an upright wall along a curve in the x-y plane.

    Args:
      p: head coordinates, `[3, ...]`.
      path: points of the curve, `[n, 2]`, closely spaced.
      thickness: of the wall, mm.
      low: z of its lower edge at each point of the curve, `[n]`.
      high: z of its upper edge, `[n]`.
    """
    best = np.full(p.shape[1:], np.inf, np.float32)
    bottom, top = np.zeros_like(best), np.zeros_like(best)
    for (x, y), lo, hi in zip(path, low, high, strict=True):
        d = (p[0] - np.float32(x)) ** 2 + (p[1] - np.float32(y)) ** 2
        nearer = d < best
        best = np.where(nearer, d, best)
        bottom = np.where(nearer, np.float32(lo), bottom)
        top = np.where(nearer, np.float32(hi), top)
    r = np.float32(0.45 * thickness)
    side = np.sqrt(best) - np.float32(thickness / 2) + r
    upright = np.abs(p[2] - (bottom + top) / 2) - (top - bottom) / 2 + r
    outside = np.sqrt(np.maximum(side, 0) ** 2 + np.maximum(upright, 0) ** 2)
    return outside + np.minimum(np.maximum(side, upright), 0) - r


def union(first: np.ndarray, second: np.ndarray, blend: float) -> np.ndarray:
    """Union of two signed distances whose seam is rounded over `blend` mm."""
    h = np.clip(0.5 + 0.5 * (second - first) / np.float32(blend), 0, 1)
    return second + (first - second) * h - np.float32(blend) * h * (1 - h)


class Canvas:
    """Intensities and tissue names of one image, painted shape over shape."""

    def __init__(self, frame: Frame, tissues: dict[str, float]) -> None:
        """Starts with air. `tissues` maps each tissue to its intensity in this modality."""
        self.frame = frame
        self.tissues = tissues
        self.names = list(tissues)
        self.value = np.full(frame.shape, tissues["air"], np.float32)
        self.tissue = np.full(frame.shape, self.names.index("air"), np.uint8)
        self.soft = float(frame.spacing.mean())

    def mask(self, *names: str) -> np.ndarray:
        """Where one of the tissues was painted last, bool `[X, Y, Z]`."""
        return np.isin(self.tissue, [self.names.index(n) for n in names])

    def paint(
        self,
        distance: np.ndarray,
        tissue: str,
        where: tuple[slice, slice, slice] = (slice(None), slice(None), slice(None)),
    ) -> None:
        """Paints `tissue` where the signed distance (of the window `where`) is negative."""
        share = np.clip(0.5 - distance / np.float32(self.soft), 0, 1)
        value = self.value[where]
        value += share * (np.float32(self.tissues[tissue]) - value)
        self.tissue[where][share > 0.5] = self.names.index(tissue)

    def ellipsoid(self, tissue: str, centre: Point, radii: Point) -> None:
        """Paints an ellipsoid."""
        low, high = np.subtract(centre, radii), np.add(centre, radii)
        where = self.frame.window(low, high)
        self.paint(
            ellipsoid(self.frame.points[(slice(None), *where)], centre, radii), tissue, where
        )

    def capsule(self, tissue: str, start: Point, end: Point, radius: float) -> None:
        """Paints a rounded rod."""
        ends = np.stack([start, end])
        where = self.frame.window(ends.min(0) - radius, ends.max(0) + radius)
        self.paint(
            capsule(self.frame.points[(slice(None), *where)], start, end, radius), tissue, where
        )

    def block(self, tissue: str, centre: Point, half: Point, rounding: float = 2.0) -> None:
        """Paints a block with rounded edges."""
        where = self.frame.window(np.subtract(centre, half), np.add(centre, half))
        p = self.frame.points[(slice(None), *where)]
        self.paint(block(p, centre, half, rounding), tissue, where)
