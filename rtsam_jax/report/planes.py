"""Three anatomical planes of a RAS+ volume in radiological display: what every picture shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from rtsam_jax.report import canvas

TRUTH, BOX, ROI = canvas.ORANGE, canvas.WHITE, canvas.PURPLE
DASHES = (6.0, 4.0)  # of the box, in widths of its line
FAINT = 0.35  # opacity of a box that the plane does not cross
MARGIN_MM = 12.0  # shown around everything that is drawn
LEAST_VIEW_MM = 90.0  # a small lesion alone would show no anatomy to find it by
WINDOW_PERCENTILES = (1.0, 99.5)  # drawn black and white, unless intensities have a unit


class Plane(NamedTuple):
    """A plane's axes, 0 to 2 for R, A, S, and its directions.

    Radiological: across axial and coronal planes the patient's right is on the left.
    """

    name: str
    across: int
    up: int
    through: int
    letters: str  # at left, right, top, bottom

    def cut(self, volume: NDArray[Any], index: int) -> NDArray[Any]:
        """A slice [up, across] of [X, Y, Z]: rows go up, columns across."""
        return np.take(volume, index, axis=self.through).T


PLANES = (
    Plane("Axial", 0, 1, 2, "RLAP"),
    Plane("Coronal", 0, 2, 1, "RLSI"),
    Plane("Sagittal", 1, 2, 0, "APSI"),
)


def overlay_centre(shape: Sequence[int], *masks: NDArray[Any] | None) -> tuple[int, int, int]:
    """The voxel through which the planes go.

    The voxel nearest to the centroid of the first mask that is not empty (in `plot_overlay`: of
    truth, prediction and ROI); the middle of the volume if all are. A voxel of the mask itself,
    since a curved structure's centroid lies outside of it and its planes could miss it.
    """
    for mask in masks:
        where = np.argwhere(mask) if mask is not None else np.empty((0, 3))
        if len(where):
            offset = where - where.mean(axis=0)
            nearest = np.einsum("ij,ij->i", offset, offset).argmin()
            i, j, k = (int(index) for index in where[nearest])
            return i, j, k
    i, j, k = (size // 2 for size in shape)
    return i, j, k


def grey_window(values: NDArray[Any]) -> tuple[float, float]:
    """Grey values drawn black and white: percentiles of the finite ones, never equal."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    dark, bright = (float(v) for v in np.percentile(finite, WINDOW_PERCENTILES))
    return dark, bright if bright > dark else dark + 1.0


def view_around(
    masks: Iterable[NDArray[np.bool_]],
    box: NDArray[Any] | None,
    centre: tuple[int, int, int],
    spacing: NDArray[np.float64],
    shape: Sequence[int],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Limits in mm: a cube around all masks and the box, so that all planes share one scale."""
    first, last = np.array(centre), np.array(centre)
    for mask in masks:
        for axis in range(3):
            held = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
            if held.size:
                first[axis] = min(first[axis], held[0])
                last[axis] = max(last[axis], held[-1])
    if box is not None:
        first, last = np.minimum(first, box[0]), np.maximum(last, box[1])
    low = (first - 0.5) * spacing - MARGIN_MM
    high = (last + 0.5) * spacing + MARGIN_MM
    # Beyond the volume there is nothing to see: no wider than it, and moved inside where it fits.
    start, end = -0.5 * spacing, (np.asarray(shape) - 0.5) * spacing
    side = min(max((high - low).max(), LEAST_VIEW_MM), (end - start).max())
    middle = np.where(
        side <= end - start,
        np.clip((low + high) / 2, start + side / 2, np.maximum(end - side / 2, start + side / 2)),
        (start + end) / 2,
    )
    return middle - side / 2, middle + side / 2


def slice_extent(
    plane: Plane, pixels: NDArray[Any], spacing: NDArray[np.float64]
) -> tuple[float, float, float, float]:
    """Where a slice [up, across] ends: left, right, bottom, top in mm; voxel 0's centre is at 0."""
    up, across = pixels.shape[:2]
    x, y = spacing[plane.across], spacing[plane.up]
    return -0.5 * x, (across - 0.5) * x, -0.5 * y, (up - 0.5) * y


def draw_image(
    axis: Axes,
    plane: Plane,
    pixels: NDArray[Any],
    spacing: NDArray[np.float64],
    window: tuple[float, float],
) -> None:
    """Draws a slice [up, across] in grey, in mm; voxel 0's centre is at 0 mm."""
    axis.set_facecolor("black")
    axis.imshow(
        pixels,
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        origin="lower",
        extent=slice_extent(plane, pixels, spacing),
        interpolation="bilinear",
    )


def draw_outline(
    axis: Axes, plane: Plane, mask: NDArray[Any], spacing: NDArray[np.float64], **style: Any
) -> None:
    """Draws the outline of a mask's slice [up, across], closed where it touches the border."""
    if not mask.any():
        return
    rows, columns = mask.shape
    x = np.arange(-1, columns + 1) * spacing[plane.across]
    y = np.arange(-1, rows + 1) * spacing[plane.up]
    # The ring of background closes the outline.
    axis.contour(x, y, np.pad(mask, 1).astype(float), [0.5], **style)


def draw_box(
    axis: Axes, plane: Plane, box: NDArray[Any], index: int, spacing: NDArray[np.float64]
) -> None:
    """Draws a box's outline, (2, 3) inclusive voxels; faint where the plane passes beside it."""
    low, high = (box[0] - 0.5) * spacing, (box[1] + 0.5) * spacing
    crossed = box[0][plane.through] <= index <= box[1][plane.through]
    axis.add_patch(
        Rectangle(
            (low[plane.across], low[plane.up]),
            high[plane.across] - low[plane.across],
            high[plane.up] - low[plane.up],
            fill=False,
            edgecolor=BOX,
            linewidth=1.2,
            linestyle=(0, DASHES),
            alpha=1.0 if crossed else FAINT,
            # A dark rim, so that it shows on bone as well.
            path_effects=[withStroke(linewidth=2.2, foreground="black")],
        )
    )


def in_view(axis: Axes, plane: Plane, low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
    """Shows [low, high], (3,) mm each, without ticks and the way radiologists look at it."""
    axis.set_xlim(low[plane.across], high[plane.across])
    axis.set_ylim(low[plane.up], high[plane.up])
    axis.invert_xaxis()  # R, and in the sagittal plane A, to the left
    axis.set_xticks([])
    axis.set_yticks([])


def text_style(axis: Axes, size: float) -> dict[str, Any]:
    """White on a dark ground, readable on any image; positions are shares of the axis."""
    ground = {"facecolor": "black", "alpha": 0.55, "edgecolor": "none", "pad": 1.5}
    return {"color": "white", "transform": axis.transAxes, "fontsize": size, "bbox": ground}


def draw_names(axis: Axes, plane: Plane, title: str, style: Mapping[str, Any]) -> None:
    """Writes the directions' letters to the four sides and the title to the upper left."""
    places = ((0.03, 0.5), (0.97, 0.5), (0.5, 0.97), (0.5, 0.03))
    for letter, at in zip(plane.letters, places, strict=True):
        axis.text(*at, letter, ha="center", va="center", fontweight="bold", **style)
    axis.text(0.02, 0.98, title, ha="left", va="top", **style)


def draw_scale_bar(axis: Axes, side_mm: float, style: Mapping[str, Any]) -> None:
    """Draws a round length of at most a quarter of the axis, which is `side_mm` wide."""
    length = max((n for n in (1, 2, 5, 10, 20, 50, 100) if n <= side_mm / 4), default=1)
    share = length / side_mm
    axis.plot(
        [0.03, 0.03 + share], [0.035, 0.035], color="white", linewidth=2.5, transform=axis.transAxes
    )
    axis.text(0.03 + share / 2, 0.05, f"{length} mm", ha="center", va="bottom", **style)
