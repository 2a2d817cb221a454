"""Plans as tables: what a device needs, what it sends, and how long a step would take."""

from __future__ import annotations

from collections.abc import Sequence

from rtsam_jax.planning.chips import CHIPS, Projection, project, reaches
from rtsam_jax.planning.step import StepPlan
from rtsam_jax.report.tables import Cell, Table, render

_GB, _TFLOP = 1e9, 1e12


def mesh_name(plan: StepPlan) -> str:
    """`2x2x2`, as data x fsdp x tensor."""
    return "x".join(map(str, plan.mesh.values()))


def memory_table(plans: Sequence[StepPlan]) -> str:
    """Per device and step: bytes as XLA plans them, operations, bytes sent."""
    header = (
        *("Mesh", "Batch", "Arguments GB", "Outputs GB", "Temporary GB", "Peak GB"),
        *("TFLOP", "Sent GB", "Lower s", "Compile s"),
    )
    rows: list[tuple[Cell, ...]] = []
    for plan in plans:
        sizes = (plan.argument_bytes, plan.output_bytes, plan.temp_bytes, plan.peak_bytes)
        rows.append(
            (
                mesh_name(plan),
                plan.rows,
                *(_digits(size / _GB) for size in sizes),
                _digits(plan.flop / _TFLOP),
                _digits(plan.sent_bytes / _GB),
                round(plan.lower_s),
                round(plan.compile_s),
            )
        )
    return render(Table(header, tuple(rows)))


def collectives_table(plans: Sequence[StepPlan]) -> str:
    """What a device sends in a step, by kind of exchange and axes of the mesh."""
    rows: list[tuple[Cell, ...]] = [
        (
            mesh_name(plan),
            each.kind,
            " x ".join(each.axes),
            each.devices,
            f"{'' if each.exact else 'at least '}{each.count}",
            _digits(each.sent_bytes / _GB),
        )
        for plan in plans
        for each in plan.collectives
    ]
    return render(Table(("Mesh", "Exchange", "Axes", "Devices", "Count", "Sent GB"), tuple(rows)))


def projection_table(plans: Sequence[StepPlan]) -> str:
    """Projected seconds of a step, and samples per second of all devices, by chip."""
    rows: list[tuple[Cell, ...]] = []
    for plan in plans:
        for chip in (chip for chip in CHIPS.values() if reaches(chip, plan)):
            found: Projection = project(plan, chip)
            best, worst = found.overlapped_s, found.serial_s
            rows.append(
                (
                    mesh_name(plan),
                    plan.rows,
                    chip.name,
                    _digits(found.compute_s),
                    _digits(found.link_s),
                    _digits(found.state_s),
                    f"{_digits(best):g} to {_digits(worst):g}",
                    f"{_digits(plan.rows / worst):g} to {_digits(plan.rows / best):g}",
                    "yes" if found.fits else "no",
                )
            )
    header = (
        *("Mesh", "Batch", "Chip", "Products s", "Links s", "State s", "Step s", "Samples/s"),
        "Fits",
    )
    return render(Table(header, tuple(rows)))


def _digits(value: float) -> float:
    return float(f"{value:.3g}")
