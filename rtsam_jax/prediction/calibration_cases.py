"""Which cases a run's confidence is calibrated on, and on which others it is measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.cache import cache_root
from rtsam_jax.data.cases import Case
from rtsam_jax.data.fingerprints import fingerprints
from rtsam_jax.data.selection import RunData, load_run_data, splits_of
from rtsam_jax.errors import ConfigError, IncompleteCase
from rtsam_jax.training.model_file import check_tasks
from rtsam_jax.training.restored import load_run_config, load_scoring_config
from rtsam_jax.training.run import RECORD, require_train_cases
from rtsam_jax.training.seen import Seen, read_seen, require_not_among, those_among

VALIDATION = "val"  # the split that is calibrated on where none is named


class CalibrationCases(NamedTuple):
    """What `calibration_cases` chose.

    Attributes:
        cfg: of the run, with the split as the one that is held out.
        data: its training cases, and as `held_out` the labelled ones to calibrate on.
        others: labelled cases by split that the run has neither seen nor is calibrated on.
        doubts: sentences, without their full stops, on why it may have seen some all the same.
    """

    cfg: ExperimentConfig
    data: RunData
    others: dict[str, list[Case]]
    doubts: tuple[str, ...]


def calibration_cases(run: Path, *, split: str, language_model: str) -> CalibrationCases:
    """Chooses cases that neither a run nor those that it started from were trained on.

    Args:
        run: its folder.
        split: "" is "val" where none of them was trained on it, and else the run's own.
        language_model: where the run's lies now; "" is where it lay.

    Raises:
        IncompleteCase, ConfigError, MissingFile: as `calibrate_run`.
        RTSamError: of the run or its dataset.
    """
    # The run's own, whatever split is calibrated on: with inner folds the two differ.
    own_cfg = load_run_config(run)
    own_cfg.evaluate = False
    own_cfg.data.builder, own_cfg.data.builder_cases = "", 0  # a dataset that is gone is not made
    if own_cfg.dose.source == "label":
        raise ConfigError(
            f"the run {run} was trained with boxes around labels, in whose place predictions are "
            "given boxes by hand, which no dataset has; its confidence cannot be calibrated."
        )
    own_data = load_run_data(own_cfg)
    seen = read_seen(run)
    split = split or _default_split(own_cfg, own_data, seen)
    cfg = load_scoring_config(run, split=split, language_model=language_model)
    data = load_run_data(cfg)
    check_tasks(run, data.tasks)
    cache = cache_root(cfg)
    recorded = require_train_cases(run, own_cfg, fingerprints(own_data.train, cache))
    labelled = tuple(case for case in data.held_out if case.label is not None)
    if not labelled:
        raise IncompleteCase(
            f"no case of {data.dataset.name}, split {data.held_out_name}, has a label to calibrate "
            "by; add labels, or name another split with --split."
        )
    if {case.id for case in labelled} & {case.id for case in own_data.train}:
        raise ConfigError(
            f"the run {run} was trained on the split {data.held_out_name!r}, so its confidence "
            "there says nothing; name another with --split."
        )
    require_not_among(seen, run, labelled, cache, mend="name another split with --split")
    doubts = [] if recorded else [_unrecorded(run)]
    doubts += [seen.doubt] if seen.doubt else []
    for doubt in doubts:
        print(f"warning: {doubt}", flush=True)
    data = dataclasses.replace(data, train=own_data.train, held_out=labelled)
    others = _other_splits(cfg, data)
    for name, cases in list(others.items()):
        known = those_among(seen, cases, cache)
        others[name] = [case for case in cases if case.id not in known]
    others = {name: cases for name, cases in others.items() if cases}
    return CalibrationCases(cfg, data, others, tuple(doubts))


def _unrecorded(run: Path) -> str:
    return (
        f"{run / RECORD} does not record the training cases, as that of an earlier version: "
        f"whether {run} was trained on cases that are held out here cannot be told"
    )


def _default_split(cfg: ExperimentConfig, data: RunData, seen: Seen) -> str:
    """The dataset's validation split where it can be calibrated on, else "", the run's own."""
    splits, trained_on = splits_of(data.dataset, cfg), {case.patient for case in data.train}
    cases = [case for case in data.dataset.cases if splits[case.id] == VALIDATION]
    labelled = [case for case in cases if case.task in data.tasks and case.label is not None]
    patients = {case.patient for case in labelled}
    known = patients & trained_on or those_among(seen, labelled, cache_root(cfg))
    if len(patients) > 1 and not known:
        return VALIDATION
    print(
        f"warning: {data.dataset.name} has no split {VALIDATION!r} with labels of several patients "
        "that neither the run nor one that it started from was trained on, so it is calibrated on "
        f"its own, {data.held_out_name!r}, and what it is scored on there is no longer unseen; "
        "name another with --split.",
        flush=True,
    )
    return ""


def _other_splits(cfg: ExperimentConfig, data: RunData) -> dict[str, list[Case]]:
    """Complete cases of the run's tasks by split, of splits neither trained nor calibrated on."""
    splits = splits_of(data.dataset, cfg)
    used = {case.id for case in (*data.train, *data.held_out)}
    found: dict[str, list[Case]] = {}
    for case in data.dataset.cases:
        other = splits[case.id] != cfg.data.train_split and case.id not in used
        if other and case.task in data.tasks and not case.missing:
            found.setdefault(splits[case.id], []).append(case)
    return found
