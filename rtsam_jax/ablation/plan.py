"""Which runs a set of studies needs: every variant once per replicate, equal ones shared."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtsam_jax.ablation.variants import (
    PRETRAINING,
    STUDIES,
    Changes,
    Study,
    Variant,
    require_whole_method,
)
from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.selection import held_out_name
from rtsam_jax.errors import ConfigError
from rtsam_jax.flags import parse_config
from rtsam_jax.report.tables import Table, render

_OWN = ("out", "seed")  # fields that a run is given here, not by the user
PRETRAINED = "pretrained"
DONE = ".json"  # beside a run's folder, once its command has ended well
LOG = ".log"


@dataclass(frozen=True)
class Replicate:
    """One of the repetitions of every variant: a seed, a fold or another split."""

    name: str  # of its folder
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One training: a variant in one replicate, or what such trainings start from.

    Attributes:
        variant: name of the first variant that is this run, or `PRETRAINED`.
        arguments: of `python -m rtsam_jax.train`.
        cfg: what these say.
    """

    variant: str
    replicate: Replicate
    arguments: tuple[str, ...]
    cfg: ExperimentConfig

    @property
    def name(self) -> str:
        return f"{self.variant}/{self.replicate.name}"

    @property
    def folder(self) -> Path:
        return Path(self.cfg.out)

    @property
    def log(self) -> Path:
        """What its command prints."""
        return self.folder.with_name(self.folder.name + LOG)

    @property
    def done_file(self) -> Path:
        """Says how long it took; there once it is trained and, unless `PRETRAINED`, scored."""
        return self.folder.with_name(self.folder.name + DONE)

    @property
    def cases_file(self) -> Path:
        """Its measures, case by case."""
        return self.folder / "evaluation" / held_out_name(self.cfg) / "cases.csv"

    @property
    def done(self) -> bool:
        scored = not self.cfg.evaluate or self.cases_file.is_file()
        return self.done_file.is_file() and scored

    @property
    def command(self) -> list[str]:
        """As a shell would be given it."""
        return ["python", "-m", "rtsam_jax.train", *self.arguments]


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        cfg: the whole method's, without any variant.
        out: folder of everything.
        run_of: by a variant's name, the name of the one whose runs it shares: often its own.
        runs: in the order of the studies, replicate by replicate, so that the first replicate of
            everything is there early.
        pretraining: runs that those start from, one per split of the patients; () for none.
        earlier: those of the studies that only earlier commands in the same folder asked for.
    """

    cfg: ExperimentConfig
    out: Path
    studies: tuple[Study, ...]
    replicates: tuple[Replicate, ...]
    run_of: Mapping[str, str]
    runs: tuple[Run, ...]
    pretraining: tuple[Run, ...] = ()
    earlier: tuple[str, ...] = ()

    def of(self, variant: Variant) -> list[Run]:
        """A variant's runs, one per replicate."""
        return [run for run in self.runs if run.variant == self.run_of[variant.name]]

    def page(self, study: Study) -> Path:
        """The folder of a study's page."""
        return self.out / "studies" / study.name


def seeds(numbers: Sequence[int]) -> tuple[Replicate, ...]:
    """The same splits, another initialisation and another order of cases."""
    return tuple(Replicate(f"seed{n}", {"seed": n}) for n in numbers)


def folds(count: int) -> tuple[Replicate, ...]:
    """Every patient of the training split held out once."""
    return tuple(
        Replicate(f"fold{k}of{count}", {"data.inner_folds": count, "data.inner_fold": k})
        for k in range(count)
    )


def repeats(count: int) -> tuple[Replicate, ...]:
    """Other splits into training and test patients."""
    return tuple(Replicate(f"split{n}", {"data.split_seed": n}) for n in range(count))


def make_plan(
    arguments: Sequence[str],
    studies: Sequence[str],
    replicates: Sequence[Replicate],
    *,
    pretrain_steps: int = 0,
) -> Plan:
    """The runs of some studies.

    With `pretrain_steps` they start from a run that was taught by clicks alone, on the same
    training patients, and keep its image encoder frozen (Sec. 3.1), as one would with published
    weights. Seeds share that run; a fold or another split has its own, since it may not have seen
    the patients who are held out there.

    Args:
        arguments: `--config FILE` and `--config.FIELD=VALUE`, as for `rtsam_jax.train`.
        studies: names of `STUDIES`.
        pretrain_steps: of the run they start from; 0: from `config.model.checkpoint`, or nothing.

    Raises:
        ConfigError: the config is not the whole method, or a variant of it is out of range.
    """
    arguments = _joined(arguments)
    cfg = _parse(arguments, {})
    require_whole_method(cfg)
    _require_unset(cfg, replicates)
    out = Path(cfg.out_dir)
    shared = [argument for argument in arguments if _field(argument) not in _OWN]
    # Over all studies, so that a folder's name does not depend on which are asked for.
    owner: dict[str, str] = {}
    run_of: dict[str, str] = {}
    for variant in (variant for study in STUDIES.values() for variant in study.variants):
        same = identity(_parse(shared, variant.changes))
        run_of.setdefault(variant.name, owner.setdefault(same, variant.name))
    chosen = tuple(study for name, study in STUDIES.items() if name in studies)
    distinct = {run_of[variant.name]: variant for study in chosen for variant in study.variants}

    def make_run(name: str, replicate: Replicate, changes: Changes) -> Run:
        changes = {"seed": cfg.seed, **changes, **replicate.changes}
        changes["out"] = str(out / name / replicate.name)
        own = (*shared, *map(_override, changes, changes.values()))
        return Run(name, replicate, own, _parse(own, {}))

    runs, pretraining = [], dict[str, Run]()
    for replicate in replicates:
        start: Changes = {}
        if pretrain_steps:
            split = replicate if set(replicate.changes) - {"seed"} else seeds([cfg.seed])[0]
            if split.name not in pretraining:
                wanted = {**PRETRAINING, "steps": pretrain_steps}
                pretraining[split.name] = make_run(PRETRAINED, split, wanted)
            before = str(pretraining[split.name].folder)
            start = {"model.checkpoint": before, "model.freeze_encoder": True}
        for name, variant in distinct.items():
            runs.append(make_run(name, replicate, {**start, **variant.changes}))
    return Plan(
        cfg, out, chosen, tuple(replicates), run_of, tuple(runs), tuple(pretraining.values())
    )


def with_earlier(plan: Plan, whole: Plan) -> Plan:
    """The plan, and the other studies that earlier commands left in its folder, as far as run.

    What is written of a plan replaces what was there, and so must hold these too.

    Args:
        whole: the same with all studies.
    """
    earlier = [
        study
        for study in whole.studies
        if study not in plan.studies
        and whole.page(study).is_dir()
        and any(run.done for variant in study.variants for run in whole.of(variant))
    ]
    studies = tuple(study for study in whole.studies if study in (*plan.studies, *earlier))
    used = {whole.run_of[variant.name] for study in studies for variant in study.variants}
    return dataclasses.replace(
        whole,
        studies=studies,
        runs=tuple(run for run in whole.runs if run.variant in used),
        earlier=tuple(study.name for study in earlier),
    )


def identity(cfg: ExperimentConfig) -> str:
    """What two configs have in common if they are the same run: all but the folder."""
    return dataclasses.replace(cfg, out="").to_json()


def _parse(arguments: Sequence[str], changes: Mapping[str, Any]) -> ExperimentConfig:
    overrides = map(_override, changes, changes.values())
    return parse_config([sys.argv[0], *arguments, *overrides], usage="")


def _joined(arguments: Sequence[str]) -> list[str]:
    """`--config.FIELD VALUE` as one argument, so that the two stay together."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            if not argument.startswith("--"):
                joined[-1] += f"={argument}"
                continue
        joined.append(argument)
    return joined


def _override(name: str, value: Any) -> str:
    return f"--config.{name}={value}"


def _field(argument: str) -> str:
    """The field that an argument sets, or ""."""
    name = argument.partition("=")[0]
    return name.removeprefix("--config.") if name.startswith("--config.") else ""


def _require_unset(cfg: ExperimentConfig, replicates: Sequence[Replicate]) -> None:
    """Raises where the config itself sets what the replicates vary, beside the seed."""
    if cfg.data.inner_folds and "data.inner_folds" in replicates[0].changes:
        raise ConfigError("config.data.inner_folds is set as well as --folds; leave out one.")


def describe(plan: Plan) -> str:
    """The plan as a table: each distinct variant, what it changes, who uses it, what is done."""
    rows = []
    for name in dict.fromkeys(run.variant for run in plan.runs):
        runs = [run for run in plan.runs if run.variant == name]
        users = [
            (study, variant)
            for study in plan.studies
            for variant in study.variants
            if plan.run_of[variant.name] == name
        ]
        changes = ", ".join(f"{k.split('.')[-1]}={v}" for k, v in users[0][1].changes.items())
        used = ", ".join(f"{study.name}: {variant.title}" for study, variant in users)
        done = sum(run.done for run in runs)
        rows.append((name, changes, used, f"{done}/{len(runs)}"))
    table = render(Table(("Folder", "Changes", "Used by", "Done"), tuple(rows)))
    asked = sum(len(study.variants) for study in plan.studies)
    studies = ", ".join(study.name for study in plan.studies)
    named = ", ".join(replicate.name for replicate in plan.replicates)
    left = sum(not run.done for run in plan.runs)
    return (
        f"{table}\n{asked} rows in studies ({studies}) are {len(rows)} different variants, each "
        f"trained as {named}: {len(plan.runs)} runs, {left} of them to do, in {plan.out}\n"
    )
