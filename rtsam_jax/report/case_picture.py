"""A prepared case in one picture: three whole planes with isodose lines, ROI, box and label.

Drawn on the model grid, so that it shows what training will be given, and in the image's own grey
values. One scale in mm for the three planes, radiological display.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rtsam_jax.data.nifti import Volume
from rtsam_jax.data.preprocess import Preprocessed, Space
from rtsam_jax.geometry import index_map, resample
from rtsam_jax.report import canvas
from rtsam_jax.report.planes import (
    BOX,
    DASHES,
    PLANES,
    ROI,
    TRUTH,
    Plane,
    draw_box,
    draw_image,
    draw_names,
    draw_outline,
    draw_scale_bar,
    grey_window,
    in_view,
    overlay_centre,
    text_style,
)


class Line(NamedTuple):
    """How something is drawn, for the picture and its legend."""

    name: str
    colour: str
    width: float  # points
    dashes: tuple[float, ...] = ()  # on and off, in widths; () is solid

    @property
    def matplotlib(self) -> dict[str, Any]:
        """Keywords of `Axes.contour`."""
        style = (0, self.dashes) if self.dashes else "solid"
        return {"colors": self.colour, "linewidths": self.width, "linestyles": [style]}


LABEL = Line("Label", TRUTH, 1.7)
REGION = Line("High-dose region: the threshold's isodose, as training uses it", ROI, 2.0)
DOSE_BOX = Line("Dose box; faint where the plane passes beside it", BOX, 1.2, DASHES)
# From cold to warm, apart by style as well, and none near the label's orange.
ISODOSES = {
    0.20: Line("20 % of the largest dose", canvas.SKY, 1.1, (1, 2)),
    0.50: Line("50 %", canvas.SKY, 1.1, (5, 2)),
    0.80: Line("80 %", canvas.GREEN, 1.2),
    0.95: Line("95 %", canvas.YELLOW, 1.1, (6, 2, 1, 2)),
}
LEGEND = (LABEL, REGION, *ISODOSES.values(), DOSE_BOX)

CT_WINDOW = (-250.0, 700.0)  # HU: fat and muscle told apart, and marrow from cortical bone
WIDTH, HEIGHT, GAP = 900.0, 320.0, 6.0  # CSS pixels: the most a picture takes, between planes
_PER_INCH = 96.0  # CSS pixels


def draw_case(
    scan: Preprocessed, dose: Volume | None, label: NDArray[Any] | None, *, in_hu: bool
) -> bytes:
    """Draws a case through its label, else its ROI, else the middle: a JPEG.

    Args:
      scan: the case on the model grid.
      dose: on its native grid; its isodose lines end where that grid ends.
      label: mask [X, Y, Z] on the model grid.
      in_hu: the image is in HU and has a fixed window; else the planes' own percentiles.
    """
    spacing = scan.grid.spacing
    centre = overlay_centre(scan.grid.shape, label, scan.roi)
    cuts = [plane.cut(scan.image, centre[plane.through]) for plane in PLANES]
    if in_hu:
        dark, bright = ((value - scan.mean) / scan.std for value in CT_WINDOW)
    else:
        dark, bright = grey_window(np.concatenate([cut.ravel() for cut in cuts]))
    figure, axes = _panels(np.array(scan.grid.shape) * spacing)
    for axis, plane, cut in zip(axes, PLANES, cuts, strict=True):
        index = centre[plane.through]
        draw_image(axis, plane, cut, spacing, (dark, bright))
        if dose is not None and scan.dmax is not None:
            draw_isodoses(axis, plane, dose, scan.dmax, scan.grid, index)
        for mask, line in ((scan.roi, REGION), (label, LABEL)):
            if mask is not None:
                draw_outline(axis, plane, plane.cut(mask, index), spacing, **line.matplotlib)
        if scan.box is not None:
            draw_box(axis, plane, scan.box, index, spacing)
        in_view(axis, plane, -0.5 * spacing, (np.array(scan.grid.shape) - 0.5) * spacing)
        title = f"{plane.name} {index + 1}/{scan.grid.shape[plane.through]}"
        draw_names(axis, plane, title, text_style(axis, 7))
    draw_scale_bar(axes[0], scan.grid.shape[0] * spacing[0], text_style(axes[0], 6))
    return canvas.jpeg(figure)


def _panels(extent: NDArray[np.float64]) -> tuple[Figure, list[Axes]]:
    """A black figure with an axis per plane, side by side, in proportion to a volume's mm."""
    across = np.array([extent[plane.across] for plane in PLANES])
    up = np.array([extent[plane.up] for plane in PLANES])
    gaps = GAP * (len(PLANES) + 1)
    scale = min((WIDTH - gaps) / across.sum(), (HEIGHT - 2 * GAP) / up.max())
    width, height = across.sum() * scale + gaps, up.max() * scale + 2 * GAP
    figure = Figure(figsize=(width / _PER_INCH, height / _PER_INCH), facecolor="black")
    axes, left = [], GAP
    for wide, high in zip(across * scale, up * scale, strict=True):
        place = (left / width, (height - high) / 2 / height, wide / width, high / height)
        axes.append(figure.add_axes(place))
        left += wide + GAP
    return figure, axes


def draw_isodoses(
    axis: Axes, plane: Plane, dose: Volume, dmax: float, grid: Space, index: int
) -> None:
    """Draws `ISODOSES` in a plane of a grid; lines break off at the dose grid's end."""
    # One voxel more on each side: a contour needs two, and a volume may be one voxel thick.
    first, count = np.full(3, -1.0), np.array(grid.shape) + 2
    first[plane.through], count[plane.through] = index, 1
    shift = np.eye(4)
    shift[:3, 3] = first
    there = index_map(dose.affine, grid.affine @ shift)
    values = plane.cut(resample(dose.array, there, count.tolist(), fill=np.nan), 0) / dmax
    known = values[np.isfinite(values)]
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    x, y = (np.arange(-1, grid.shape[a] + 1) * spacing[a] for a in (plane.across, plane.up))
    for share, line in ISODOSES.items():
        if known.size and known.min() < share <= known.max():
            axis.contour(x, y, np.ma.masked_invalid(values), [share], **line.matplotlib)
