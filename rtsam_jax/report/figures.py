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
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from rtsam_jax.errors import VolumeError
from rtsam_jax.report import canvas
from rtsam_jax.report.curves import plot_curves

__all__ = ["overlay_centre", "plot_curves", "plot_overlay"]

TRUTH, PREDICTION, BOX, ROI = canvas.ORANGE, canvas.SKY, canvas.WHITE, canvas.PURPLE
MARGIN_MM = 12.0  # shown around everything that is drawn
LEAST_VIEW_MM = 90.0  # a small lesion alone would show no anatomy to find it by

# Axis across, axis upwards, axis through the plane; letters left, right, top, bottom.
# Radiological: across axial and coronal planes the patient's right is on the left.
PLANES = (
    ("Axial", 0, 1, 2, "RLAP"),
    ("Coronal", 0, 2, 1, "RLSI"),
    ("Sagittal", 1, 2, 0, "APSI"),
)


def overlay_centre(
    shape: Sequence[int],
    truth: NDArray[Any] | None,
    prediction: NDArray[Any] | None,
    roi: NDArray[Any] | None,
) -> tuple[int, int, int]:
    """The voxel through which the planes go.

    The voxel nearest to the centroid of the first of truth, prediction and ROI that is not empty;
    the middle of the volume if all are. A voxel of the mask itself, since a curved structure's
    centroid lies outside of it and its planes could miss it.
    """
    for mask in (truth, prediction, roi):
        where = np.argwhere(mask) if mask is not None else np.empty((0, 3))
        if len(where):
            nearest = np.linalg.norm(where - where.mean(axis=0), axis=1).argmin()
            i, j, k = (int(index) for index in where[nearest])
            return i, j, k
    i, j, k = (size // 2 for size in shape)
    return i, j, k


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
    low, high = _view(masks, box, centre, spacing, image.shape)
    window = _window(image, low, high, spacing)
    figure = Figure(figsize=(12, 4.88), facecolor="white")
    axes = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.912, bottom=0.112, wspace=0.02)
    for axis, plane in zip(axes, PLANES, strict=True):
        _draw_plane(axis, plane, image, masks, box, centre, spacing, (low, high), window)
    figure.text(0.01, 0.956, title, ha="left", va="center", fontsize=13)
    _draw_legend(figure, masks, box)
    canvas.save(figure, out)


def _view(
    masks: Mapping[str, NDArray[np.bool_]],
    box: NDArray[Any] | None,
    centre: tuple[int, int, int],
    spacing: NDArray[np.float64],
    shape: Sequence[int],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Limits in mm: a cube around all masks and the box, so that all planes share one scale."""
    first, last = np.array(centre), np.array(centre)
    for mask in masks.values():
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


def _window(
    image: NDArray[Any],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    spacing: NDArray[np.float64],
) -> tuple[float, float]:
    """Grey values drawn black and white: percentiles of the part in view."""
    first = np.maximum(np.ceil(low / spacing), 0).astype(int)
    last = np.maximum(np.floor(high / spacing), 0).astype(int) + 1
    part = image[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]
    part = part[np.isfinite(part)]
    if not part.size:
        return 0.0, 1.0
    dark, bright = (float(v) for v in np.percentile(part, [1.0, 99.5]))
    return dark, bright if bright > dark else dark + 1.0


def _draw_plane(
    axis: Axes,
    plane: tuple[str, int, int, int, str],
    image: NDArray[Any],
    masks: Mapping[str, NDArray[np.bool_]],
    box: NDArray[Any] | None,
    centre: tuple[int, int, int],
    spacing: NDArray[np.float64],
    view: tuple[NDArray[np.float64], NDArray[np.float64]],
    window: tuple[float, float],
) -> None:
    name, across, up, through, letters = plane
    index = centre[through]

    def cut(volume: NDArray[Any]) -> NDArray[Any]:
        return np.take(volume, index, axis=through).T  # rows go up, columns across

    edges = [-0.5 * spacing[a] for a in (across, up)]
    ends = [(image.shape[a] - 0.5) * spacing[a] for a in (across, up)]
    axis.set_facecolor("black")
    axis.imshow(
        cut(image),
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        origin="lower",
        extent=(edges[0], ends[0], edges[1], ends[1]),
        interpolation="bilinear",
    )
    # A ring of background closes outlines that touch the volume's border.
    x = np.arange(-1, image.shape[across] + 1) * spacing[across]
    y = np.arange(-1, image.shape[up] + 1) * spacing[up]
    styles = {"dose_roi": (ROI, 1.6, "dotted"), "truth": (TRUTH, 2.0, "solid")}
    styles["prediction"] = (PREDICTION, 1.5, "solid")
    for key, (colour, width, line) in styles.items():
        outline = np.pad(cut(masks[key]), 1) if key in masks else np.zeros(0, bool)
        if outline.any():
            axis.contour(
                x, y, outline.astype(float), [0.5], colors=colour, linewidths=width, linestyles=line
            )
    if box is not None:
        _draw_box(axis, np.asarray(box), across, up, through, index, spacing)
    axis.set_xlim(view[0][across], view[1][across])
    axis.set_ylim(view[0][up], view[1][up])
    axis.invert_xaxis()  # R, and in the sagittal plane A, to the left
    axis.set_xticks([])
    axis.set_yticks([])
    text: dict[str, Any] = {"color": "white", "transform": axis.transAxes, "fontsize": 11}
    text["bbox"] = {"facecolor": "black", "alpha": 0.55, "edgecolor": "none", "pad": 1.5}
    for letter, at in zip(
        letters, ((0.03, 0.5), (0.97, 0.5), (0.5, 0.97), (0.5, 0.03)), strict=True
    ):
        axis.text(*at, letter, ha="center", va="center", fontweight="bold", **text)
    axis.text(0.02, 0.98, f"{name}, slice {index}", ha="left", va="top", **text)
    _draw_scale_bar(axis, view[1][0] - view[0][0], text)


def _draw_box(
    axis: Axes,
    box: NDArray[Any],
    across: int,
    up: int,
    through: int,
    index: int,
    spacing: NDArray[np.float64],
) -> None:
    """The box's outline in a plane; faint where the plane passes beside the box."""
    low, high = (box[0] - 0.5) * spacing, (box[1] + 0.5) * spacing
    crossed = box[0][through] <= index <= box[1][through]
    axis.add_patch(
        Rectangle(
            (low[across], low[up]),
            high[across] - low[across],
            high[up] - low[up],
            fill=False,
            edgecolor=BOX,
            linewidth=1.2,
            linestyle=(0, (6, 4)),
            alpha=1.0 if crossed else 0.35,
            # A dark rim, so that it shows on bone as well.
            path_effects=[withStroke(linewidth=2.2, foreground="black")],
        )
    )


def _draw_scale_bar(axis: Axes, side_mm: float, text: Mapping[str, Any]) -> None:
    length = max((n for n in (1, 2, 5, 10, 20, 50, 100) if n <= side_mm / 4), default=1)
    share = length / side_mm
    axis.plot(
        [0.03, 0.03 + share], [0.035, 0.035], color="white", linewidth=2.5, transform=axis.transAxes
    )
    small = {**text, "fontsize": 9}
    axis.text(0.03 + share / 2, 0.05, f"{length} mm", ha="center", va="bottom", **small)


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
