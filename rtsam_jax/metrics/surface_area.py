"""How much surface lies between neighbouring voxel centres, by marching cubes.

Eight voxel centres that touch are the corners of a cube; which of them are inside the mask is the
cube's code, 0 to 255. The surface cuts each edge between inside and outside in its middle, and the
cuts of a cube, joined along its faces, are the corners of one to four polygons: the cube's surface
element. Three choices fix its area, and are those of DeepMind's `surface-distance`:

* A code of more than four inside corners has the surface of its complement.
* Where a face's inside corners are diagonal neighbours, the surface parts them.
* Of the ways to triangulate a polygon that is not flat, the one of largest area on unit voxels.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
from numpy.typing import NDArray

_CORNERS = np.array([*itertools.product((0, 1), repeat=3)])  # corner c is bit c of a code
_FULL = 255
_MOST_TRIANGLES = 4

Edge = frozenset[int]  # two corners


def cube_codes(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Codes of all cubes that reach into the mask's array: [X+1, Y+1, Z+1] of a mask [X, Y, Z].

    Beyond the array is background, so a mask that touches its border has a surface there.
    """
    padded = np.pad(mask, 1).astype(np.uint8)
    codes = np.zeros([n + 1 for n in mask.shape], np.uint8)
    for bit, corner in enumerate(_CORNERS):
        at = tuple(slice(c, c + n) for c, n in zip(corner, codes.shape, strict=True))
        codes |= padded[at] << np.uint8(bit)
    return codes


def on_surface(codes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The cubes that hold a surface element: neither all outside nor all inside."""
    return (codes != 0) & (codes != _FULL)


def element_areas(spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area of the surface element of each code in mm2: [256].

    Args:
      spacing: voxel size along each axis in mm, (3,).
    """
    # A triangle's area along an axis scales with the two other axes.
    scale = spacing.prod() / spacing
    return np.linalg.norm(_triangles() * scale, axis=-1).sum(axis=-1)


@functools.cache
def _triangles() -> NDArray[np.float64]:
    """Vector areas of each code's triangles on unit voxels: [256, 4, 3], padded with zeros."""
    table = np.zeros((_FULL + 1, _MOST_TRIANGLES, 3))
    for code in range(_FULL + 1):
        inside = {corner for corner in range(8) if code >> corner & 1}
        if len(inside) > 4:
            inside = set(range(8)) - inside
        areas = [area for polygon in _polygons(inside) for area in _triangulated(polygon)]
        table[code, : len(areas)] = np.reshape(areas, (-1, 3))
    return table


def _polygons(inside: set[int]) -> list[NDArray[np.float64]]:
    """The closed polygons, [n, 3] each, that part the inside corners of a cube from the others."""
    joined: dict[Edge, list[Edge]] = {}
    for axis, side in itertools.product(range(3), (0, 1)):
        face = [c for c in range(8) if _CORNERS[c, axis] == side]
        edges = [
            frozenset(pair)
            for pair in itertools.combinations(face, 2)
            if abs(_CORNERS[pair[0]] - _CORNERS[pair[1]]).sum() == 1
        ]
        cut = [edge for edge in edges if len(edge & inside) == 1]
        if len(cut) == 4:  # a diagonal pair: each of its corners is cut off by itself
            segments = [[e for e in cut if c in e] for c in face if c in inside]
        else:
            segments = [cut] if cut else []
        for a, b in segments:
            joined.setdefault(a, []).append(b)
            joined.setdefault(b, []).append(a)
    polygons = []
    while joined:
        path = [next(iter(joined))]
        while following := [edge for edge in joined.pop(path[-1]) if edge in joined]:
            path.append(following[0])
        polygons.append(np.array([_CORNERS[list(edge)].mean(axis=0) for edge in path]))
    return polygons


def _triangulated(polygon: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Vector areas of the triangles of a polygon [n, 3], as many and as large as they can be."""
    if len(polygon) < 3:
        return []
    ways = [
        [
            np.cross(polygon[k] - polygon[0], polygon[-1] - polygon[0]) / 2,
            *_triangulated(polygon[: k + 1]),
            *_triangulated(polygon[k:]),
        ]
        for k in range(1, len(polygon) - 1)
    ]
    return max(ways, key=lambda areas: sum(np.linalg.norm(area) for area in areas))
