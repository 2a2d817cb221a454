"""`python -m rtsam_jax.prepare [DATASET] --config configs/NAME.py [--report]`.

Brings every case of a dataset to the model grid once, so that training only reads. What is there
already, for the same files and settings, is kept; a case that fails is listed and stops no other.
`--report` also writes report.html: a row per case with three planes, intensities and warnings.
`DATASET` stands for `--config.data.dataset=DATASET`; any other field is set as in rtsam_jax.train.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.cache import cache_root
from rtsam_jax.data.cases import Case, Dataset
from rtsam_jax.data.failure import Failure
from rtsam_jax.data.prepare import (
    Prepared,
    Progress,
    in_processes,
    killed_sentence,
    prepare_cases,
)
from rtsam_jax.data.scans import CacheSettings
from rtsam_jax.data.selection import load_chosen
from rtsam_jax.data.whole_file import is_remote
from rtsam_jax.errors import CasesFailed, RTSamError, run_command
from rtsam_jax.flags import parse_config
from rtsam_jax.models.presets import get_spec
from rtsam_jax.report.case_view import CaseView, view_case
from rtsam_jax.report.cases_html import write_cases_report
from rtsam_jax.report.tables import failure_table

_NAMED = 5  # cases that a line names


def run(cfg: ExperimentConfig, *, report: bool = False) -> Prepared:
    """Everything the command does, for a validated config.

    Raises:
        CasesFailed: some cases cannot be used; the others are prepared.
        NotWritable: the cache cannot be written.
    """
    dataset, tasks = load_chosen(cfg)
    cases = [case for case in dataset.cases if case.task in tasks]
    modality = {task.name: task.modality for task in dataset.tasks}
    settings = CacheSettings.from_config(cfg, get_spec(cfg.model.preset).image_size)
    cache, workers = cache_root(cfg), cfg.data.prepare_workers
    prepared = prepare_cases(cases, modality, settings, cache, workers)
    failures = list(prepared.failures)
    print(_summary(prepared, cases), flush=True)
    if failures:
        print("\n" + failure_table(failures), flush=True)
    if report:
        path = Path(
            f"{dataset.root.name}_report.html" if is_remote(cache) else cache / "report.html"
        )
        usable = [case for case in cases if case.id in prepared.entries]
        views, unseen = _views(usable, modality, settings, workers)
        if unseen:
            print("\n" + failure_table(unseen), flush=True)
        failures += unseen
        _write_report(path, dataset, settings, views, failures)
        print(f"report: {path}", flush=True)
    if failures:
        raise CasesFailed(
            f"{len(failures)} of {len(cases)} cases of {dataset.root} cannot be used, for the "
            "reasons above; mend them and start the command again, which prepares only those."
        )
    return prepared


def _views(
    cases: Sequence[Case], modality: dict[str, str], settings: CacheSettings, workers: int
) -> tuple[list[CaseView], list[Failure]]:
    """What the report shows of each case, in their order, and which could not be drawn."""
    found: dict[str, CaseView] = {}
    failed: dict[str, Failure] = {}
    with Progress(len(cases), "drawn") as progress:
        for case, view in in_processes(_view, cases, modality, settings, workers=workers):
            if isinstance(view, CaseView):
                found[case.id] = view
            else:
                failed[case.id] = _failure(case, view)
            progress.add(1)
    order = [case.id for case in cases]
    return [found[i] for i in order if i in found], [failed[i] for i in order if i in failed]


def _view(case: Case, modality: dict[str, str], settings: CacheSettings) -> CaseView:
    if settings.source != "dose":  # it may be unusable, and nobody uses it
        case = dataclasses.replace(case, dose=None)
    return view_case(case, modality[case.task], settings.spec, settings.size)


def _failure(case: Case, error: Exception) -> Failure:
    if isinstance(error, RTSamError):
        return Failure(case.id, error.code, str(error))
    if isinstance(error, BrokenProcessPool):
        return Failure(case.id, "worker_killed", killed_sentence(case.image))
    sentence = f"{case.image} could not be drawn ({type(error).__name__}: {error}); report it."
    return Failure(case.id, "unexpected", sentence)


def _write_report(
    path: Path,
    dataset: Dataset,
    settings: CacheSettings,
    views: Sequence[CaseView],
    failures: Sequence[Failure],
) -> None:
    spec = settings.spec
    level = {
        "dmax": f"{spec.tau:g} of Dmax",
        "d2": f"{spec.tau:g} of D2%",
        "prescription": f"{spec.tau:g} of the prescription",
        "absolute": f"{spec.gy:g} Gy",
    }[spec.threshold]
    region = f"high-dose region at {level}" if settings.source == "dose" else "dose is not used"
    subtitle = (
        f"{dataset.kind} data; model grid {spec.spacing_mm:g} mm, crops of {settings.size} voxels, "
        f"{region}"
    )
    write_cases_report(path, title=dataset.name, subtitle=subtitle, views=views, failures=failures)


def _summary(prepared: Prepared, cases: Sequence[Case]) -> str:
    """Lines for the end of the command: how many, where, how large, what is incomplete."""
    entries = {entry.key: entry for entry, _ in prepared.entries.values()}
    size = sum({entry.shard: entry.bytes for entry in entries.values()}.values())
    lines = [
        f"{len(prepared.entries)} of {len(cases)} cases on {len(entries)} scans are prepared, "
        f"{prepared.fresh} scans of them now: {size / 1e6:.0f} MB in {prepared.folder}"
    ]
    for part in ("dose", "label"):
        lacking = [case.id for case in cases if part in case.missing]
        if lacking:
            lines.append(f"incomplete, without {part}: {_named(lacking)}")
    if prepared.empty:
        lines.append(f"with an empty label: {_named(prepared.empty)}")
    return "\n".join(lines)


def _named(cases: Sequence[str]) -> str:
    return f"{len(cases)} ({', '.join(cases[:_NAMED])}{', ...' if cases[_NAMED:] else ''})"


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("--config")
    parser.add_argument("--report", action="store_true")
    known, overrides = parser.parse_known_args()
    file = [f"--config={known.config}"] if known.config else []
    dataset = [f"--config.data.dataset={known.dataset}"] if known.dataset else []
    argv = [sys.argv[0], *file, *overrides, *dataset]
    run(parse_config(argv, usage=__doc__ or ""), report=known.report)


if __name__ == "__main__":
    run_command(main)
