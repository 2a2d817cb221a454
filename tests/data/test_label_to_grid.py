"""Labels on the model grid: no lesion is lost, and a label that says too little is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rtsam_jax.data.nifti import Volume, read_label, read_volume
from rtsam_jax.data.preprocess import Grid, label_to_grid, model_grid, require_coverage
from rtsam_jax.errors import LabelNotCovering, NoOverlap
from tests.data.affines import oblique


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    density=st.sampled_from([0.002, 0.02, 0.2]),
    target=st.floats(0.6, 4.0),
    spacing=st.tuples(*[st.floats(0.7, 3.0)] * 3),
)
def test_no_lesion_vanishes(seed: int, density: float, target: float, spacing) -> None:
    """Of any structure of a map, on any image's grid: oblique, anisotropic, not a cube."""
    shape, affine = (13, 12, 10), oblique(spacing)
    rng = np.random.default_rng(seed)
    structures = np.where(rng.random(shape) < density, rng.integers(1, 4, shape), 0)
    grid = model_grid(Volume(np.zeros(shape), affine), target)
    for value in (1, 2, 3):
        label = Volume(structures == value, affine)
        result = label_to_grid(label, grid)
        assert result.dtype == np.uint8 and set(np.unique(result)) <= {0, 1}
        marked = grid.to_world(np.argwhere(result))
        lesions, count = ndimage.label(label.array, np.ones((3, 3, 3)))
        for number in range(1, count + 1):
            # Some marked model voxel lies within one voxel of the two grids together.
            world = Grid(shape, affine).to_world(np.argwhere(lesions == number))
            reach = np.linalg.norm(spacing) + target * np.sqrt(3) / 2
            assert marked.size
            assert np.linalg.norm(marked[:, None] - world[None], axis=-1).min() <= reach


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    angle=st.floats(-0.8, 0.8),
    target=st.floats(0.8, 3.0),
)
def test_no_single_voxel_vanishes_from_a_turned_label(seed: int, angle: float, target) -> None:
    grid = model_grid(Volume(np.zeros((12, 10, 8)), oblique((1.0, 1.2, 1.5))), target)
    turn = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.1, 0.9, 1.3])
    shape = (40, 40, 32)
    centre = grid.to_world((np.array(grid.shape) - 1) / 2)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    rng = np.random.default_rng(seed)
    inside = rng.uniform(1.5, np.array(grid.shape) - 2.5)
    voxel = np.rint(Grid(shape, affine).to_index(grid.to_world(inside))).astype(int)
    place = grid.to_index(Grid(shape, affine).to_world(voxel))
    label = Volume(np.zeros(shape, bool), affine)
    label.array[tuple(voxel)] = True
    marked = np.argwhere(label_to_grid(label, grid))
    assert np.linalg.norm((marked - place) * target, axis=1).min() <= target * np.sqrt(3) / 2


def test_a_voxel_on_the_very_edge_of_the_field_of_view_is_kept() -> None:
    grid = Grid((4, 4, 4), np.diag([2.0, 2.0, 2.0, 1.0]))  # from -1 to 7 mm
    label = Volume(np.zeros((9, 9, 9), bool), np.eye(4))
    label.affine[:3, 3] = -1.0
    label.array[8, 3, 3] = True  # its centre at 7 mm
    assert np.argwhere(label_to_grid(label, grid)).tolist() == [[3, 1, 1]]


def test_a_single_voxel_becomes_the_nearest_coarse_voxel() -> None:
    label = Volume(np.zeros((12, 12, 12), bool), np.eye(4))
    label.array[7, 1, 4] = True
    grid = model_grid(label, 3.0)  # coarse centres at 1, 4, 7, 10
    assert np.argwhere(label_to_grid(label, grid)).tolist() == [[2, 0, 1]]
    label.array[7, 1, 4], label.array[8, 2, 5] = False, True
    assert np.argwhere(label_to_grid(label, grid)).tolist() == [[2, 0, 1]]  # via the rescue


def test_labels_are_cut_halfway_and_a_tie_is_inside() -> None:
    label = Volume(np.zeros((6, 2, 2), bool), np.eye(4))
    label.array[3:] = True
    fine = label_to_grid(label, model_grid(label, 1 / 9))
    assert fine.shape == (54, 18, 18)
    assert not fine[:27].any() and fine[27:].all()
    label = Volume(label.array[:4], label.affine)
    coarse = label_to_grid(label, model_grid(label, 2.0))  # the second voxel is half filled
    assert coarse.ravel().tolist() == [0, 1]


def test_a_lesion_that_survives_gets_no_extra_voxels() -> None:
    label = Volume(np.zeros((12, 12, 12), bool), np.eye(4))
    label.array[3:9, 3:9, 3:9] = True
    grid = model_grid(label, 3.0)
    truth = np.zeros((4, 4, 4))
    truth[1:3, 1:3, 1:3] = 1
    np.testing.assert_array_equal(label_to_grid(label, grid), truth)


def test_label_beyond_the_image_is_lost_but_a_foreign_one_is_an_error() -> None:
    grid = Grid((4, 4, 4), np.eye(4))
    label = Volume(np.zeros((12, 4, 4), bool), np.eye(4))
    label.array[10, 1, 1] = True
    assert not label_to_grid(label, grid).any()
    label.affine[0, 3] = 500.0
    with pytest.raises(NoOverlap, match="label of c1"):
        label_to_grid(label, grid, name="c1")


@pytest.mark.parametrize(
    ("axis", "edge", "lacking", "covers"),
    [
        (2, 1.0, 1.0, True),
        (2, 1.0, 1.1, False),
        (0, 1.0, -3.0, True),  # it reaches further
        (1, 2.5, 2.4, True),  # the label's voxels are the coarser ones
        (1, 2.5, 2.6, False),
        (2, 0.5, 1.0, True),  # the grid's are
        (2, 0.5, 1.1, False),
    ],
)
@pytest.mark.parametrize("end", [0, 1])
def test_a_label_covers_its_image_but_for_a_voxel(
    axis: int, edge: float, lacking: float, covers: bool, end: int
) -> None:
    grid = Grid((10, 10, 10), oblique((1.0, 1.0, 1.0)))
    low, high = np.full(3, -10.0), np.full(3, 20.0)  # of the label, in voxels of the grid
    low[axis], high[axis] = (lacking - 0.5, 20.0) if end == 0 else (-10.0, 9.5 - lacking)
    count = np.ceil((high - low) / edge).astype(int)
    matrix = np.diag([edge, edge, edge, 1.0])
    matrix[:3, 3] = low + edge / 2 if end == 0 else high - edge * (count - 0.5)
    label = Volume(np.zeros(count, bool), grid.affine @ matrix)
    if covers:
        require_coverage(label, grid, name="c1")
        return
    with pytest.raises(LabelNotCovering, match=f"label of c1 ends {lacking:g} mm inside"):
        label_to_grid(label, grid, name="c1")


@settings(deadline=None, max_examples=25)
@given(spacing=st.tuples(*[st.floats(0.4, 5.0)] * 3), target=st.floats(0.4, 5.0))
def test_a_label_on_its_images_own_grid_covers_it(spacing, target: float) -> None:
    label = Volume(np.zeros((9, 7, 11), bool), oblique(spacing))
    require_coverage(label, model_grid(label, target), name="c1")


def test_the_partial_label_map_of_the_pack_is_refused(data_pack: Path) -> None:
    image = read_volume(data_pack / "ct_labels" / "ct.nii.gz")
    label = read_label(data_pack / "ct_labels" / "totalsegmentator.nii.gz", 1)
    with pytest.raises(LabelNotCovering, match="ends 246 mm inside"):
        label_to_grid(label, model_grid(image, 3.0))
