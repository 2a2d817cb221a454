"""What is timed: each case on our side and on the rivals', in turn."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from rtsam_jax.benchmark.augmentation import monai_augment, our_augment, source_volume
from rtsam_jax.benchmark.ours import OurSide, synthetic_batch
from rtsam_jax.benchmark.profile import Share, profile
from rtsam_jax.benchmark.rival import RIVALS as TORCH_RIVALS
from rtsam_jax.benchmark.rival import RivalSide, TorchModel
from rtsam_jax.benchmark.timing import (
    Contender,
    Ratio,
    Timing,
    ratio,
    take_turns,
    time_in_turn,
    warm_up,
)
from rtsam_jax.config import ExperimentConfig, ModelConfig
from rtsam_jax.errors import ConfigError, ExtraMissing
from rtsam_jax.models.presets import get_spec

ENCODER_CASES = ("encoder", "encoder_grad")
TRAINING_CASES = ("refine", "step")
MODEL_CASES = (*ENCODER_CASES, *TRAINING_CASES, "predict", "click")
CASES = (*MODEL_CASES, "augment")
RIVALS = (*TORCH_RIVALS, "monai")

Side = TypeVar("Side")


@dataclass(frozen=True)
class Rivals:
    """Of `RIVALS`: those that must take part, and those that do where they can be had.

    Attributes:
        left_out: of those that were tried, which cannot be had and why.
    """

    named: frozenset[str] = frozenset()
    tried: frozenset[str] = frozenset()
    left_out: list[str] = field(default_factory=list)

    @classmethod
    def asked(cls, names: Sequence[str]) -> Rivals:
        """From the command line: names, "auto" for all that can be had, or "none"."""
        tried = frozenset(RIVALS) if "auto" in names else frozenset()
        return cls(frozenset(names) - {"auto", "none"}, tried)


@dataclass
class Result:
    """One case: what each side took, ours first, and how many times as long each rival takes."""

    case: str
    batch: int
    timings: list[Timing]
    ratios: list[Ratio]
    failed: list[str] = field(default_factory=list)  # rivals that gave up, and why


def bench_config(preset: str, batch: int, dtype: str = "float32") -> ExperimentConfig:
    """The recipe that is timed: the defaults, with a learned task prompt."""
    model = ModelConfig(preset=preset, compute_dtype=dtype)
    cfg = ExperimentConfig(batch_size=batch, model=model)
    cfg.prompt.task = "embedding"  # no language model is timed
    return cfg


def model_sides(cfg: ExperimentConfig, rivals: Rivals) -> list[OurSide | RivalSide]:
    """Our model, and those of the rivals; says which of those that were tried cannot be had.

    Raises:
        ConfigError: a rival asked for by name has no such preset, or not on this device.
        ExtraMissing: it is not installed.
    """
    sides: list[OurSide | RivalSide] = [OurSide(cfg)]
    wanted = [name for name in TORCH_RIVALS if name in rivals.named | rivals.tried]
    if not wanted:
        return sides
    first = next((name for name in wanted if name in rivals.named), wanted[0])
    for model in optional(first, rivals, lambda: TorchModel(cfg)):
        for name in wanted:
            sides += optional(name, rivals, partial(_rival_side, model, name))
    return sides


def _rival_side(model: TorchModel, side: str) -> RivalSide:
    if side == "medim-compile" and model.device == "cpu" and not shutil.which("g++"):
        raise ExtraMissing(
            "torch.compile needs a C++ compiler on a CPU; install g++, or name other rivals."
        )
    return RivalSide(model, side)


def optional(name: str, rivals: Rivals, make: Callable[[], Side]) -> list[Side]:
    """The rival, or nothing where it takes no part, or was only tried and cannot be had."""
    if name in rivals.named:
        return [make()]
    if name not in rivals.tried:
        return []
    try:
        return [make()]
    except (ExtraMissing, ConfigError) as reason:
        if (line := f"Left out: {reason}") not in rivals.left_out:
            rivals.left_out.append(line)
        return []


def run_case(
    case: str,
    sides: Sequence[OurSide | RivalSide],
    batch: int,
    rounds: int,
    trace: Path | None = None,
) -> tuple[Result, list[Share]]:
    """One case of `MODEL_CASES` on every side.

    Args:
        trace: folder for a profile of our side; None: none is made.
    """
    samples = synthetic_batch(sides[0].spec.image_size, batch)
    print(f"{case}, batch {batch}: {', '.join(side.side for side in sides)}", file=sys.stderr)
    ours = getattr(sides[0], case)(samples)
    contenders, timings, failed = [ours], [warm_up(ours)], []
    for rival in sides[1:]:
        try:
            contender = getattr(rival, case)(samples)
            timings.append(warm_up(contender))
        except Exception as cause:  # of a compiler, or memory: the table says it, the others go on
            reason = (str(cause).strip().splitlines() or [""])[0]
            failed.append(f"{rival.side} failed in {case}: {type(cause).__name__}: {reason}")
        else:
            contenders.append(contender)
    take_turns(contenders, timings, rounds)
    ratios = [ratio(timings[0], other) for other in timings[1:]]
    return Result(case, batch, timings, ratios, failed), _profiled(ours, trace)


def run_augmentation(
    preset: str, rounds: int, rivals: Rivals, trace: Path | None = None
) -> tuple[Result, list[Share]]:
    """One volume through `data.augment`, and through MONAI's transforms on the CPU."""
    size = get_spec(preset).image_size
    source = source_volume(size)
    theirs = optional("monai", rivals, partial(monai_augment, source, size))
    contenders = [our_augment(source, size), *theirs]
    return compare("augment", 1, contenders, rounds), _profiled(contenders[0], trace)


def compare(case: str, batch: int, contenders: Sequence[Contender], rounds: int) -> Result:
    """Times contenders in turn, ours first."""
    print(f"{case}, batch {batch}: {', '.join(c.side for c in contenders)}", file=sys.stderr)
    timings = time_in_turn(contenders, rounds)
    return Result(case, batch, timings, [ratio(timings[0], other) for other in timings[1:]])


def _profiled(contender: Contender, folder: Path | None) -> list[Share]:
    return profile(contender, folder) if folder else []
