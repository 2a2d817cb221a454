"""One case's high-dose masks at several thresholds, as in Fig. 7."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from rtsam_jax.data.cases import Case
from rtsam_jax.data.nifti import read_label, read_volume
from rtsam_jax.data.preprocess import Preprocessed, PreprocessSpec, label_to_grid
from rtsam_jax.data.scans import preprocess_scan, scan_source
from rtsam_jax.errors import IncompleteCase
from rtsam_jax.geometry import index_map, resample
from rtsam_jax.report import canvas
from rtsam_jax.report.planes import (
    PLANES,
    ROI,
    TRUTH,
    Plane,
    draw_box,
    draw_image,
    draw_outline,
    grey_window,
    in_view,
    overlay_centre,
)

_INCHES = 1.9  # of a panel
_SHADE = 0.5  # opacity of a mask
_LEVELS = np.linspace(0.1, 1.0, 10)  # of the largest dose


def draw_dose_masks(
    case: Case,
    modality: Mapping[str, str],
    spec: PreprocessSpec,
    taus: Sequence[float],
    heading: str,
    out: Path,
) -> None:
    """Draws image, dose and the mask at each tau, in three planes through the label.

    Args:
        case: with dose and label.
        modality: by task.
        spec: grid and ROI; its tau is replaced.
        heading: dataset and its kind.
        out: PNG.

    Raises:
        IncompleteCase: dose or label is missing.
        EmptyROI: no voxel of the model grid reaches a threshold.
    """
    if case.dose is None or case.label is None:
        raise IncompleteCase(f"Case {case.id} needs a dose and a label to be drawn; add them.")
    scans = {
        f"tau {tau:g}": preprocess_scan(scan_source(case, modality, at), at, name=case.id)
        for tau, at in ((tau, dataclasses.replace(spec, tau=tau)) for tau in taus)
    }
    grid = next(iter(scans.values())).grid
    native = read_volume(case.dose, what="dose")
    dose = resample(native.array, index_map(native.affine, grid.affine), grid.shape)
    truth = label_to_grid(read_label(case.label, case.label_value), grid, name=case.id) > 0
    columns: dict[str, Preprocessed | NDArray[Any] | None] = {"image": None, "dose": dose, **scans}
    image = next(iter(scans.values())).image
    figure = Figure(figsize=(_INCHES * len(columns), _INCHES * 3 + 0.8), facecolor="white")
    panels = figure.subplots(3, len(columns))
    figure.subplots_adjust(left=0.01, right=0.99, top=0.9, bottom=0.06, wspace=0.04, hspace=0.04)
    for row, plane in zip(panels, PLANES, strict=True):
        for axis, (title, over) in zip(row, columns.items(), strict=True):
            _draw_panel(axis, plane, image, truth, over, grid.affine)
            if plane is PLANES[0]:
                axis.set_title(title, fontsize=10)
    figure.suptitle(
        f"High-dose masks (Fig. 7): {heading}, {case.id}", fontsize=11, x=0.01, ha="left"
    )
    _draw_legend(figure)
    canvas.save(figure, out)


def _draw_panel(
    axis: Axes,
    plane: Plane,
    image: NDArray[Any],
    truth: NDArray[np.bool_],
    over: Preprocessed | NDArray[Any] | None,
    affine: NDArray[np.float64],
) -> None:
    """A plane of the image with the label's outline, and over it a dose, a mask or nothing."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    index = overlay_centre(image.shape, truth)[plane.through]
    draw_image(axis, plane, plane.cut(image, index), spacing, grey_window(image))
    if isinstance(over, Preprocessed):
        roi, box = over.require_dose(name="a case", purpose="its picture")
        shade = np.zeros((*plane.cut(roi, index).shape, 4))
        shade[plane.cut(roi, index) > 0] = to_rgba(ROI, _SHADE)
        axis.imshow(shade, origin="lower", extent=axis.images[0].get_extent())
        draw_box(axis, plane, box, index, spacing)
    elif over is not None:
        cut = plane.cut(over, index)
        x, y = (np.arange(image.shape[a]) * spacing[a] for a in (plane.across, plane.up))
        axis.contourf(x, y, cut, _LEVELS * over.max(), cmap="inferno", alpha=0.8)
    outline = plane.cut(truth, index)
    draw_outline(axis, plane, outline, spacing, colors=TRUTH, linewidths=1.4)
    in_view(axis, plane, -0.5 * spacing, (np.array(image.shape) - 0.5) * spacing)


def _draw_legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], color=TRUTH, linewidth=1.8, label="Truth"),
        Patch(color=to_rgba(ROI, _SHADE), label="High-dose mask"),
        Line2D([], [], color="black", linestyle="--", linewidth=1.2, label="Its box"),
    ]
    figure.legend(handles=handles, loc="lower left", ncols=len(handles), frameon=False, fontsize=9)
