"""Masks of several methods on the same slices, side by side, as in Figs. 4 and 5."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
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
_LETTERS = 22  # of a column's or row's title in a line
_LETTERS_PER_INCH = 12  # of the whole title


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
    names = [textwrap.fill(column, _LETTERS) for column in columns]
    sides = [
        "\n".join(textwrap.fill(line, _LETTERS) for line in row.title.split("\n")) for row in rows
    ]
    left = 0.12 + 0.18 * _lines(*sides)
    width = _INCHES * len(columns) + left
    title = textwrap.fill(title, int(width * _LETTERS_PER_INCH))
    bottom, top = 0.35, 0.12 + 0.2 * _lines(title) + 0.16 * _lines(*names)
    height = _INCHES * len(rows) + bottom + top
    figure = Figure(figsize=(width, height), facecolor="white")
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    figure.subplots_adjust(
        left=left / width,
        right=0.995,
        bottom=bottom / height,
        top=1 - top / height,
        wspace=0.03,
        hspace=0.03,
    )
    for axes, row, side in zip(panels, rows, sides, strict=True):
        axes[0].set_ylabel(side, fontsize=9)
        _draw_row(axes, row, columns)
    for axis, name in zip(panels[0], names, strict=True):
        axis.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=11, x=0.01, y=0.995, ha="left", va="top")
    _draw_legend(figure)
    canvas.save(figure, out)


def _lines(*texts: str) -> int:
    return max(text.count("\n") + 1 for text in texts)


def _draw_row(axes: Iterable[Axes], row: Row, columns: Sequence[str]) -> None:
    """The same slice and view in every panel."""
    plane, spacing, every = row.plane, row.spacing_mm, (row.truth, *row.masks.values())
    centre = overlay_centre(row.image.shape, *every)
    low, high = view_around(every, None, centre, spacing, row.image.shape)
    at = centre[plane.through]
    pixels, outline = plane.cut(row.image, at), plane.cut(row.truth, at)
    grey = grey_window(row.image)
    colours = (TRUTH, *[PREDICTION] * len(row.masks))
    for axis, column, mask, colour in zip(axes, columns, every, colours, strict=True):
        draw_image(axis, plane, pixels, spacing, grey)
        inside = plane.cut(mask, at)
        shade = np.zeros((*inside.shape, 4))
        shade[inside] = to_rgba(colour, _SHADE)
        axis.imshow(shade, origin="lower", extent=slice_extent(plane, pixels, spacing))
        draw_outline(axis, plane, outline, spacing, colors=TRUTH, linewidths=1.4)
        in_view(axis, plane, low, high)
        draw_names(axis, plane, row.said.get(column, ""), text_style(axis, 7))
        draw_scale_bar(axis, high[0] - low[0], text_style(axis, 6))


def _draw_legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], color=TRUTH, linewidth=1.8, label="Truth"),
        Patch(color=to_rgba(PREDICTION, _SHADE), label="A method's mask"),
    ]
    figure.legend(handles=handles, loc="lower left", ncols=len(handles), frameon=False, fontsize=9)
