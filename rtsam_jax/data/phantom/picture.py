"""Draws phantom cases in three planes with isodoses, box and lesion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import nibabel
import numpy as np
from scipy import ndimage

from rtsam_jax.data.nifti import Volume
from rtsam_jax.data.phantom.dataset import make_case
from rtsam_jax.data.phantom.dose import reorder
from rtsam_jax.prompts.dose import box_corners, largest_component

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TAU = 0.8
ISODOSES = (0.3, 0.5, 0.95)  # share of Dmax; TAU is drawn as the ROI
_STEP_MM = 1.0


def _isotropic(volume: Volume, like: Volume, outside: float = 0.0) -> np.ndarray:
    """`volume` on the cells of `like` refined to cubes of 1 mm; `outside` where it ends."""
    shape = np.ceil(np.array(like.array.shape) * like.spacing / _STEP_MM).astype(int)
    affine = like.affine.copy()
    affine[:3, :3] *= _STEP_MM / like.spacing
    matrix = np.linalg.inv(volume.affine) @ affine
    return ndimage.affine_transform(
        np.asarray(volume.array, np.float32),
        matrix[:3, :3],
        matrix[:3, 3],
        output_shape=tuple(shape),
        order=1,
        mode="constant",
        cval=outside,
    )


def _to_ras(volume: Volume) -> Volume:
    codes = "".join(nibabel.aff2axcodes(volume.affine))
    return volume if codes == "RAS" else reorder(volume, "RAS")


def _slices(lesion: np.ndarray, twin: np.ndarray | None) -> np.ndarray:
    """Which plane to draw along each axis, `[3]`.

    The lesion's middle; with a twin, axial and coronal planes go where both are widest.
    """
    at = np.round(np.argwhere(lesion).mean(0)).astype(int)
    if twin is not None:
        for axis in (1, 2):
            others = tuple(a for a in range(3) if a != axis)
            both = np.minimum(lesion.sum(others), twin.sum(others))
            at[axis] = both.argmax() if both.any() else at[axis]
    return at


def draw(path: Path, *, seed: int = 0, first: int = 0, twins: bool = False) -> None:
    """Draws three consecutive cases, one row per task, into a PNG.

    Args:
      path: of the picture.
      seed: of the data set.
      first: index of the first case; a multiple of 3 starts with `orn`.
      twins: draw those with a look-alike.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image  # matplotlib needs it anyway

    figure = Figure(figsize=(10.0, 10.2), facecolor="black", dpi=80)
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 3)
    for row, index in zip(axes, range(first, first + 3), strict=True):
        case = make_case(index, seed=seed, twins=twins)
        image, dose, label = (_to_ras(v) for v in (case.image, case.dose, case.label))
        values = _isotropic(image, image, float(image.array.min()))
        gray = _isotropic(dose, image, np.nan) / dose.array.max()
        lesion = _isotropic(label, image) > 0.5
        twin = None if case.twin is None else _isotropic(_to_ras(case.twin), image) > 0.5
        roi = largest_component(gray >= TAU)
        box = box_corners(roi)
        assert box is not None
        at = _slices(lesion, twin)
        masks = [(roi, "#ffe14d"), (lesion, "#ff3b30")]
        if twin is not None:
            masks.append((twin, "#35e06a"))
        window = (
            (-350.0, 850.0) if case.task == "orn" else (0.0, float(np.percentile(values, 99.3)))
        )
        for plane, axis in enumerate((2, 1, 0)):
            _plane(row[plane], values, gray, masks, box, axis, at, window)
        volume = case.label.array.sum() * np.prod(case.label.spacing) / 1000
        row[0].set_title(
            f"{case.id}: lesion {volume:.1f} mL, ROI {roi.sum() / 1000:.0f} mL, "
            f"{case.record['site']}, {case.record['prescription_gy']:.0f} Gy"
            + (f", side: {case.record['side']}" if twins else ""),
            color="white",
            fontsize=9,
            loc="left",
        )
    figure.text(
        0.01,
        0.006,
        "synthetic; right of the patient on the left. "
        "yellow 0.8 Dmax (ROI), white its box, blue 0.3 / 0.5, orange 0.95 Dmax, red lesion"
        + (", green its twin" if twins else ""),
        color="white",
        fontsize=8,
    )
    figure.subplots_adjust(0.005, 0.03, 0.995, 0.975, 0.01, 0.06)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
    # Sixteen steps per channel keep the file small.
    Image.fromarray(np.ascontiguousarray(pixels & 0xF0)).save(path, optimize=True)


def _plane(
    ax: Axes,
    values: np.ndarray,
    gray: np.ndarray,
    masks: list[tuple[np.ndarray, str]],
    box: np.ndarray,
    axis: int,
    at: np.ndarray,
    window: tuple[float, float],
) -> None:
    """One slice through the lesion, seen as radiologists do: the patient's right on the left."""
    others = [a for a in range(3) if a != axis]
    mirror = axis != 0

    def cut(array: np.ndarray) -> np.ndarray:
        plane = np.take(array, at[axis], axis=axis).T
        return plane[:, ::-1] if mirror else plane

    ax.imshow(cut(values), cmap="gray", origin="lower", vmin=window[0], vmax=window[1])
    ax.contour(cut(gray), ISODOSES, colors=["#3a6fd8", "#58b7ff", "#ff9d2e"], linewidths=0.7)
    for mask, colour in masks:
        plane = cut(mask).astype(float)
        if plane.any():
            ax.contour(plane, [0.5], colors=[colour], linewidths=1.0)
    x, y = box[:, others[0]], box[:, others[1]]
    if mirror:
        x = values.shape[others[0]] - 1 - x
    ax.plot(x[[0, 1, 1, 0, 0]], y[[0, 0, 1, 1, 0]], color="white", linewidth=0.8)
    ax.set_axis_off()
