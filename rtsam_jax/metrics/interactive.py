"""Measures of correcting by clicks.

A curve holds a score (Dice or NSD, 0 to 1) before any click and after each of K clicks: index k is
the score after k clicks. It need not rise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rtsam_jax.metrics.bootstrap import MeanInterval, bootstrap_mean
from rtsam_jax.metrics.summary import ALL_TASKS

Curve = Sequence[float]

TARGETS = (0.80, 0.85, 0.90)  # Dice
CHALLENGE_CLICKS = 5  # of the CVPR 2025 challenge on interactive 3-D segmentation


def reached(curve: Curve, target: float) -> bool:
    """Whether any point of a curve is at least `target`; its last click counts as any other."""
    return any(score >= target for score in curve)


def noc(curve: Curve, target: float) -> int:
    """Number of clicks until a curve first reaches `target`; K where it never does.

    0 where the first prediction needs no click. A curve that reaches the target with its last click
    has K as well; `reached` and `nof` tell the two apart.
    """
    return next((k for k, score in enumerate(curve) if score >= target), len(curve) - 1)


def nof(curves: Sequence[Curve], target: float) -> int:
    """Number of failures: curves that never reach `target`."""
    return sum(not reached(curve, target) for curve in curves)


def auc(curve: Curve) -> float:
    """Area under all of a curve by the trapezoid rule, over K: 0 to 1; NaN if a score is.

    Raises:
      ValueError: The curve has no click.
    """
    if len(curve) < 2:
        raise ValueError("A curve without clicks has no area.")
    return float(np.trapezoid(curve)) / (len(curve) - 1)


def cvpr_area(curve: Curve) -> float:
    """The CVPR 2025 challenge's area: from the first to the fifth click, 4.0 at most.

    What was there before the first click does not count: the challenge leaves it to the method.

    Raises:
      ValueError: The curve has less than five clicks.
    """
    if len(curve) <= CHALLENGE_CLICKS:
        raise ValueError(f"The challenge's area needs five clicks, not {len(curve) - 1}.")
    return float(np.trapezoid(curve[1 : CHALLENGE_CLICKS + 1]))


class PlacedClick(NamedTuple):
    """A click as the model was given it."""

    number: int  # from 1
    world_mm: tuple[float, float, float]  # RAS+
    positive: bool  # True: expand here


@dataclass(frozen=True)
class Interaction:
    """One case corrected by one user, scored on its label's original grid."""

    case: str
    patient: str
    task: str
    user: str
    dice: tuple[float, ...]  # a curve
    nsd_2mm: tuple[float, ...]  # a curve; NaN where both masks are empty
    clicks: tuple[PlacedClick, ...]  # fewer than K where nothing was left to correct
    out_of_reach: float  # share of the truth that lies outside every crop, where no click goes

    def measures(self) -> dict[str, float]:
        """All measures by name; those of the challenge where there are clicks enough."""
        found = {
            "dice_first": self.dice[0],
            "dice_last": self.dice[-1],
            "nsd_2mm_first": self.nsd_2mm[0],
            "nsd_2mm_last": self.nsd_2mm[-1],
            "auc": auc(self.dice),
        }
        for target in TARGETS:
            found[f"noc_{target * 100:.0f}"] = float(noc(self.dice, target))
            found[f"failed_{target * 100:.0f}"] = float(not reached(self.dice, target))
        if len(self.dice) > CHALLENGE_CLICKS:
            for name, curve in (("dice", self.dice), ("nsd_2mm", self.nsd_2mm)):
                found[f"cvpr_{name}_area"] = cvpr_area(curve)
                found[f"cvpr_{name}_final"] = curve[CHALLENGE_CLICKS]
        return found


@dataclass(frozen=True)
class UserSummary:
    """One user on the cases of one task, or of all (`ALL_TASKS`)."""

    task: str
    user: str
    n: int
    # Of the cases whose value is not NaN: how many, their mean and its 95 % interval by patient.
    measures: dict[str, tuple[int, MeanInterval]]
    dice: tuple[MeanInterval, ...]  # mean curve


def summarise_interactions(interactions: Sequence[Interaction]) -> list[UserSummary]:
    """Task by task in order of appearance, then over all; users in order of appearance.

    Args:
      interactions: All with the same number of clicks.
    """
    users = dict.fromkeys(item.user for item in interactions)
    tasks = dict.fromkeys(item.task for item in interactions)
    found = []
    for task in [*tasks, ALL_TASKS]:
        for user in users:
            items = [i for i in interactions if i.user == user and task in (i.task, ALL_TASKS)]
            if items:
                found.append(_summary(task, user, items))
    return found


def _summary(task: str, user: str, items: Sequence[Interaction]) -> UserSummary:
    patients = [item.patient for item in items]
    by_case = [item.measures() for item in items]
    measures = {}
    for name in by_case[0]:
        values = [measures_of[name] for measures_of in by_case]
        defined = sum(not math.isnan(value) for value in values)
        measures[name] = defined, bootstrap_mean(values, patients)
    curve = tuple(
        bootstrap_mean(scores, patients) for scores in zip(*(i.dice for i in items), strict=True)
    )
    return UserSummary(task, user, len(items), measures, curve)
