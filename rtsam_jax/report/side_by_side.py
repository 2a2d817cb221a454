"""Masks of several methods on the same slices, side by side, as in Figs. 4 and 5."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from rtsam_jax.report import canvas
from rtsam_jax.report.planes import (
    TRUTH,
    Plane,
    draw_image,
    draw_names,
    draw_outline,
    draw_scale_bar,
    grey_window,
    in_view,
    overlay_centre,
    slice_extent,
    text_style,
    view_around,
)

PREDICTION = canvas.SKY
_INCHES = 1.9  # of a panel
_SHADE = 0.45  # opacity of a mask
_LETTERS = 22  # of a column's title in a line


@dataclass(frozen=True)
class Row:
    """A slice through the truth, and the masks that stand on it.

    Attributes:
        title: at the row's left end.
        plane: which way the slice lies.
        image: [X, Y, Z], RAS+, any unit.
        truth: mask [X, Y, Z].
        masks: by column, [X, Y, Z]; every row has the same columns.
        said: by column, what is written on it, such as its Dice.
        spacing_mm: [3].
    """

    title: str
    plane: Plane
    image: NDArray[Any]
    truth: NDArray[np.bool_]
    masks: Mapping[str, NDArray[np.bool_]]
    spacing_mm: NDArray[np.float64]
    said: Mapping[str, str] = field(default_factory=dict)


def plot_side_by_side(rows: Sequence[Row], title: str, out: Path) -> None:
    """Draws a row of panels for each slice: the truth, then every method's mask with its outline.

    The slice goes through the truth, so that no method chooses what is seen; the view holds all
    masks of its row, a method's far-off ones too.

    Args:
        rows: at least one.
        out: PNG.
    """
    columns = ["Truth", *rows[0].masks]
    height = _INCHES * len(rows)
    margin = 0.12 + 0.18 * max(row.title.count("\n") + 1 for row in rows)
    figure = Figure(figsize=(_INCHES * len(columns) + margin, height + 0.95), facecolor="white")
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    edge = margin / figure.get_figwidth()
    low, high = 0.35 / figure.get_figheight(), 1 - 0.6 / figure.get_figheight()
    figure.subplots_adjust(left=edge, right=0.995, bottom=low, top=high, wspace=0.03, hspace=0.03)
    for axes, row in zip(panels, rows, strict=True):
        axes[0].set_ylabel(row.title, fontsize=9)
        masks = dict(zip(columns, (row.truth, *row.masks.values()), strict=True))
        for axis, (column, mask) in zip(axes, masks.items(), strict=True):
            colour = TRUTH if column == columns[0] else PREDICTION
            _draw_panel(axis, row, mask, colour, row.said.get(column, ""))
    for axis, column in zip(panels[0], columns, strict=True):
        axis.set_title(textwrap.fill(column, _LETTERS), fontsize=9)
    figure.suptitle(title, fontsize=11, x=0.01, y=0.995, ha="left", va="top")
    _draw_legend(figure)
    canvas.save(figure, out)


def _draw_panel(axis: Axes, row: Row, mask: NDArray[np.bool_], colour: str, said: str) -> None:
    plane, spacing = row.plane, row.spacing_mm
    centre = overlay_centre(row.image.shape, row.truth, *row.masks.values())
    low, high = view_around(
        (row.truth, *row.masks.values()), None, centre, spacing, row.image.shape
    )
    pixels = plane.cut(row.image, centre[plane.through])
    draw_image(axis, plane, pixels, spacing, grey_window(row.image))
    inside = plane.cut(mask, centre[plane.through])
    shade = np.zeros((*inside.shape, 4))
    shade[inside] = to_rgba(colour, _SHADE)
    axis.imshow(shade, origin="lower", extent=slice_extent(plane, pixels, spacing))
    outline = plane.cut(row.truth, centre[plane.through])
    draw_outline(axis, plane, outline, spacing, colors=TRUTH, linewidths=1.4)
    in_view(axis, plane, low, high)
    draw_names(axis, plane, said, text_style(axis, 7))
    draw_scale_bar(axis, high[0] - low[0], text_style(axis, 6))


def _draw_legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], color=TRUTH, linewidth=1.8, label="Truth"),
        Patch(color=to_rgba(PREDICTION, _SHADE), label="A method's mask"),
    ]
    figure.legend(handles=handles, loc="lower left", ncols=len(handles), frameon=False, fontsize=9)
