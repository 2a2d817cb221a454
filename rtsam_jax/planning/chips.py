"""How long a planned step takes on chips that are not at hand: a projection from datasheets."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rtsam_jax.planning.step import StepPlan

ACHIEVED_FLOP = 0.4  # share of a chip's peak, in all of a step
ACHIEVED_LINK = 0.8  # share of its links' rate


@dataclass(frozen=True)
class Chip:
    """Of the maker's datasheet; rates per second and chip."""

    name: str
    flop: float  # dense bfloat16
    memory_bytes: float
    memory_rate: float  # bytes
    link_rate: float  # bytes, in one direction: half of the bidirectional figure
    linked: int  # chips that these links join
    network_rate: float = 0.0  # bytes per chip beyond that, in one direction; 0: not published


# cloud.google.com/tpu/docs/{v5e,v5p,v6e}; NVIDIA's datasheets of H200 (SXM, without sparsity) and
# DGX H200 (400 Gbit/s of network per GPU).
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 197e12, 16e9, 819e9, 200e9, 256),
        Chip("v5p", 459e12, 95e9, 2765e9, 600e9, 8960),
        Chip("v6e", 918e12, 32e9, 1638e9, 400e9, 256),
        Chip("h200", 989e12, 141e9, 4800e9, 450e9, 8, 50e9),
    )
}


@dataclass(frozen=True)
class Projection:
    """Seconds of a step on a chip; `fits` compares its memory with what XLA planned on the CPU."""

    chip: str
    compute_s: float
    link_s: float
    state_s: float  # parameters and optimiser once through memory, and back
    fits: bool

    @property
    def overlapped_s(self) -> float:
        """Where all exchanges hide behind the products."""
        return max(self.compute_s, self.link_s) + self.state_s

    @property
    def serial_s(self) -> float:
        """Where none does."""
        return self.compute_s + self.link_s + self.state_s


def reaches(chip: Chip, plan: StepPlan) -> bool:
    """Whether the rate at which so many of these chips exchange is known."""
    return _devices(plan) <= chip.linked or chip.network_rate > 0


def _devices(plan: StepPlan) -> int:
    return math.prod(plan.mesh.values())


def project(plan: StepPlan, chip: Chip) -> Projection:
    """FLOP over the rate achieved, bytes sent over that of the links, and the state's traffic.

    Augmentation, losses and clicks, which are no matrix products, are not in it, nor is input.
    Beyond what links join, the network carries all.
    """
    links = chip.link_rate if _devices(plan) <= chip.linked else chip.network_rate
    return Projection(
        chip.name,
        compute_s=plan.flop / (ACHIEVED_FLOP * chip.flop),
        link_s=plan.sent_bytes / (ACHIEVED_LINK * links),
        state_s=(plan.argument_bytes + plan.output_bytes) / chip.memory_rate,
        fits=plan.peak_bytes <= chip.memory_bytes,
    )
