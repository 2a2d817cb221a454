"""What a prediction's picture shows lies where it is: outline, box, isodoses, entropy, planes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from rtsam_jax.data.nifti import Volume
from rtsam_jax.report import canvas
from rtsam_jax.report.case_picture import ISODOSES
from rtsam_jax.report.planes import BOX, PLANES
from rtsam_jax.report.prediction_picture import ENTROPY, PREDICTION, draw_prediction

SHAPE, SPACING = (14, 12, 10), np.array([2.0, 3.0, 4.0])
AFFINE = np.diag([*SPACING, 1.0])
CENTRE = (5, 4, 6)
HELD = (slice(4, 7), slice(3, 8), slice(5, 9))  # of the mask
FIRST, LAST = np.array([4, 3, 5]), np.array([6, 7, 8])
VIEW_BOX = np.array([(3.0, 2.5, 5.0), (8.0, 8.0, 8.5)])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    kept: list[Figure] = []
    save = canvas.save
    monkeypatch.setattr(
        canvas, "save", lambda figure, out: (kept.append(figure), save(figure, out))
    )
    return kept


def draw(out: Path, *, empty: bool = False, alone: bool = False, text: str = "Fine.") -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros(SHAPE, bool)
    mask[HELD] = not empty
    ramp = np.broadcast_to(np.arange(SHAPE[0], dtype=np.float32)[:, None, None], SHAPE)
    draw_prediction(
        Volume(rng.normal(size=SHAPE).astype(np.float32), AFFINE),
        mask,
        entropy(),
        None if alone else VIEW_BOX,
        CENTRE,
        dose=None if alone else Volume(ramp, AFFINE),
        dmax=None if alone else 13.0,
        in_hu=False,
        title="Somebody",
        text=text,
        out=out,
    )


def entropy() -> np.ndarray:
    return np.random.default_rng(1).random(SHAPE, np.float32)


def outline(axis, colour: str) -> np.ndarray:
    """Vertices [n, 2] in mm of the contours of a colour."""
    found = [
        path.vertices
        for collection in axis.collections
        if np.allclose(collection.get_edgecolor()[:, :3], to_rgb(colour))
        for path in collection.get_paths()
    ]
    return np.concatenate([np.empty((0, 2)), *found])


def test_every_plane_shows_mask_box_and_entropy_in_their_places(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    draw(tmp_path / "p.png")
    axes = np.array(drawn[0].axes[:6]).reshape(2, 3)
    for plane, (above, below) in zip(PLANES, axes.T, strict=True):
        pair = [plane.across, plane.up]
        for axis, colour in ((above, PREDICTION), (below, canvas.WHITE)):
            points = outline(axis, colour)
            np.testing.assert_allclose(points.min(0), ((FIRST - 0.5) * SPACING)[pair])
            np.testing.assert_allclose(points.max(0), ((LAST + 0.5) * SPACING)[pair])
            assert axis.xaxis_inverted() and not axis.yaxis_inverted()
        [box] = above.patches
        assert box.get_edgecolor()[:3] == to_rgb(BOX) and not below.patches
        low, high = ((VIEW_BOX[0] - 0.5) * SPACING)[pair], ((VIEW_BOX[1] + 0.5) * SPACING)[pair]
        np.testing.assert_allclose(box.get_xy(), low)
        np.testing.assert_allclose((box.get_width(), box.get_height()), high - low)
        grey, layer = below.images
        expected = np.moveaxis(entropy(), plane.through, 0)[CENTRE[plane.through]].T
        np.testing.assert_array_equal(layer.get_array(), expected)
        assert layer.cmap.name == ENTROPY and layer.get_clim() == (0, 1)
        assert layer.get_extent() == grey.get_extent() == above.images[0].get_extent()
        slice_of = f"slice {CENTRE[plane.through] + 1}/{SHAPE[plane.through]}"
        for axis, name in ((above, plane.name), (below, "Entropy")):
            assert any(text.get_text() == f"{name}, {slice_of}" for text in axis.texts)


def test_isodoses_are_shares_of_the_largest_dose(tmp_path: Path, drawn: list[Figure]) -> None:
    draw(tmp_path / "p.png")
    axial, coronal, sagittal = drawn[0].axes[:3]
    for axis in (axial, coronal):  # the dose rises by 1 a voxel, along the first axis
        for colour in {line.colour for line in ISODOSES.values()}:
            found = np.unique(np.round(outline(axis, colour)[:, 0], 4))
            shares = [share for share, line in ISODOSES.items() if line.colour == colour]
            np.testing.assert_allclose(found, np.sort(shares) * 13.0 * SPACING[0], atol=1e-3)
    assert not any(len(outline(sagittal, line.colour)) for line in ISODOSES.values())


@pytest.mark.parametrize("empty", [False, True])
def test_without_dose_and_box_nothing_of_them_is_drawn_or_named(
    tmp_path: Path, drawn: list[Figure], empty: bool
) -> None:
    draw(tmp_path / "p.png", empty=empty, alone=True, text="word " * 400)
    [legend] = drawn[0].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["Predicted mask (empty)" if empty else "Predicted mask"]
    for axis in drawn[0].axes[:3]:
        assert not axis.patches
        assert len(outline(axis, PREDICTION)) == 0 or not empty
    title, said, _ = (text.get_text() for text in drawn[0].texts)
    assert title == "Somebody" and said.count("\n") == 2 and said.endswith(" ...")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
