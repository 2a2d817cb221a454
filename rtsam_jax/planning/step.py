"""The training step of a config, compiled for a mesh from shapes alone: nothing is allocated."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.augment import margin
from rtsam_jax.data.sample import Sample
from rtsam_jax.models.presets import get_spec
from rtsam_jax.models.text_adapter import TextTable
from rtsam_jax.optim import make_optimizer
from rtsam_jax.planning.collectives import Collective, collectives
from rtsam_jax.planning.hlo import instructions, matrix_flop
from rtsam_jax.training.rules import trained_filter
from rtsam_jax.training.sharding import BATCH, batch_rows, parameter_shardings, replicated
from rtsam_jax.training.state import TrainState, abstract_model
from rtsam_jax.training.step import make_train_step

# What stands for a dataset's: texts of some sentences, each a feature as wide as BERT's.
_TASKS, _TEXTS, _SENTENCES, _WIDTH = 3, 4096, 8, 768
_STEPS = 1000  # of the schedule; any number compiles to the same program
# Machine code is made and thrown away; these change none of what is read from the program.
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@dataclass(frozen=True)
class StepPlan:
    """What XLA says of a compiled step; bytes and operations are those of one device."""

    mesh: dict[str, int]
    rows: int  # of the global batch, surplus included
    parameters: int
    trained: int
    argument_bytes: int  # parameters, optimiser, and its rows
    output_bytes: int
    alias_bytes: int  # of the outputs, that take an argument's place
    temp_bytes: int
    peak_bytes: int  # all of these together
    flop: float  # of the matrix products, in loops as often as they turn
    xla_flop: float  # of everything by XLA's cost analysis, which counts a loop's body once
    xla_bytes_accessed: float  # likewise
    collectives: list[Collective]
    lower_s: float
    compile_s: float

    @property
    def sent_bytes(self) -> int:
        """Over the links, per step."""
        return sum(each.sent_bytes for each in self.collectives)


def plan_step(cfg: ExperimentConfig, mesh: Mesh) -> StepPlan:
    """Lowers and compiles the step that training would run on `mesh`, and reads what it needs."""
    graphdef, optimizer, arguments = abstract_arguments(cfg, mesh)
    state, frozen = arguments[:2]
    began = time.monotonic()
    step: Any = make_train_step(graphdef, optimizer, cfg)  # jitted
    with jax.set_mesh(mesh):
        lowered = step.lower(*arguments)
    lowered_at = time.monotonic()
    compiled = lowered.compile(compiler_options=_QUICK)
    compiled_at = time.monotonic()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    program = instructions(compiled.as_text())
    trained = sum(x.size for x in jax.tree.leaves(state.trained))
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return StepPlan(
        mesh=dict(mesh.shape),
        rows=arguments[2].weight.shape[0],
        parameters=trained + sum(x.size for x in jax.tree.leaves(frozen)),
        trained=trained,
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        peak_bytes=held - memory.alias_size_in_bytes + memory.temp_size_in_bytes,
        flop=matrix_flop(program),
        xla_flop=cost["flops"],
        xla_bytes_accessed=cost["bytes accessed"],
        collectives=collectives(program, mesh.shape),
        lower_s=lowered_at - began,
        compile_s=compiled_at - lowered_at,
    )


def abstract_arguments(cfg: ExperimentConfig, mesh: Mesh) -> tuple[Any, ...]:
    """`(graphdef, optimizer, (state, frozen, batch, texts))`, shapes with shardings for arrays."""
    text = cfg.prompt.task == "text"
    graphdef, params = abstract_model(cfg, _TASKS, mesh, text_width=_WIDTH if text else 0)
    trained, frozen = nnx.split_state(params, trained_filter(cfg.model.freeze_encoder), ...)
    optimizer = make_optimizer(cfg.optim, _STEPS)
    moments = jax.eval_shape(optimizer.init, trained)

    def shaped(shape: tuple[int, ...], dtype: Any, place: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    opt_state = jax.tree.map(
        lambda x, place: shaped(x.shape, x.dtype, place),
        moments,
        parameter_shardings(mesh, moments),
    )
    everywhere = replicated(mesh)
    counts = shaped((), jnp.int32, everywhere), shaped((), jnp.uint32, everywhere)
    state = TrainState(*counts, trained, opt_state)
    rows = batch_rows(mesh, cfg.batch_size, cfg.accumulate)
    size = get_spec(cfg.model.preset).image_size
    side = size + 2 * margin(cfg.augment, size)
    volume, divided = (rows, side, side, side), NamedSharding(mesh, BATCH)
    ids = shaped((rows,), jnp.int32, divided)
    mask = shaped(volume, jnp.uint8, divided)
    batch = Sample(
        image=shaped((*volume, 1), jnp.float32, divided),
        label=mask,
        roi=mask,
        text_id=ids,
        mirrored_text_id=ids,
        case_id=ids,
        weight=shaped((rows,), jnp.float32, divided),
        view=ids,
    )
    texts = None
    if text:
        texts = TextTable(
            shaped((_TEXTS, _SENTENCES, _WIDTH), jnp.float32, everywhere),
            shaped((_TEXTS, _SENTENCES), jnp.bool_, everywhere),
        )
    return graphdef, optimizer, (state, frozen, batch, texts)
