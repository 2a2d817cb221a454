"""Figures: read back as pixels and as drawn objects; a person has looked at them as well."""

from __future__ import annotations

import json
import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from rtsam_jax.errors import MissingFile, UnreadableFile, VolumeError
from rtsam_jax.report import canvas, figures
from rtsam_jax.report.curves import plot_curves, read_curves, running_mean
from rtsam_jax.report.figures import overlay_centre, plot_overlay

SHAPE, SPACING = (40, 50, 30), (2.0, 2.0, 3.0)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """Collects the matplotlib figures as they are saved."""
    kept: list = []
    save = canvas.save
    monkeypatch.setattr(
        canvas, "save", lambda figure, out: (kept.append(figure), save(figure, out))
    )
    return kept


def lines(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def cuboid(low: tuple[int, int, int], high: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def shows(path: Path, colour: str) -> bool:
    """Whether some pixel of a PNG has this colour."""
    pixels = matplotlib.image.imread(path)[..., :3]
    return bool((np.abs(pixels - np.array(to_rgb(colour))).max(axis=-1) < 0.02).any())


def test_curves_sort_names_into_panels(tmp_path: Path, drawn: list) -> None:
    records = [
        {"step": s, "loss": 2 / s, "dice_ce": 1 / s, "dice": 0.5, "lr": 3e-4, "grad_norm": 1.0}
        for s in range(1, 101)
    ]
    plot_curves(lines(tmp_path / "m.jsonl", records), tmp_path / "curves.png")
    assert matplotlib.image.imread(tmp_path / "curves.png").ndim == 3
    loss, dice, rate = drawn[0].axes
    labels = [[t.get_text() for t in a.get_legend().get_texts()] for a in (loss, dice)]
    assert labels == [["total", "Dice-CE, whole crop"], ["text and box, no clicks"]]
    # Raw and smoothed, each over all steps; one line for the learning rate, in its unit.
    assert [len(line.get_xdata()) for line in loss.lines] == [100] * 4
    assert rate.lines[0].get_ydata() == pytest.approx([3.0] * 100)
    assert "10^{-4}" in rate.get_title(loc="left")


def test_curves_of_one_step_and_of_dice_alone(tmp_path: Path, drawn: list) -> None:
    plot_curves(lines(tmp_path / "m.jsonl", [{"step": 7, "dice": 0.25}]), tmp_path / "c.png")
    assert drawn[0].axes[1].lines[0].get_ydata() == pytest.approx([0.25])
    assert drawn[0].axes[0].texts[0].get_text() == "not logged"


def test_a_resumed_and_a_killed_log_are_read(tmp_path: Path) -> None:
    path = lines(tmp_path / "m.jsonl", [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}])
    with path.open("a") as file:
        file.write('{"step": 2, "loss": 5.0, "note": "resumed"}\n\n{"step": 3, "lo')
    curves = read_curves(path)
    assert list(curves) == ["loss"]
    assert curves["loss"][0].tolist() == [1, 2] and curves["loss"][1].tolist() == [1.0, 5.0]


def test_bad_logs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="none.jsonl"):
        plot_curves(tmp_path / "none.jsonl", tmp_path / "c.png")
    broken = tmp_path / "broken.jsonl"
    for text in ('{"step": 1\n{"step": 2, "loss": 1}\n', '{"loss": 1}\n', "[1]\n"):
        broken.write_text(text)
        with pytest.raises(UnreadableFile, match="Line 1"):
            plot_curves(broken, tmp_path / "c.png")
    with pytest.raises(UnreadableFile, match="no loss"):
        plot_curves(lines(broken, [{"step": 1, "other": 1}]), tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()


def test_running_mean() -> None:
    assert running_mean(np.array([1.0, 2.0, 6.0, 4.0]), 3).tolist() == [1.5, 3.0, 4.0, 5.0]
    assert running_mean(np.array([1.0, math.nan, 3.0]), 3).tolist() == [1.0, 2.0, 3.0]
    assert running_mean(np.array([1.0, 2.0]), 1).tolist() == [1.0, 2.0]
    assert running_mean(np.array([1.0, 3.0]), 99).tolist() == [2.0, 2.0]
    assert np.isnan(running_mean(np.full(3, math.nan), 3)).all()


def test_the_planes_go_through_the_truth_then_what_else_there_is() -> None:
    truth, prediction = cuboid((3, 3, 3), (6, 6, 6)), cuboid((10, 20, 8), (13, 23, 11))
    empty = np.zeros(SHAPE, bool)
    assert overlay_centre(SHAPE, truth, prediction, None) == (4, 4, 4)
    assert overlay_centre(SHAPE, None, prediction, truth) == (11, 21, 9)
    assert overlay_centre(SHAPE, empty, empty, truth) == (4, 4, 4)
    assert overlay_centre(SHAPE, empty, empty, None) == (20, 25, 15)


def test_the_planes_hit_a_curved_structure_whose_centroid_is_outside() -> None:
    x, y, _ = np.indices(SHAPE)
    radius = np.hypot(x - 20, y - 25)
    arch = (radius > 10) & (radius < 13) & (y >= 25)
    assert arch[overlay_centre(SHAPE, arch, None, None)]


def overlay(out: Path, **changes) -> Path:
    """Draws a grey volume with a bright marker on the patient's right, anterior, superior."""
    image = np.full(SHAPE, 0.2, np.float32)
    image[30:34, 35:39, 20:23] = 1.0
    arguments: dict = {
        "image": image,
        "truth": cuboid((18, 22, 12), (24, 30, 18)),
        "prediction": cuboid((20, 22, 12), (26, 30, 18)),
        "dose_roi": cuboid((10, 12, 6), (32, 40, 24)),
        "box": np.array([[10, 12, 6], [31, 39, 23]]),
        "spacing_mm": SPACING,
        "title": "synthetic",
        "out": out,
    }
    plot_overlay(**{**arguments, **changes})
    return out


def test_overlay_shows_all_outlines(tmp_path: Path, drawn: list) -> None:
    path = overlay(tmp_path / "o.png")
    for colour in (figures.TRUTH, figures.PREDICTION, figures.ROI, figures.BOX):
        assert shows(path, colour)
    texts = [t.get_text() for t in drawn[0].legends[0].get_texts()]
    assert texts == ["Truth", "Prediction", "High-dose region", "Dose box"]
    assert any("Radiological" in t.get_text() for t in drawn[0].texts)
    assert [p.name for p in tmp_path.iterdir()] == ["o.png"]


def test_overlay_without_truth_dose_or_prediction(tmp_path: Path, drawn: list) -> None:
    empty = np.zeros(SHAPE, bool)
    changes = {"truth": None, "prediction": empty, "dose_roi": None, "box": None}
    path = overlay(tmp_path / "o.png", **changes)
    assert [t.get_text() for t in drawn[0].legends[0].get_texts()] == ["Prediction (empty)"]
    assert not shows(path, figures.TRUTH)


def letters_at(axis, places: str) -> list[str]:
    """The one-letter texts of an axis by place: left, right, top, bottom."""
    found = {t.get_position(): t.get_text() for t in axis.texts if len(t.get_text()) == 1}
    where = {"left": (0.03, 0.5), "right": (0.97, 0.5), "top": (0.5, 0.97), "bottom": (0.5, 0.03)}
    return [found[where[place]] for place in places.split()]


def test_overlay_is_radiological_and_its_letters_are_true(tmp_path: Path, drawn: list) -> None:
    overlay(tmp_path / "o.png")
    corners = "left right top bottom"
    axial, coronal, sagittal = drawn[0].axes
    assert letters_at(axial, corners) == ["R", "L", "A", "P"]
    assert letters_at(coronal, corners) == ["R", "L", "S", "I"]
    assert letters_at(sagittal, corners) == ["A", "P", "S", "I"]
    # Where voxels lie on the canvas: rising index (R, A, S) moves to the letter of its direction.
    for axis, across, up in ((axial, 0, 1), (coronal, 0, 2), (sagittal, 1, 2)):
        here = axis.transData.transform((20.0, 20.0))
        further = axis.transData.transform((20.0 + SPACING[across], 20.0 + SPACING[up]))
        assert further[0] < here[0] and further[1] > here[1]


def test_overlay_pixels_stand_where_the_letters_say(tmp_path: Path, drawn: list) -> None:
    # A marker in the truth's own axial plane, to the patient's right and front.
    image = np.zeros(SHAPE, np.float32)
    image[28:32, 34:38] = 1.0
    path = overlay(tmp_path / "o.png", image=image, dose_roi=None, box=None)
    pixels = matplotlib.image.imread(path)[..., :3]
    height, width = pixels.shape[:2]
    frame = drawn[0].axes[0].get_position()
    panel = pixels[
        int(height * (1 - frame.y1)) : int(height * (1 - frame.y0)),
        int(width * frame.x0) : int(width * frame.x1),
    ]
    # Without the letters and labels, which keep to the panel's rim and upper left.
    rows, columns = np.nonzero(panel.min(axis=-1) > 0.95)
    side = len(panel)
    inner = (rows > 0.12 * side) & (rows < 0.88 * side)
    inner &= (columns > 0.12 * side) & (columns < 0.88 * side)
    assert inner.any()
    assert columns[inner].mean() < 0.5 * side and rows[inner].mean() < 0.5 * side


def test_overlay_scale_follows_the_spacing(tmp_path: Path, drawn: list) -> None:
    overlay(tmp_path / "o.png")
    sides = []
    for axis in drawn[0].axes:
        box = axis.get_window_extent()
        sides.append(abs(np.subtract(*axis.get_xlim())) / box.width)
        sides.append(abs(np.subtract(*axis.get_ylim())) / box.height)
    assert sides == pytest.approx([sides[0]] * 6, rel=1e-6)  # mm per pixel: one for all
    image = drawn[0].axes[1].images[0]
    assert image.get_extent() == pytest.approx((-1.0, 79.0, -1.5, 88.5))  # coronal: x by z


def test_overlay_box_covers_its_voxels_whole(tmp_path: Path, drawn: list) -> None:
    overlay(tmp_path / "o.png")
    rectangle = drawn[0].axes[1].patches[0]  # coronal: x from 10 to 31, z from 6 to 23
    assert rectangle.get_xy() == pytest.approx((9.5 * 2.0, 5.5 * 3.0))
    assert (rectangle.get_width(), rectangle.get_height()) == pytest.approx((22 * 2.0, 18 * 3.0))


def test_overlay_box_is_faint_beside_the_plane(tmp_path: Path, drawn: list) -> None:
    overlay(tmp_path / "o.png", box=np.array([[10, 12, 20], [31, 39, 23]]))
    axial, coronal, sagittal = (axis.patches[0].get_alpha() for axis in drawn[0].axes)
    assert axial < 1 and coronal == sagittal == 1


def test_overlay_draws_masks_that_fill_or_touch_the_volume(tmp_path: Path) -> None:
    full = np.ones(SHAPE, bool)
    assert shows(overlay(tmp_path / "o.png", truth=full, dose_roi=None, box=None), figures.TRUTH)


def test_overlay_is_reproducible(tmp_path: Path) -> None:
    first, second = (overlay(tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second


def test_overlay_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="prediction has shape"):
        overlay(tmp_path / "o.png", prediction=np.zeros((3, 3, 3), bool))
    with pytest.raises(VolumeError, match="spacing_mm"):
        overlay(tmp_path / "o.png", spacing_mm=(1.0, 2.0))
    assert not (tmp_path / "o.png").exists()
