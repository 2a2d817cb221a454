"""The studies: what each varies, as data. A variant is the fields by which it leaves a config.

The config is the whole method (Base-T-B-C-L). Table 2 takes its parts away again, and Figs. 8 and 9
vary Base-T-B. Rows without L use Dice-CE alone; whatever is trained with clicks is still tested
without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.errors import ConfigError

Changes = Mapping[str, Any]

_DICE_CE: Changes = {"loss.dice": 0.0, "loss.focal_tversky": 0.0, "loss.dice_ce": 1.0}
_BASE: Changes = {
    "prompt.task": "none",
    "prompt.box": False,
    "click.iterations": 0,
    **_DICE_CE,
}
_T: Changes = {**_BASE, "prompt.task": "text"}
_ID: Changes = {**_BASE, "prompt.task": "embedding"}
_TB: Changes = {**_T, "prompt.box": True}
_TBC: Changes = {"prompt.task": "text", "prompt.box": True, **_DICE_CE}  # clicks as in the config
_TBCL: Changes = {"prompt.task": "text", "prompt.box": True}  # and the loss
_TILED: Changes = {"data.crop": "image"}

# What all variants may start from: a model of clicks alone, as SAM-Med3D's, that knows no task.
PRETRAINING: Changes = {
    "prompt.task": "none",
    "prompt.box": False,
    "evaluate": False,
    **_DICE_CE,
}

TAUS = (0.5, 0.6, 0.7, 0.8, 0.9)
ITERATIONS = (0, 1, 3, 5)
CLICKS = (2, 4, 6)


@dataclass(frozen=True)
class Variant:
    """A row of a table or a point of a curve.

    Attributes:
        name: of its folder, unless an earlier variant of any study is the same run.
        title: in tables and figures.
        changes: by dotted field of the config.
        against: name of the row of the same study that it is compared with; "" for none.
        at: where it stands on the axis of a curve.
    """

    name: str
    title: str
    changes: Changes
    against: str = ""
    at: float | None = None


@dataclass(frozen=True)
class Study:
    """Variants that are read together.

    Attributes:
        figure: stem of its picture's file name.
        draws: "rows": a mark per variant | "tasks": bars by task | "curve": a line through them.
        axis: what a curve is drawn against.
        note: a sentence that its table cannot do without.
    """

    name: str
    title: str
    figure: str
    draws: str
    variants: tuple[Variant, ...]
    axis: str = ""
    note: str = field(default="", kw_only=True)


_COMPONENTS = Study(
    "components",
    "Components (Table 2)",
    "table2",
    "rows",
    (
        Variant("base", "Base", _BASE),
        Variant("base-t", "Base-T", _T, against="base"),
        Variant("base-id", "Base, plain task id", _ID, against="base-t"),
        Variant("base-t-b", "Base-T-B", _TB, against="base-t"),
        Variant("base-t-b-image", "Base-T-B, crop without dose", {**_TB, **_TILED}, "base-t-b"),
        Variant("base-t-b-c", "Base-T-B-C", _TBC, against="base-t-b"),
        Variant("base-t-b-c-l", "Base-T-B-C-L", _TBCL, against="base-t-b-c"),
    ),
    note="Rows without L are trained on Dice-CE alone, and all are tested without clicks.",
)
_CROP = Study(
    "crop",
    "The box, with and without the dose in the crop",
    "crop",
    "rows",
    (
        Variant("base-t", "Base-T", _T),
        Variant("base-t-b", "Base-T-B", _TB, against="base-t"),
        Variant("base-t-image", "Base-T, crop without dose", {**_T, **_TILED}, "base-t"),
        Variant("base-t-b-image", "Base-T-B, crop without dose", {**_TB, **_TILED}, "base-t-image"),
    ),
    note="A crop centred on the dose box tells where the dose is high without any box.",
)
_TEXT = Study(
    "text",
    "Text by task (Fig. 6)",
    "fig6",
    "tasks",
    (Variant("base", "Base", _BASE), Variant("base-t", "Base-T", _T, against="base")),
)
_TAU = Study(
    "tau",
    "Dose threshold (Fig. 8)",
    "fig8",
    "curve",
    tuple(
        Variant(
            f"tau-{tau:g}",
            f"tau {tau:g}",
            {**_TB, "dose.tau": tau},
            against=f"tau-{TAUS[0]:g}" if tau > TAUS[0] else "",
            at=tau,
        )
        for tau in TAUS
    ),
    "tau, share of the threshold's dose",
    note="Base-T-B: tau moves the box, and with it the crop.",
)
_ITERATIONS = Study(
    "iterations",
    "Refinement iterations in training (Fig. 9a)",
    "fig9a",
    "curve",
    tuple(
        Variant(
            f"iterations-{count}",
            f"{count} iterations",
            {**_TBC, "click.iterations": count},
            against="iterations-0" if count else "",
            at=count,
        )
        for count in ITERATIONS
    ),
    "refinement iterations",
    note="Base-T-B with clicks in training, tested without. The clicks are drawn by "
    "config.click.sampling, in Fig. 9b half of them on foreground.",
)
_CLICKS = Study(
    "clicks",
    "Clicks per iteration in training (Fig. 9b)",
    "fig9b",
    "curve",
    (
        Variant("clicks-0", "no clicks", _TB, at=0),
        *(
            Variant(
                f"clicks-{count}",
                f"{count} clicks",
                {**_TBC, "click.per_iteration": count, "click.sampling": "balanced"},
                against="clicks-0",
                at=count,
            )
            for count in CLICKS
        ),
    ),
    "clicks per iteration, half of them on foreground",
    note="Base-T-B with clicks in training, tested without.",
)
_LOSS = Study(
    "loss",
    "Loss, with all prompts",
    "loss",
    "rows",
    (
        Variant("loss-stf", "L_STF alone", {**_TBCL, "loss.dice_ce": 0.0}),
        Variant("loss-dice-ce", "Dice-CE alone", _TBC, against="loss-stf"),
        Variant("loss-sum", "L_STF + Dice-CE", _TBCL, against="loss-dice-ce"),
    ),
    note="L_STF is Eq. (1), inside the high-dose region; Dice-CE is over the whole crop.",
)

STUDIES = {
    study.name: study for study in (_COMPONENTS, _TEXT, _CROP, _TAU, _ITERATIONS, _CLICKS, _LOSS)
}


def require_whole_method(cfg: ExperimentConfig) -> None:
    """Raises `ConfigError` where a config lacks what the studies take away or vary."""

    def need(holds: bool, name: str, rule: str) -> None:
        if not holds:
            raise ConfigError(
                f"config.{name} must be {rule}, since an ablation starts from the whole method."
            )

    need(cfg.evaluate, "evaluate", "True")
    need(cfg.click.iterations > 0, "click.iterations", "at least 1")
    need(cfg.loss.pass_weights == (), "loss.pass_weights", "empty, for any number of passes")
    in_roi = cfg.loss.dice > 0 or cfg.loss.focal_tversky > 0
    need(in_roi, "loss.dice", "positive, or config.loss.focal_tversky")
    need(cfg.loss.dice_ce > 0, "loss.dice_ce", "positive, as in L_STF + Dice-CE")
    need(cfg.dose.threshold != "absolute", "dose.threshold", "another than 'absolute'")
