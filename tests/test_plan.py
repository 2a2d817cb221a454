"""The planner: what it reads from a program, and the command on a small model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from rtsam_jax.planning.chips import ACHIEVED_FLOP, CHIPS, project, reaches
from rtsam_jax.planning.collectives import Collective, collectives
from rtsam_jax.planning.hlo import Instruction, Shape, instructions, matrix_flop, shapes
from rtsam_jax.planning.step import StepPlan
from tests.tiny import run_module, tiny_config, write_config_file

MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def program(*lines: str, trips: str = "") -> list[Instruction]:
    """`lines` inside a loop that is called by the entry."""
    body = "\n".join(f"  %x.{i} = {line}" for i, line in enumerate(lines))
    return instructions(
        f"""HloModule jit_step

%body.1 (p: f32[4]) -> f32[4] {{
{body}
}}

%condition.1 (p: f32[4]) -> pred[] {{
  ROOT %c = pred[] compare(%p, %p), direction=LT
}}

ENTRY %main.7 (a: f32[4]) -> f32[4] {{
  %a = f32[4]{{0}} parameter(0)
  ROOT %w = f32[4]{{0}} while(%a), condition=%condition.1, body=%body.1{trips}
}}
"""
    )


TRIPS = ', backend_config={"known_trip_count":{"n":"5"}}'


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # Each result has 96 bytes; (kind, axes, devices, bytes sent).
        (
            "f32[4,6]{1,0} all-reduce(%p), replica_groups=[4,2]<=[8], to_apply=%add",
            ("all-reduce", ("tensor",), 2, 96),
        ),
        (
            "f32[4,6]{1,0} all-gather(%p), replica_groups=[4,2]<=[4,2]T(1,0), dimensions={0}",
            ("all-gather", ("fsdp",), 2, 48),
        ),
        (
            "bf16[48]{0} all-gather(%p), replica_groups={{0,4},{1,5},{2,6},{3,7}}, dimensions={0}",
            ("all-gather", ("data",), 2, 48),
        ),
        (
            "(f32[12]{0}, /*index=1*/s32[12]{0}) all-to-all(%p, %q), "
            "replica_groups=mesh['a'=4,'b'=2] {'a'}",
            ("all-to-all", ("data", "fsdp"), 4, 72),
        ),
        (
            "pred[96]{0} all-to-all(%p), "
            "replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}",
            ("all-to-all", ("tensor",), 2, 48),
        ),
        (
            "u8[96]{0} reduce-scatter(%p), replica_groups=mesh['a'=8] {'a':(2)2}, to_apply=%add",
            ("reduce-scatter", ("fsdp",), 2, 96),
        ),
        (
            "f32[24]{0} collective-permute(%p), source_target_pairs={{0,0},{1,2},{2,1}}",
            ("collective-permute", ("fsdp", "tensor"), 2, 96),
        ),
        ("f32[24]{0} all-reduce(%p), replica_groups={}", ("all-reduce", tuple(MESH), 8, 168)),
    ],
)
def test_an_exchange_is_counted_along_its_axes(line: str, expected: tuple) -> None:
    kind, axes, devices, sent = expected
    (found,) = collectives(program(line, trips=TRIPS), MESH)
    assert found == Collective(kind, axes, devices, 5, 5 * sent, exact=True)


def test_a_loop_that_does_not_say_how_often_it_turns_counts_once_and_says_so() -> None:
    line = "f32[4]{0} all-reduce(%p), replica_groups={}, to_apply=%add"
    (found,) = collectives(program(line), MESH)
    assert found.count == 1 and not found.exact


def test_devices_that_exchange_with_nobody_do_not_count() -> None:
    line = "f32[4]{0} all-reduce(%p), replica_groups={{0},{1}}, to_apply=%add"
    assert collectives(program(line), MESH) == []


def test_shapes_of_a_tuple() -> None:
    text = "(bf16[2,3]{1,0:T(8,128)}, /*index=1*/pred[], f8e4m3fn[5]{0})"
    assert shapes(text) == [Shape(2, (2, 3)), Shape(1, ()), Shape(1, (5,))]
    assert [shape.nbytes for shape in shapes(text)] == [12, 1, 5]


def test_products_in_nested_loops_count_as_often_as_they_run() -> None:
    def turn(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        x, _ = jax.lax.scan(lambda y, w: (jnp.tanh(y @ w) @ w.T, None), x, weights)
        return x, None

    weights = jnp.linspace(-1, 1, 3 * 96 * 160).reshape(3, 96, 160)
    lowered = jax.jit(lambda x: jax.lax.scan(turn, x, length=7)[0]).lower(jnp.ones((64, 96)))
    program = instructions(lowered.compile().as_text())
    assert matrix_flop(program) == 7 * 3 * 2 * 2 * 64 * 96 * 160


def test_a_projection_adds_up() -> None:
    sent = Collective("all-gather", ("fsdp",), 8, 1, 2**30, exact=True)
    plan = StepPlan(
        **{field.name: 1 for field in dataclasses.fields(StepPlan)}
        | {"mesh": MESH, "collectives": [sent], "flop": 1e15, "peak_bytes": 20 * 10**9}
    )
    small, large = (project(plan, CHIPS[name]) for name in ("v5e", "v5p"))
    assert small.compute_s == pytest.approx(1e15 / (ACHIEVED_FLOP * 197e12))
    assert small.compute_s / large.compute_s == pytest.approx(459 / 197)
    assert small.link_s / large.link_s == pytest.approx(3)
    assert small.overlapped_s < small.serial_s < 2 * small.overlapped_s
    assert large.fits and not small.fits


def test_beyond_their_links_gpus_exchange_over_the_network_and_tpus_are_not_projected() -> None:
    sent = Collective("all-gather", ("fsdp",), 8, 1, 2**30, exact=True)

    def of(devices: int) -> StepPlan:
        ones = {field.name: 1 for field in dataclasses.fields(StepPlan)}
        return StepPlan(**ones | {"mesh": {"data": devices}, "collectives": [sent]})

    gpu = CHIPS["h200"]
    assert project(of(16), gpu).link_s == pytest.approx(9 * project(of(8), gpu).link_s)
    assert [reaches(CHIPS["v5e"], of(n)) for n in (256, 512)] == [True, False]
    assert reaches(gpu, of(512))


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("plan")
    cfg = tiny_config(model__preset="cpu_xs", batch_size=8, model__remat="blocks")
    config, out = write_config_file(folder / "config.py", cfg), folder / "plan.json"
    meshes = ("--mesh", "1x1x1", "2x2x2")
    result = run_module("plan", "--config", config, *meshes, "--json", out, cwd=folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return {"screen": result.stdout, **json.loads(out.read_text())}


def test_the_command_plans_every_mesh(planned: dict) -> None:
    one, eight = planned["plans"]
    assert one["mesh"] == dict.fromkeys(MESH, 1) and eight["mesh"] == MESH
    assert one["collectives"] == [] and one["sent_bytes"] == 0
    for text in ("1x1x1", "2x2x2", "all-reduce", "v5e", "h200"):
        assert text in planned["screen"]


def test_a_mesh_divides_state_and_work(planned: dict) -> None:
    one, eight = planned["plans"]
    assert one["rows"] == eight["rows"] == 8
    # Parameters and both moments in float32; the batch is the rest.
    assert one["argument_bytes"] > 12 * one["trained"]
    assert eight["argument_bytes"] < 0.5 * one["argument_bytes"]
    assert 1 / 8 < eight["flop"] / one["flop"] < 0.5
    kinds = {(each["kind"], *each["axes"]) for each in eight["collectives"]}
    assert {("all-gather", "fsdp"), ("all-reduce", "tensor")} <= kinds
    assert all(each["exact"] for each in eight["collectives"])


@pytest.mark.parametrize("mesh", ["2x2", "0x1x1", "axbxc"])
def test_a_mesh_that_is_none(tmp_path: Path, mesh: str) -> None:
    config = write_config_file(tmp_path / "config.py", tiny_config())
    result = run_module("plan", "--config", config, "--mesh", mesh, cwd=tmp_path)
    assert result.returncode == 2 and "DATAxFSDPxTENSOR" in result.stderr


def test_a_plan_needs_to_be_told_how_many_devices(tmp_path: Path) -> None:
    config = write_config_file(tmp_path / "config.py", tiny_config())
    result = run_module("plan", "--config", config, cwd=tmp_path)
    assert result.returncode == 2 and "config.mesh.data is -1" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["frozen", "trained"])
def test_the_largest_model_compiles_for_eight_devices(tmp_path: Path, encoder: str) -> None:
    """ViT-H at 256^3; every device needs less than a v5p has."""
    cfg = tiny_config(model__preset="vit_h", model__compute_dtype="bfloat16")
    cfg.model.freeze_encoder, cfg.model.remat = encoder == "frozen", "blocks"
    config, out = write_config_file(tmp_path / "config.py", cfg), tmp_path / "plan.json"
    meshes = ("1x8x1", "2x2x2", "1x4x2")
    flags = ("--mesh", *meshes, "--rows", 1, "--json", out)
    result = run_module("plan", "--config", config, *flags, cwd=tmp_path, timeout=1800)
    assert result.returncode == 0, result.stderr[-3000:]
    plans = json.loads(out.read_text())["plans"]
    assert ["x".join(map(str, plan["mesh"].values())) for plan in plans] == [*meshes]
    for plan in plans:
        assert plan["parameters"] > 600e6 and plan["peak_bytes"] < CHIPS["v5p"].memory_bytes
        divided = plan["mesh"]["fsdp"] * plan["mesh"]["tensor"]
        state = 4 * plan["parameters"] + 8 * plan["trained"]
        assert plan["argument_bytes"] < 1.2 * state / divided + 0.3e9  # and a sample
