"""Masks side by side: read back as pixels, panel by panel."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from rtsam_jax.report import canvas
from rtsam_jax.report.planes import PLANES
from rtsam_jax.report.side_by_side import PREDICTION, Row, plot_side_by_side

SHAPE, SPACING = (40, 50, 30), np.array([2.0, 2.0, 3.0])


def cuboid(low: tuple[int, int, int], high: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list:
    """Collects the matplotlib figures as they are saved."""
    kept: list = []
    save = canvas.save
    monkeypatch.setattr(
        canvas, "save", lambda figure, out: (kept.append(figure), save(figure, out))
    )
    return kept


def test_every_mask_is_shown_in_its_own_column_and_where_it_is(
    tmp_path: Path, figures: list
) -> None:
    truth = cuboid((10, 10, 10), (16, 16, 16))
    masks = {
        "nothing": np.zeros(SHAPE, bool),
        "right": truth,
        "elsewhere": cuboid((30, 10, 10), (36, 16, 16)),  # 40 mm to the patient's right
        "another slice": cuboid((10, 10, 20), (16, 16, 26)),
    }
    said = {"right": "Dice 1.00"}
    rows = [
        Row(plane.name, plane, np.full(SHAPE, 40.0), truth, masks, SPACING, said)
        for plane in PLANES[:1]
    ]
    plot_side_by_side(rows, "a title", tmp_path / "picture.png")
    (figure,) = figures
    panels = dict(zip(["Truth", *masks], figure.axes, strict=True))
    assert [axis.get_title() for axis in figure.axes] == list(panels)
    assert figure.axes[0].get_ylabel() == "Axial"
    pixels = matplotlib.image.imread(tmp_path / "picture.png")[..., :3]
    height, width = pixels.shape[:2]

    def shaded(column: str) -> np.ndarray:
        """[n, 2]: where a panel's pixels lean to the methods' colour, 0 to 1 from its left, top."""
        place = panels[column].get_position()
        left, right = int(place.x0 * width) + 2, int(place.x1 * width) - 2
        top, bottom = int((1 - place.y1) * height) + 2, int((1 - place.y0) * height) - 2
        panel = pixels[top:bottom, left:right]
        # The background is black: one grey value is below no window.
        lean = panel @ np.array(to_rgb(PREDICTION)) / (np.linalg.norm(panel, axis=-1) + 1e-6)
        alike = (lean > 0.99 * np.linalg.norm(to_rgb(PREDICTION))) & (panel[..., 2] > 0.2)
        found = np.argwhere(alike)[:, ::-1]
        return found / [panel.shape[1], panel.shape[0]]

    blue = {column: shaded(column) for column in panels}
    assert len(blue["right"]) > 100 and len(blue["elsewhere"]) > 100
    for column in ("Truth", "nothing", "another slice"):
        assert len(blue[column]) < 20, column
    # Radiological: the patient's right is on the picture's left.
    assert blue["elsewhere"][:, 0].mean() < blue["right"][:, 0].mean() - 0.2
    written = {text.get_text() for text in panels["right"].texts}
    assert "Dice 1.00" in written and not any(
        "Dice" in t.get_text() for t in panels["nothing"].texts
    )


@pytest.mark.parametrize("columns", [1, 2, 8])
def test_long_names_stay_whole_and_in_the_picture(
    tmp_path: Path, figures: list, columns: int
) -> None:
    """Ids have up to 100 letters, and a study may have one row."""
    mask = cuboid((10, 10, 10), (16, 16, 16))
    masks = {f"a model with a name as long as this {i}": mask for i in range(columns)}
    case = "HNSCC-01-0001-20090512_osteoradionecrosis_" * 2
    rows = [
        Row(f"jaw\n{case}", PLANES[0], np.full(SHAPE, 40.0), mask, masks, SPACING) for _ in range(2)
    ]
    title = f"a dataset (surrogate), seed0 · median of the last model: {case}, osteoradionecrosis"
    plot_side_by_side(rows, title, tmp_path / "picture.png")
    (figure,) = figures
    figure.draw_without_rendering()
    titles = [axis.title for axis in figure.axes[: columns + 1]]
    sides = [axis.yaxis.label for axis in figure.axes[:: columns + 1]]
    texts = [figure._suptitle, *titles, *sides]
    boxes = [text.get_window_extent() for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i]), texts[i]
    assert "".join(texts[0].get_text().split()) == "".join(title.split())
