"""Three-plane overlays of a prediction on its image; the training curves are in `curves`.

Drawn through matplotlib's object-oriented interface on the Agg canvas: no display, no global state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from rtsam_jax.errors import VolumeError
from rtsam_jax.report import canvas
from rtsam_jax.report.planes import (
    BOX,
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
    view_around,
)

__all__ = ["overlay_centre", "plot_overlay"]

PREDICTION = canvas.SKY


def plot_overlay(
    image: NDArray[Any],
    truth: NDArray[Any] | None,
    prediction: NDArray[Any],
    dose_roi: NDArray[Any] | None,
    box: NDArray[Any] | None,
    spacing_mm: Sequence[float] | NDArray[Any],
    title: str,
    out: Path,
) -> None:
    """Draws truth, prediction, dose ROI and dose box on the image in three planes.

    All planes have one scale in mm and show the surroundings of what is drawn, in radiological
    convention: the patient's right is on the left of axial and coronal planes.

    Args:
      image: [X,Y,Z] along R, A, S (RAS+), any unit; windowed to its 1st to 99.5th percentile.
      truth: Mask [X,Y,Z], or None where there is none.
      prediction: Mask [X,Y,Z].
      dose_roi: High-dose mask [X,Y,Z], or None.
      box: (2, 3) inclusive voxel indices of the dose box, or None.
      spacing_mm: Voxel size along each axis in mm.
      title: Case, task, Dice.
      out: PNG.

    Raises:
      VolumeError: The arrays' shapes differ, or the spacing is not three positive lengths.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (3,) or not np.all(spacing > 0):
        raise VolumeError(f"spacing_mm is {spacing_mm!r}, but must be three positive lengths.")
    named = {"truth": truth, "prediction": prediction, "dose_roi": dose_roi}
    masks = {name: np.asarray(m) > 0 for name, m in named.items() if m is not None}
    for name, mask in masks.items():
        if mask.shape != image.shape or image.ndim != 3:
            raise VolumeError(f"{name} has shape {mask.shape}, but the image has {image.shape}.")
    centre = overlay_centre(
        image.shape, masks.get("truth"), masks.get("prediction"), masks.get("dose_roi")
    )
    low, high = view_around(masks.values(), box, centre, spacing, image.shape)
    window = _window(image, low, high, spacing)
    figure = Figure(figsize=(12, 4.88), facecolor="white")
    axes = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.912, bottom=0.112, wspace=0.02)
    for axis, plane in zip(axes, PLANES, strict=True):
        _draw_plane(axis, plane, image, masks, box, centre, spacing, (low, high), window)
    figure.text(0.01, 0.956, title, ha="left", va="center", fontsize=13)
    _draw_legend(figure, masks, box)
    canvas.save(figure, out)


def _window(
    image: NDArray[Any],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    spacing: NDArray[np.float64],
) -> tuple[float, float]:
    """Grey values drawn black and white: percentiles of the part in view."""
    first = np.maximum(np.ceil(low / spacing), 0).astype(int)
    last = np.maximum(np.floor(high / spacing), 0).astype(int) + 1
    return grey_window(image[tuple(slice(a, b) for a, b in zip(first, last, strict=True))])


def _draw_plane(
    axis: Axes,
    plane: Plane,
    image: NDArray[Any],
    masks: Mapping[str, NDArray[np.bool_]],
    box: NDArray[Any] | None,
    centre: tuple[int, int, int],
    spacing: NDArray[np.float64],
    view: tuple[NDArray[np.float64], NDArray[np.float64]],
    window: tuple[float, float],
) -> None:
    index = centre[plane.through]
    draw_image(axis, plane, plane.cut(image, index), spacing, window)
    styles = {"dose_roi": (ROI, 1.6, "dotted"), "truth": (TRUTH, 2.0, "solid")}
    styles["prediction"] = (PREDICTION, 1.5, "solid")
    for key, (colour, width, line) in styles.items():
        if key in masks:
            style = {"colors": colour, "linewidths": width, "linestyles": line}
            draw_outline(axis, plane, plane.cut(masks[key], index), spacing, **style)
    if box is not None:
        draw_box(axis, plane, np.asarray(box), index, spacing)
    in_view(axis, plane, *view)
    draw_names(axis, plane, f"{plane.name}, slice {index}", text_style(axis, 11))
    draw_scale_bar(axis, view[1][0] - view[0][0], text_style(axis, 9))


def _draw_legend(figure: Figure, masks: Mapping[str, Any], box: NDArray[Any] | None) -> None:
    lines: list[tuple[str, str, dict[str, Any]]] = [
        ("truth", "Truth", {"color": TRUTH, "linewidth": 2.4}),
        ("prediction", "Prediction", {"color": PREDICTION, "linewidth": 2.0}),
        ("dose_roi", "High-dose region", {"color": ROI, "linewidth": 1.8, "linestyle": "dotted"}),
    ]
    handles = [
        Line2D([], [], label=label if masks[key].any() else f"{label} (empty)", **style)
        for key, label, style in lines
        if key in masks
    ]
    if box is not None:
        handles.append(Line2D([], [], color=BOX, linestyle=(0, (4, 2)), label="Dose box"))
    legend = figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.006, 0.008),
        ncols=len(handles),
        facecolor="#333333",
        labelcolor="white",
        edgecolor="none",
        fontsize=10,
    )
    legend.get_frame().set_alpha(1.0)
    figure.text(
        0.99,
        0.055,
        "Radiological display: the patient's right is on the left (axial, coronal).",
        ha="right",
        va="center",
        fontsize=9,
        color="#555555",
    )
