"""A prediction in one picture: three planes through it, and below how uncertain it is where.

Drawn on the image's original grid. Above: isodose lines, box, outline of the mask. Below: the
entropy of the probability as a translucent layer, from 0 bit (certain) to 1 bit (one half).
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from rtsam_jax.data.nifti import Volume
from rtsam_jax.report import canvas
from rtsam_jax.report.case_picture import CT_WINDOW, ISODOSES, draw_isodoses
from rtsam_jax.report.planes import (
    BOX,
    DASHES,
    PLANES,
    Plane,
    draw_box,
    draw_image,
    draw_names,
    draw_outline,
    draw_scale_bar,
    grey_window,
    in_view,
    slice_extent,
    text_style,
    view_around,
)

PREDICTION = canvas.ORANGE
ENTROPY = "inferno"
_OPAQUE = 0.8  # of the layer where the entropy is 1 bit; nothing is drawn at 0
_DIMMED = 0.6  # of the image below the layer, so that bone does not outshine it
_LINE_CHARACTERS, _LINES = 165, 3  # of the text above the planes
_ISODOSE_NAMES = ("20 %", "50 %", "80 %", "95 % of the largest dose")


def draw_prediction(
    image: Volume,
    mask: NDArray[np.bool_],
    entropy: NDArray[np.float32],
    box: NDArray[Any] | None,
    centre: tuple[int, int, int],
    *,
    dose: Volume | None,
    dmax: float | None,
    in_hu: bool,
    title: str,
    text: str,
    out: Path,
) -> None:
    """Draws a prediction as a PNG, whole or not at all; radiological display.

    Args:
      image: on its original grid, axes along R, A, S.
      mask: [X, Y, Z], on the same grid, as all arrays; may be empty.
      entropy: [X, Y, Z], bits.
      box: (2, 3) first and last index, or None; fractions are of voxels.
      centre: the voxel that the planes go through.
      dose: on its native grid, or None; its isodose lines end where that grid ends.
      dmax: its largest value, which isodoses are shares of.
      in_hu: the image is in HU and has a fixed window; else the planes' own percentiles.
      title: one line, in large.
      text: below it, in small: three lines at most, the rest is cut.
      out: the file.
    """
    spacing = image.spacing
    view = view_around([mask], box, centre, spacing, image.shape)
    cuts = [plane.cut(image.array, centre[plane.through]) for plane in PLANES]
    window = CT_WINDOW if in_hu else grey_window(np.concatenate([cut.ravel() for cut in cuts]))
    figure = Figure(figsize=(12, 9.2), facecolor="white")
    rows = figure.subplots(2, 3)
    figure.subplots_adjust(
        left=0.01, right=0.93, top=0.895, bottom=0.055, wspace=0.02, hspace=0.025
    )
    for column, (plane, pixels) in enumerate(zip(PLANES, cuts, strict=True)):
        index = centre[plane.through]
        outline = plane.cut(mask, index)
        for axis in rows[:, column]:
            draw_image(axis, plane, pixels, spacing, window)
        above, below = rows[:, column]
        if dose is not None and dmax is not None:
            draw_isodoses(above, plane, dose, dmax, image, index)
        below.images[0].set_alpha(_DIMMED)
        _draw_entropy(below, plane, plane.cut(entropy, index), spacing)
        draw_outline(above, plane, outline, spacing, colors=PREDICTION, linewidths=1.8)
        draw_outline(below, plane, outline, spacing, colors=canvas.WHITE, linewidths=0.8)
        if box is not None:
            draw_box(above, plane, box, index, spacing)
        for axis, name in ((above, plane.name), (below, "Entropy")):
            in_view(axis, plane, *view)
            place = f"{name}, slice {index + 1}/{image.shape[plane.through]}"
            draw_names(axis, plane, place, text_style(axis, 10))
    draw_scale_bar(rows[0, 0], float(view[1][0] - view[0][0]), text_style(rows[0, 0], 9))
    scale = figure.add_axes((0.945, 0.1, 0.012, 0.33))
    colours = ScalarMappable(Normalize(0, 1), matplotlib.colormaps[ENTROPY])
    figure.colorbar(colours, cax=scale, label="bit")
    figure.text(0.01, 0.975, title, ha="left", va="center", fontsize=13)
    said = textwrap.wrap(text, _LINE_CHARACTERS, max_lines=_LINES, placeholder=" ...")
    figure.text(0.01, 0.957, "\n".join(said), ha="left", va="top", fontsize=9, linespacing=1.3)
    _draw_legend(figure, empty=not mask.any(), dose=dose is not None, box=box is not None)
    canvas.save(figure, out)


def _draw_entropy(
    axis: Axes, plane: Plane, pixels: NDArray[np.float32], spacing: NDArray[np.float64]
) -> None:
    axis.imshow(
        pixels,
        cmap=ENTROPY,
        vmin=0,
        vmax=1,
        alpha=_OPAQUE * np.clip(pixels, 0, 1),
        origin="lower",
        extent=slice_extent(plane, pixels, spacing),
        interpolation="nearest",
    )


def _draw_legend(figure: Figure, *, empty: bool, dose: bool, box: bool) -> None:
    name = "Predicted mask (empty)" if empty else "Predicted mask"
    handles = [Line2D([], [], color=PREDICTION, linewidth=2.2, label=name)]
    if dose:
        handles += [
            Line2D(
                [],
                [],
                color=line.colour,
                linewidth=1.6,
                linestyle=line.matplotlib["linestyles"][0],
                label=label,
            )
            for line, label in zip(ISODOSES.values(), _ISODOSE_NAMES, strict=True)
        ]
    if box:
        handles.append(Line2D([], [], color=BOX, linestyle=(0, DASHES), label="Box"))
    legend = figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.006, 0.006),
        ncols=len(handles),
        facecolor="#333333",
        labelcolor="white",
        edgecolor="none",
        fontsize=9,
        columnspacing=1.4,
    )
    legend.get_frame().set_alpha(1.0)
    figure.text(
        0.99,
        0.026,
        "Radiological display: the patient's right is on the left.",
        ha="right",
        va="center",
        fontsize=8,
        color="#555555",
    )
