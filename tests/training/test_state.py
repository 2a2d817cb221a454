"""The rules and the state: who is trained, from which weights, where it lies."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, PartitionSpec

from rtsam_jax import errors
from rtsam_jax.config import MeshConfig
from rtsam_jax.models.initialise import draw_parameters
from rtsam_jax.models.presets import PRESETS
from rtsam_jax.optim import make_optimizer
from rtsam_jax.training import rules
from rtsam_jax.training.rules import path_of, placement, rule_for, trained_filter
from rtsam_jax.training.sharding import (
    AXES,
    _part,
    batch_rows,
    laid_out,
    make_mesh,
    parameter_shardings,
)
from rtsam_jax.training.state import CORNERS, abstract_model, build, make_model
from rtsam_jax.weights import MODEL_FILE, OWN_PARAMETERS, PARAMS_FOLDER, flatten, model_variables
from tests.tiny import tiny_config

ONE = make_mesh(MeshConfig(data=1), 1)
MANY = AbstractMesh((2, 8, 4), AXES)
KERNELS = [f"image_encoder/blocks/0/{name}/kernel" for name in ("attn/qkv", "mlp/lin1")]
CONSTANTS = {"prompt_encoder/position/gaussian", "prompt_encoder/no_mask_embed"}


def axes_of(*entries: str | tuple[str, ...] | None) -> list[str]:
    """Names of mesh axes in entries of a `PartitionSpec`."""
    return [
        axis for entry in entries for axis in ((entry,) if isinstance(entry, str) else entry or ())
    ]


def paths(state: nnx.State) -> set[str]:
    return {path_of(path) for path, _ in nnx.to_flat_state(state)}


def build_with(**fields: object):
    cfg = tiny_config(**fields)
    return build(cfg, 3, make_optimizer(cfg.optim, 4), ONE)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_rules_cover_every_parameter_of_every_preset(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Abstractly: not one parameter of the 600-million presets is allocated."""
    cfg = tiny_config(model__preset=preset)
    model = nnx.eval_shape(lambda: make_model(cfg, 3))
    abstract = nnx.state(model)
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(abstract))
    for path in paths(abstract):
        rule_for(path)
    drawn: list[tuple[int, ...]] = []

    def fake(seed: int, path: str, shape: tuple[int, ...]) -> np.ndarray:
        from rtsam_jax.models.initialise import _kind

        assert _kind(path)
        drawn.append(shape)
        return np.zeros(())

    monkeypatch.setattr("rtsam_jax.models.initialise._draw", fake)
    draw_parameters(abstract, 0)
    assert drawn == [tuple(x.shape) for x in jax.tree.leaves(abstract)]


def test_a_parameter_without_a_rule_is_an_error() -> None:
    with pytest.raises(KeyError, match="text_encoder/adapter/kernel"):
        rule_for("text_encoder/adapter/kernel")
    with pytest.raises(KeyError, match="no rule"):
        from rtsam_jax.models.initialise import _kind

        _kind("text_encoder/adapter")


def test_every_rule_is_used() -> None:
    """A rule that nothing matches is a typing error in its pattern."""
    every = paths(nnx.state(nnx.eval_shape(lambda: make_model(tiny_config(), 3))))
    used = {rule_for(path).pattern for path in every}
    assert used == {rule.pattern for rule in rules.RULES}


def test_the_optimiser_sees_the_trainables_only(weights: Path) -> None:
    loose = build_with()
    assert paths(loose.frozen) == CONSTANTS
    fixed = build_with(model__freeze_encoder=True, model__checkpoint=str(weights))
    encoder = {p for p in paths(fixed.frozen) if p.startswith("image_encoder/")}
    assert encoder and paths(fixed.frozen) == CONSTANTS | encoder
    assert paths(loose.state.trained) == paths(fixed.state.trained) | encoder
    for built in (loose, fixed):
        shapes = [x.shape for x in jax.tree.leaves(built.state.trained)]
        moments = [x.shape for x in jax.tree.leaves(built.state.opt_state) if x.ndim]
        assert sorted(moments) == sorted(2 * shapes)  # first and second moment, nothing else


def test_buffers_are_never_trained() -> None:
    selects = trained_filter(freeze_encoder=False)
    path = ("mask_decoder", "anything")
    assert selects(path, nnx.Param(jnp.zeros(1)))
    assert not selects(path, nnx.Variable(jnp.zeros(1)))


def test_a_frozen_encoder_needs_weights() -> None:
    with pytest.raises(errors.EncoderWeightsMissing, match="converters.sam_med3d") as caught:
        build_with(model__freeze_encoder=True)
    assert caught.value.code == "encoder_weights_missing"


def test_weights_of_another_preset(weights: Path) -> None:
    with pytest.raises(errors.PresetMismatch, match="'test', but 'cpu_xs'"):
        build_with(model__preset="cpu_xs", model__checkpoint=str(weights))


def broken(weights: Path, folder: Path, part: str) -> Path:
    shutil.copytree(weights, folder)
    if (folder / part).is_dir():
        shutil.rmtree(folder / part)
    else:
        (folder / part).unlink()
    return folder


@pytest.mark.parametrize("part", [MODEL_FILE, PARAMS_FOLDER])
def test_half_written_weights(weights: Path, tmp_path: Path, part: str) -> None:
    folder = broken(weights, tmp_path / "half", part)
    with pytest.raises(errors.CheckpointIncomplete, match="half"):
        build_with(model__checkpoint=str(folder))


def test_no_weights_there(tmp_path: Path) -> None:
    with pytest.raises(errors.MissingFile, match="nowhere"):
        build_with(model__checkpoint=str(tmp_path / "nowhere"))


def test_given_weights_arrive_and_the_rest_is_drawn(weights: Path) -> None:
    given = build_with(model__checkpoint=str(weights))
    fresh = build_with()
    a = flatten(nnx.to_pure_dict(nnx.merge_state(given.state.trained, given.frozen)))
    b = flatten(nnx.to_pure_dict(nnx.merge_state(fresh.state.trained, fresh.frozen)))
    from rtsam_jax.weights import load_weights

    stored = flatten(load_weights(weights, "test")[0])
    assert set(a) - set(stored) == {CORNERS, "prompt_encoder.task_embed"}
    for name, value in a.items():
        np.testing.assert_array_equal(value, stored.get(name, b[name]), err_msg=name)


def test_corners_may_start_as_a_positive_point() -> None:
    built = build_with(model__corner_init="positive_point")
    flat = flatten(nnx.to_pure_dict(built.state.trained))
    corners, points = flat[CORNERS], flat["prompt_encoder.point_embed"]
    np.testing.assert_array_equal(corners, np.stack([points[1], points[1]]))
    assert not np.array_equal(corners[0], points[0])


def test_the_state_lies_where_the_rules_say() -> None:
    built = build_with()
    for leaf in jax.tree.leaves((built.state, built.frozen)):
        assert leaf.sharding.mesh == ONE and leaf.sharding.spec == PartitionSpec()
        assert leaf.committed


@pytest.fixture(scope="module")
def two_large_blocks() -> dict[str, tuple[int, ...]]:
    """Shapes of two blocks as ViT-H has them, and of what goes with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "vit_h", dataclasses.replace(PRESETS["vit_h"], depth=2))
        _, params = abstract_model(tiny_config(model__preset="vit_h"), 3, ONE)
    return {path_of(path): leaf.shape for path, leaf in _flat(params)}


def test_a_large_model_is_divided_into_equal_parts(
    two_large_blocks: dict[str, tuple[int, ...]],
) -> None:
    def parts(path: str, shape: tuple[int, ...]) -> int:
        return math.prod(MANY.shape[axis] for axis in axes_of(*placement(path, shape, MANY.shape)))

    for only, axes in (("image_encoder/blocks", ("fsdp", "tensor")), ("mask_decoder", ("fsdp",))):
        shapes = {k: v for k, v in two_large_blocks.items() if k.startswith(only)}
        held = sum(math.prod(shape) / parts(path, shape) for path, shape in shapes.items())
        whole = sum(map(math.prod, shapes.values()))
        assert held < 1.1 * whole / math.prod(MANY.shape[axis] for axis in axes)


def test_moments_lie_with_their_parameters() -> None:
    cfg = tiny_config()
    _, params = abstract_model(cfg, 3, ONE)
    moments = jax.eval_shape(make_optimizer(cfg.optim, 4).init, params)
    of_params, of_moments = (
        [place.spec for place in jax.tree.leaves(parameter_shardings(MANY, tree))]
        for tree in (params, moments)
    )
    assert sum(spec != PartitionSpec() for spec in of_params) > 10
    counter = [PartitionSpec()]
    assert of_moments == [*counter, *of_params, *of_params, *counter]


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("attn/qkv/kernel", PartitionSpec(("tensor", "fsdp"))),
        ("attn/proj/kernel", PartitionSpec("tensor", "fsdp")),
        ("mlp/lin1/kernel", PartitionSpec("fsdp", "tensor")),
        ("mlp/lin1/bias", PartitionSpec("tensor")),
        ("mlp/lin2/kernel", PartitionSpec("tensor", "fsdp")),
        ("mlp/lin2/bias", PartitionSpec()),
        ("norm1/scale", PartitionSpec()),
    ],
)
def test_a_block_is_divided_by_columns_then_rows(
    name: str, spec: PartitionSpec, two_large_blocks: dict[str, tuple[int, ...]]
) -> None:
    path = f"image_encoder/blocks/1/{name}"
    assert placement(path, two_large_blocks[path], MANY.shape) == spec


AXIS = st.integers(1, 8)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(KERNELS), st.tuples(*[st.integers(1, 4096)] * 2), AXIS, AXIS)
def test_whatever_its_sizes_a_parameter_is_divided_evenly(
    path: str, shape: tuple[int, int], fsdp: int, tensor: int
) -> None:
    sizes = {"data": 2, "fsdp": fsdp, "tensor": tensor}
    spec = placement(path, shape, sizes)
    used = axes_of(*spec)
    assert len(used) == len(set(used)) and "data" not in used
    for size, entry in zip(shape, spec, strict=False):
        assert size % math.prod(sizes[axis] for axis in axes_of(entry)) == 0
    assert "fsdp" not in used or np.prod(shape) >= rules.FSDP_FROM
    # An axis is left out where it does not divide, and nowhere else.
    if np.prod(shape) >= rules.FSDP_FROM and all(n % (fsdp * tensor) == 0 for n in shape):
        assert set(used) == {axis for axis in ("fsdp", "tensor") if sizes[axis] > 1}


def _flat(state: nnx.State) -> Any:
    return [(path, leaf.get_value()) for path, leaf in nnx.to_flat_state(state)]


def test_a_seed_is_a_model() -> None:
    first, same, other = (build_with(seed=seed) for seed in (0, 0, 1))
    equal = [
        np.array_equal(a, b)
        for a, b in zip(*(jax.tree.leaves(x.state.trained) for x in (first, same)), strict=True)
    ]
    assert all(equal)
    embed = [
        flatten(nnx.to_pure_dict(x.state.trained))["prompt_encoder.task_embed"]
        for x in (first, other)
    ]
    assert not np.array_equal(*embed)


def test_without_the_task_there_is_no_task_parameter() -> None:
    built = build_with(prompt__task="none")
    assert "prompt_encoder/task_embed" not in paths(built.state.trained)
    assert "prompt_encoder/task_embed" in paths(build_with().state.trained)


def test_text_is_adapted_in_the_place_of_task_tokens() -> None:
    cfg = tiny_config(prompt__task="text")
    constants = {
        "prompt_encoder.text_adapter.centre": np.arange(20, dtype=np.float32),
        "prompt_encoder.text_adapter.whitening": np.eye(20, k=1, dtype=np.float32),
    }
    optimizer = make_optimizer(cfg.optim, 4)
    built = build(cfg, 3, optimizer, ONE, text_width=20, constants=constants)
    own = {p for p in paths(built.state.trained) if p.startswith("prompt_encoder/text_adapter")}
    assert {p.split("/")[2] for p in own} == {"lin1", "lin2", "norm"}  # trained
    frozen = flatten(nnx.to_pure_dict(built.frozen))
    for name, value in constants.items():  # not trained
        np.testing.assert_array_equal(frozen[name], value)
    assert "prompt_encoder/task_embed" not in paths(built.state.trained)


def test_no_published_checkpoint_must_hold_the_adapter() -> None:
    model = nnx.eval_shape(lambda: make_model(tiny_config(prompt__task="text"), 3, 20))
    names = {name for name in model_variables(model) if "text_adapter" in name}
    assert len(names) == 8 and names <= OWN_PARAMETERS


@pytest.mark.parametrize("axes", [(2, 1, 1), (1, 2, 1), (-1, 1, 2)])
def test_a_mesh_that_does_not_fit(axes: tuple[int, int, int]) -> None:
    with pytest.raises(errors.ConfigError, match="data x fsdp x tensor.* there are 1"):
        make_mesh(MeshConfig(*axes), 4)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 100), AXIS, AXIS, AXIS, AXIS)
def test_rows_are_the_next_number_that_divides(
    batch: int, data: int, fsdp: int, tensor: int, accumulate: int
) -> None:
    mesh = AbstractMesh((data, fsdp, tensor), AXES)
    parts = data * fsdp * accumulate
    rows = batch_rows(mesh, batch, accumulate)
    assert rows % parts == 0 and batch <= rows < batch + parts


@settings(max_examples=30, deadline=None)
@given(AXIS, AXIS, AXIS)
def test_processes_in_order_share_the_rows_evenly(rows: int, tensor: int, across: int) -> None:
    """Whether they hold several rows each, or one row of devices is held by several of them."""
    by_rows = np.repeat(np.arange(across), rows)[:, None].repeat(tensor, 1)
    assert [_part(by_rows, p) for p in range(across)] == [(p, across) for p in range(across)]
    by_columns = np.arange(rows * across).reshape(rows, across).repeat(tensor, 1)
    shares = [_part(by_columns, p) for p in range(rows * across)]
    assert shares == [(p // across, rows) for p in range(rows * across)]


@pytest.mark.parametrize(
    "processes", [[[0], [1], [0], [1]], [[1], [0], [0], [1]], [[0], [0], [1]], [[1], [1], [1]]]
)
def test_rows_that_are_no_equal_part_are_no_share(processes: list[list[int]]) -> None:
    assert _part(np.array(processes), 0) is None


def test_what_a_step_returns_lies_where_it_lay_without_a_mesh_anywhere() -> None:
    state = {"mask_decoder": {"kernel": jnp.ones((64, 64))}}
    assert laid_out(state) is state
