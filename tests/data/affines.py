"""Affines that no axis of the world runs along."""

from __future__ import annotations

import numpy as np


def oblique(spacing: tuple[float, float, float]) -> np.ndarray:
    """Turned about the third axis and away from the origin; voxels of `spacing` mm."""
    angle = 0.3
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 3] = (-12.0, 30.5, 4.0)
    return affine
