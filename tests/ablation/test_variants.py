"""Each variant differs from the config in the fields it names, and equal ones are one run."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtsam_jax.ablation.plan import (
    describe,
    folds,
    identity,
    make_plan,
    repeats,
    seeds,
)
from rtsam_jax.ablation.variants import STUDIES
from rtsam_jax.config_ranges import leaf_fields
from rtsam_jax.errors import ConfigError, UnknownConfigField
from rtsam_jax.flags import parse_config
from tests.tiny import REPOSITORY, tiny_config, write_config_file

VARIANTS = [variant for study in STUDIES.values() for variant in study.variants]


def config_file(folder: Path, **fields: object) -> str:
    whole = {"click__iterations": 3, "click__per_iteration": 4, "dose__tau": 0.8, **fields}
    cfg = tiny_config("dataset", prompt__task="text", prompt__language_model="lm", **whole)
    return str(write_config_file(folder / "config.py", cfg))


def plan_of(folder: Path, *more: str, studies=tuple(STUDIES), replicates=seeds([0]), **fields):  # noqa: B008  # immutable
    arguments = ["--config", config_file(folder, **fields), *more]
    return make_plan(arguments, studies, replicates)


def leaves(cfg) -> dict[str, object]:
    return {name: value for name, value in leaf_fields(cfg) if name != "out"}


def test_a_run_differs_from_the_whole_method_in_the_named_fields_alone(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    whole = leaves(plan.cfg)
    assert len(plan.runs) > 10
    for run in plan.runs:
        variant = next(v for v in VARIANTS if v.name == run.variant)
        found = {name: value for name, value in leaves(run.cfg).items() if value != whole[name]}
        named = {name: value for name, value in variant.changes.items() if value != whole[name]}
        assert found == named, run.name


def changed(plan, name: str) -> dict[str, object]:
    (run,) = [run for run in plan.runs if run.variant == name]
    whole = leaves(plan.cfg)
    return {k: v for k, v in leaves(run.cfg).items() if v != whole[k]}


def test_table_2_takes_the_method_apart_step_by_step(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, studies=["components"])
    steps = ["base-t-b-c-l", "base-t-b-c", "base-t-b", "base-t", "base"]
    found = [changed(plan, name) for name in steps]
    loss = {"loss.dice": 0.0, "loss.focal_tversky": 0.0}
    assert found == [
        {},
        loss,
        {**loss, "click.iterations": 0},
        {**loss, "click.iterations": 0, "prompt.box": False},
        {**loss, "click.iterations": 0, "prompt.box": False, "prompt.task": "none"},
    ]
    assert changed(plan, "base-id") == {**found[4], "prompt.task": "embedding"}
    assert changed(plan, "base-t-b-image") == {**found[2], "data.crop": "image"}


def test_equal_variants_are_trained_once_whatever_they_are_called(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, replicates=seeds([0, 1, 2]))
    rows = [(study.name, v.name) for study in STUDIES.values() for v in study.variants]
    assert (len(rows), len(plan.runs)) == (29, 18 * 3)
    assert len({identity(run.cfg) for run in plan.runs}) == len(plan.runs)
    shared = {name: owner for name, owner in plan.run_of.items() if name != owner}
    assert shared == {
        "tau-0.8": "base-t-b",
        "iterations-0": "base-t-b",
        "clicks-0": "base-t-b",
        "iterations-3": "base-t-b-c",
        "loss-dice-ce": "base-t-b-c",
        "loss-sum": "base-t-b-c-l",
    }
    said = describe(plan)
    assert "18 different variants" in said and "54 runs, 54 of them to do" in said


def test_sharing_follows_the_config_not_the_name(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "--config.dose.tau=0.5", "--config.click.sampling=balanced")
    assert plan.run_of["tau-0.5"] == "base-t-b" and plan.run_of["tau-0.8"] == "tau-0.8"
    assert plan.run_of["clicks-4"] == "base-t-b-c"  # now both take half from each


def test_a_folder_keeps_its_name_when_other_studies_are_asked_for(tmp_path: Path) -> None:
    alone, every = plan_of(tmp_path, studies=["tau"]), plan_of(tmp_path)
    assert {run.folder for run in alone.runs} <= {run.folder for run in every.runs}
    assert len(alone.runs) == 5


def test_names_mean_the_same_in_every_study_and_rows_are_compared_within_theirs() -> None:
    changes = {}
    for study in STUDIES.values():
        names = [variant.name for variant in study.variants]
        assert len(set(names)) == len(names)
        for variant in study.variants:
            assert variant.against in ("", *names[: names.index(variant.name)])
            assert dict(changes.setdefault(variant.name, variant.changes)) == dict(variant.changes)
            assert (variant.at is not None) == (study.draws == "curve")


def test_a_runs_command_alone_gives_its_config(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "--config.steps", "7", "--config.out=there", "--config.seed=9")
    for run in plan.runs:
        assert run.cfg == parse_config(["train", *run.arguments], usage="")
        assert run.cfg.steps == 7 and run.cfg.seed == 0
        assert run.folder == Path("there") / run.variant / "seed0"


def test_replicates_are_seeds_folds_or_splits(tmp_path: Path) -> None:
    def values(replicates, *names: str) -> list[tuple[object, ...]]:
        plan = plan_of(tmp_path, studies=["text"], replicates=replicates)
        base = [run for run in plan.runs if run.variant == "base"]
        return [tuple(leaves(run.cfg)[name] for name in names) for run in base]

    assert values(seeds([3, 5]), "seed") == [(3,), (5,)]
    inner = "data.inner_folds", "data.inner_fold"
    assert values(folds(3), *inner, "seed") == [(3, 0, 0), (3, 1, 0), (3, 2, 0)]
    assert values(repeats(2), "data.split_seed", "seed") == [(0, 0), (1, 0)]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"evaluate": False}, "config.evaluate"),
        ({"click__iterations": 0}, "config.click.iterations"),
        ({"click__iterations": 1, "loss__pass_weights": (0.7, 0.3)}, "config.loss.pass_weights"),
        ({"loss__dice": 0.0, "loss__focal_tversky": 0.0}, "config.loss.dice"),
        ({"loss__dice_ce": 0.0}, "config.loss.dice_ce"),
        ({"dose__threshold": "absolute", "dose__gy": 40.0}, "config.dose.threshold"),
    ],
)
def test_a_config_that_is_not_the_whole_method_is_refused(
    tmp_path: Path, fields: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{named} must be .* whole method"):
        plan_of(tmp_path, **fields)


def test_folds_of_a_config_that_has_its_own_are_refused(tmp_path: Path) -> None:
    inner = {"data__inner_folds": 3, "data__inner_fold": 0}
    with pytest.raises(ConfigError, match="config.data.inner_folds is set as well as --folds"):
        plan_of(tmp_path, replicates=folds(2), **inner)


def test_an_unknown_field_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UnknownConfigField, match="config.stepps does not exist"):
        plan_of(tmp_path, "--config.stepps=3")


@pytest.mark.parametrize("name", ["ablation_phantom", "ablation_openkbp"])
def test_the_projects_configs_are_whole_and_share_all_they_can(name: str) -> None:
    file = REPOSITORY / "configs" / f"{name}.py"
    plan = make_plan(["--config", str(file)], [*STUDIES], seeds([0, 1, 2]))
    assert len(plan.runs) == 18 * 3 and plan.out == Path("runs") / name


def test_seeds_start_from_one_pretraining_with_its_encoder_frozen(tmp_path: Path) -> None:
    arguments = ["--config", config_file(tmp_path), "--config.seed=5"]
    plan = make_plan(arguments, ["components"], seeds([0, 1]), pretrain_steps=33)
    [first] = plan.pretraining
    assert first.name == "pretrained/seed5" and first.cfg.steps == 33
    assert first.cfg.model == plan.cfg.model  # trained as a whole
    clicks = first.cfg.click == plan.cfg.click and first.cfg.loss.dice == 0
    assert clicks and first.cfg.prompt.task == "none" and not first.cfg.prompt.box
    without = make_plan(arguments, ["components"], seeds([0, 1]))
    assert not without.pretraining and len(without.runs) == len(plan.runs)
    for run, fresh in zip(plan.runs, without.runs, strict=True):
        changed = leaves(run.cfg).items() ^ leaves(fresh.cfg).items()
        assert {name for name, _ in changed} <= {"model.checkpoint", "model.freeze_encoder"}
        assert run.cfg.model.checkpoint == str(first.folder) and run.cfg.model.freeze_encoder


def test_a_pretraining_never_sees_who_is_held_out(tmp_path: Path) -> None:
    arguments = ["--config", config_file(tmp_path)]
    for replicates in (folds(3), repeats(2)):
        plan = make_plan(arguments, ["text"], replicates, pretrain_steps=33)
        assert len(plan.pretraining) == len(replicates)
        for run in plan.runs:
            [first] = (r for r in plan.pretraining if str(r.folder) == run.cfg.model.checkpoint)
            for field in ("split_seed", "inner_folds", "inner_fold", "eval_split"):
                assert getattr(first.cfg.data, field) == getattr(run.cfg.data, field)


def test_a_pretraining_is_done_without_scores(tmp_path: Path) -> None:
    arguments = ["--config", config_file(tmp_path), f"--config.out={tmp_path / 'out'}"]
    plan = make_plan(arguments, ["text"], seeds([0]), pretrain_steps=33)
    [first] = plan.pretraining
    assert not first.done
    first.done_file.parent.mkdir(parents=True)
    first.done_file.write_text("{}")
    assert first.done
    plan.runs[0].done_file.parent.mkdir(parents=True)
    plan.runs[0].done_file.write_text("{}")
    assert not plan.runs[0].done  # not scored
