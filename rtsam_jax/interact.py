"""`python -m rtsam_jax.interact --run RUN [--split NAME] [--users ideal centre noisy]`.

Lets simulated users correct a trained run's predictions click by click, and scores what comes of
it: clicks needed, failures, areas under Dice over clicks. Definitions are in docs/interactive.md.
A stopped command goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from rtsam_jax.compilation import keep_compiled_programs
from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.cache import cache_root
from rtsam_jax.data.cases import Case
from rtsam_jax.data.fingerprints import fingerprints
from rtsam_jax.data.preprocess import PreprocessSpec
from rtsam_jax.data.selection import RunData, load_run_data
from rtsam_jax.errors import ConfigError, IncompleteCase, run_command
from rtsam_jax.evaluation.check import require_dose_boxes
from rtsam_jax.evaluation.click_model import ClickModel
from rtsam_jax.evaluation.kept_interactions import interaction_key, interactions
from rtsam_jax.evaluation.simulated_user import CentreUser, IdealUser, NoisyUser, User
from rtsam_jax.metrics.interactive import Interaction
from rtsam_jax.report.click_results import write_click_results
from rtsam_jax.text.prompt_set import prompt_set
from rtsam_jax.training.processes import require_alone
from rtsam_jax.training.restored import load_scoring_config, restore_model
from rtsam_jax.training.run import read_record

USERS = ("ideal", "centre", "noisy")
_NAMED = 5  # cases that a note names


def make_users(arguments: argparse.Namespace, spacing_mm: float) -> list[User]:
    """The users asked for, in the order of `USERS`."""
    users: dict[str, User] = {
        "ideal": IdealUser(arguments.candidates),
        "centre": CentreUser(),
        "noisy": NoisyUser(spacing_mm, arguments.shift_mm, arguments.wrong),
    }
    return [users[name] for name in USERS if name in arguments.users]


def chosen_cases(data: RunData, count: int) -> list[Case]:
    """The first `count` held-out cases that have a label; 0 is all.

    Raises:
        IncompleteCase: none has.
    """
    labelled = [case for case in data.held_out if case.label is not None]
    if not labelled:
        raise IncompleteCase(
            f"no case of {data.dataset.name}, split {data.held_out_name}, has a label, by which "
            "simulated users click; add labels, or name another split with --split."
        )
    return labelled[: count or None]


def notes(
    cfg: ExperimentConfig, users: Sequence[User], found: Sequence[Interaction], seed: int
) -> list[str]:
    """How the users were set, and what no click can mend."""
    lines = [
        f"Users: {'; '.join(user.name + _settings(user) for user in users)}; seed {seed}; they see "
        f"voxels of {cfg.data.spacing_mm:g} mm."
    ]
    beyond = {item.case: item.out_of_reach for item in found if item.out_of_reach > 0}
    if beyond:
        worst = sorted(beyond, key=lambda case: -beyond[case])[:_NAMED]
        named = ", ".join(f"{case} {beyond[case]:.1%}" for case in worst)
        count = len({item.case for item in found})
        lines.append(
            f"Cases with truth outside every crop, which counts as missed and which no click "
            f"reaches: {len(beyond)} of {count}; the largest share: {named}."
        )
    return lines


def _settings(user: User) -> str:
    settings = dataclasses.asdict(user)
    settings.pop("spacing_mm", None)
    said = ", ".join(f"{name} {value:g}" for name, value in settings.items())
    return f" ({said})" if said else ""


def check(arguments: argparse.Namespace) -> None:
    """Raises `ConfigError` for the first option that is out of range."""
    for option, right, rule in (
        ("clicks", arguments.clicks >= 1, "at least 1"),
        ("candidates", arguments.candidates >= 1, "at least 1"),
        ("shift_mm", 0 <= arguments.shift_mm < math.inf, "a length in mm from 0"),
        ("wrong", 0 <= arguments.wrong <= 1, "a share from 0 to 1"),
        ("seed", arguments.seed >= 0, "0 or above"),
        ("cases", arguments.cases >= 0, "0 or above"),
    ):
        if not right:
            value = getattr(arguments, option)
            raise ConfigError(f"--{option.replace('_', '-')} is {value}, but it must be {rule}.")


def run(arguments: argparse.Namespace) -> None:
    """Plays what is not played yet, writes the results, prints the tables."""
    cfg = load_scoring_config(
        arguments.run, split=arguments.split, language_model=arguments.language_model
    )
    require_dose_boxes(arguments.run, cfg)
    data = load_run_data(cfg)
    cases = chosen_cases(data, arguments.cases)
    prompts = prompt_set(cfg, data, train=False)
    restored = restore_model(
        cfg, data.tasks, text_width=prompts.width, language_model=prompts.language_model
    )
    model = ClickModel(
        restored.graphdef,
        restored.params,
        cfg,
        clicks=arguments.clicks,
        batch=arguments.candidates,
    )
    users = make_users(arguments, cfg.data.spacing_mm)
    about = {
        "config": read_record(arguments.run)["config"],
        "step": restored.step,
        "clicks": arguments.clicks,
        "seed": arguments.seed,
    }
    files = fingerprints(cases, cache_root(cfg))
    keys = {
        (case.id, user.name): interaction_key(about | {"case": [case.patient, line]}, user)
        for case, line in zip(cases, files, strict=True)
        for user in users
    }
    folder = arguments.run / "interactive" / data.held_out_name
    found = interactions(
        model,
        cases,
        users,
        modality=data.modality,
        spec=PreprocessSpec.from_config(cfg),
        text_ids=prompts.own,
        table=jax.tree.map(jnp.asarray, prompts.table),  # once, not for every click
        keys=keys,
        folder=folder,
        seed=arguments.seed,
    )
    heading = f"{data.dataset.name} ({data.dataset.kind}), split {data.held_out_name}"
    said = notes(cfg, users, found, arguments.seed)
    text = write_click_results(folder, found, heading=heading, kind=data.dataset.kind, notes=said)
    print(f"\n{heading}\n\n{text}\ntables and curves are in {folder}", flush=True)


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(prog="python -m rtsam_jax.interact", description=__doc__)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="folder of a trained run")
    add("--split", default="", help="split to correct; default: the run's own")
    add("--users", nargs="+", choices=USERS, default=USERS, help="default: all")
    add("--clicks", type=int, default=10, help="clicks per case")
    add("--candidates", type=int, default=8, help="clicks that the ideal user chooses from")
    add("--shift-mm", type=float, default=3.0, help="noisy user: displacement, root mean square")
    add("--wrong", type=float, default=0.1, help="noisy user: rate of wrong signs")
    add("--seed", type=int, default=0, help="of all that is random about the users")
    add("--cases", type=int, default=0, help="only the first so many; default: all")
    add("--language-model", default="", help="where the run's language model lies now")
    arguments = parser.parse_args()
    check(arguments)
    require_alone(os.environ)
    keep_compiled_programs()
    run(arguments)


if __name__ == "__main__":
    run_command(main)
