"""Scores a trained run, or masks from anywhere; leaves tables, plots and report.html.

python -m rtsam_jax.evaluate --run RUN [--split NAME] [--probe PROBE ...] [--against RUN]
python -m rtsam_jax.evaluate --run RUN --calibrate [--split NAME] [--repeats N]
python -m rtsam_jax.evaluate --pred [NAME=]PLACE ... --truth PLACE [--out DIR]

A run is scored on a split, without clicks, beside the trivial predictors, into RUN/evaluation/.
--probe adds the same model told something else: `task`, another task; `text`, another case's text;
`record`, another case's record; `no-record`, the task alone. --against sets another run's measures
of the same cases beside: difference, 95 % interval by bootstrap over patients, Wilcoxon's p.
--calibrate scores nothing: it finds out on a split, val where the dataset has one, what the
confidence of the run's predictions is worth, and keeps that in the run for `predict`
(docs/confidence.md).

Masks are NIfTI. A PLACE is a folder with a file per case, called alike in all folders (CASE.nii.gz
or CASE.nii), or a path in which {case} stands for the case, as in 'out/{case}/mask.nii.gz'. Several
predictions are compared, the first with every other one.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rtsam_jax.compilation import keep_compiled_programs
from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.cache import cache_root
from rtsam_jax.data.cases import Case
from rtsam_jax.data.import_folder import some
from rtsam_jax.data.selection import load_run_data
from rtsam_jax.errors import ConfigError, run_command
from rtsam_jax.evaluation.check import require_dose_boxes
from rtsam_jax.evaluation.held_out import MODEL, evaluate_held_out, probe_name
from rtsam_jax.evaluation.inference import CropPredictor, make_crop_predictor
from rtsam_jax.evaluation.mask_files import named_places, parse_values, read_owners
from rtsam_jax.evaluation.mask_folders import MaskFolders, evaluate_masks
from rtsam_jax.evaluation.scored_cases import ScoredCases
from rtsam_jax.metrics.case import CaseMetrics
from rtsam_jax.prediction.calibrating import calibrate_run
from rtsam_jax.prediction.confidence import REPEATS
from rtsam_jax.report.results_html import KINDS
from rtsam_jax.report.results_tables import render_differences
from rtsam_jax.report.tables import read_cases
from rtsam_jax.text.prompt_set import PROBES, PromptSet, prompt_set
from rtsam_jax.training.processes import require_alone
from rtsam_jax.training.restored import load_scoring_config, restore_model
from rtsam_jax.training.run import prepare_training
from rtsam_jax.training.seen import read_seen, those_among


def load_predictor(
    cfg: ExperimentConfig, tasks: Sequence[str], prompts: PromptSet
) -> CropPredictor:
    """The predictor of a run's newest checkpoint; errors are those of `restore_model`."""
    graphdef, params, _ = restore_model(
        cfg, tasks, text_width=prompts.width, language_model=prompts.language_model
    )
    return make_crop_predictor(graphdef, params, cfg, prompts.table)


def check_same_cases(
    cases: Sequence[Case], other: Sequence[CaseMetrics], names: tuple[str, str]
) -> None:
    """Raises `ConfigError` where two runs are not scored on the same cases, tasks and patients.

    Args:
        cases: those of the first run that have a label, or more.
        other: what was found for the second.
        names: of both.
    """
    ours = Counter((case.id, case.task, case.patient) for case in cases if case.label is not None)
    theirs = Counter((case.case, case.task, case.patient) for case in other)
    odd = sorted({case for case, _, _ in (ours - theirs) + (theirs - ours)})
    if odd:
        raise ConfigError(
            f"{names[0]} and {names[1]} are not scored on the same cases ({len(odd)} differ: "
            f"{', '.join(odd[:4])}{', ...' if odd[4:] else ''}); evaluate both on the same "
            f"dataset, tasks and split."
        )


def compare(
    own: Sequence[CaseMetrics], other: Sequence[CaseMetrics], names: tuple[str, str]
) -> str:
    """A table of differences (own - other) per task and over all, with intervals and tests.

    Both lists are of the same cases; see `check_same_cases`.
    """
    return render_differences({names[0]: own, names[1]: other})


def _run_parser() -> argparse.ArgumentParser:
    parser = _parser()
    parser.add_argument("--run", type=Path, required=True, help="folder of a trained run")
    parser.add_argument("--split", help="split; default: the run's own, of --calibrate val")
    parser.add_argument(
        "--probe", nargs="+", default=(), choices=PROBES, help="also score with another prompt"
    )
    parser.add_argument("--against", type=Path, help="another run, evaluated on the same split")
    parser.add_argument("--language-model", help="where the run's language model lies now")
    parser.add_argument("--calibrate", action="store_true", help="fit the confidence on the split")
    parser.add_argument(
        "--repeats",
        type=int,
        default=REPEATS,
        help="augmented repeats per case that --calibrate makes; 0: none (%(default)s)",
    )
    return parser


def _mask_parser() -> argparse.ArgumentParser:
    parser = _parser()
    add = parser.add_argument
    add("--pred", nargs="+", required=True, metavar="[NAME=]PLACE", help="predicted masks")
    add("--truth", required=True, metavar="PLACE", help="true masks")
    add("--out", type=Path, default=Path("runs/evaluation"), help="folder (%(default)s)")
    add("--structures", default="", metavar="DIR", help="folder with a folder per structure")
    add("--images", default="", metavar="PLACE", help="images to draw the overlays on")
    add("--values", nargs="+", default=(), metavar="VALUE[=TASK]", help="score these map values")
    add("--patients", type=Path, metavar="CSV", help="columns case, patient, maybe task")
    add("--allow-missing", action="store_true", help="count a missing prediction as empty")
    add("--resample", action="store_true", help="take nearest voxels of masks on other grids")
    add("--figures", type=int, default=3, help="overlays to draw (%(default)s)")
    add("--kind", choices=KINDS, default="kind not stated", help="what the true masks are")
    return parser


def _parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="python -m rtsam_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def main() -> None:
    """Entry point of the command."""
    given = {argument.partition("=")[0] for argument in sys.argv[1:]}
    if given & {"--pred", "--truth"}:
        _evaluate_masks(_mask_parser().parse_args())
        return
    parser = _run_parser()
    parser.epilog = f"With masks from anywhere:\n\n{_mask_parser().format_usage()}"
    _evaluate_run(parser.parse_args())


def _evaluate_masks(arguments: argparse.Namespace) -> None:
    folders = MaskFolders(
        truth=arguments.truth,
        predictions=named_places(arguments.pred),
        structures=arguments.structures,
        images=arguments.images,
        values=parse_values(arguments.values),
        owners=read_owners(arguments.patients) if arguments.patients else {},
        allow_missing=arguments.allow_missing,
        resampled=arguments.resample,
    )
    evaluate_masks(folders, arguments.out, kind=arguments.kind, figures=max(0, arguments.figures))


def _calibrate(arguments: argparse.Namespace) -> None:
    if arguments.probe or arguments.against:
        raise ConfigError(
            "--calibrate scores nothing, so --probe and --against do not go with it; run the "
            "command twice."
        )
    if arguments.repeats < 0:
        raise ConfigError(f"--repeats is {arguments.repeats}, but it must be 0 or above.")
    calibrate_run(
        arguments.run,
        split=arguments.split or "",
        language_model=arguments.language_model or "",
        repeats=arguments.repeats,
    )


def _evaluate_run(arguments: argparse.Namespace) -> None:
    for option, value in (
        ("--split", arguments.split),
        ("--language-model", arguments.language_model),
    ):
        if value == "":  # as an unset variable of a shell leaves it
            raise ConfigError(f"{option} is empty; give it a value, or leave it out.")
    require_alone(os.environ)
    keep_compiled_programs()
    if arguments.calibrate:
        _calibrate(arguments)
        return
    cfg = load_scoring_config(
        arguments.run,
        split=arguments.split or "",
        language_model=arguments.language_model or "",
    )
    require_dose_boxes(arguments.run, cfg)
    data = load_run_data(cfg)
    prompts = prompt_set(cfg, data, train=False, probes=tuple(dict.fromkeys(arguments.probe)))
    recorded: dict[str, list[CaseMetrics]] = {}
    own_name = arguments.run.name
    if arguments.against:
        other_name = arguments.against.name
        if other_name == own_name:  # folders of one name in two places
            own_name, other_name = str(arguments.run), str(arguments.against)
        results = arguments.against / "evaluation" / data.held_out_name
        other = read_cases(results / "cases.csv")
        check_same_cases(data.held_out, other, (own_name, other_name))
        if changed := ScoredCases.held_out(cfg, data).changed_since(results, other):
            raise ConfigError(
                f"{arguments.against} was scored on other files of the held-out cases than "
                f"{data.dataset.root} now has ({some(changed)}); evaluate it again first."
            )
        recorded[f"run {other_name}"] = other
    predict = load_predictor(cfg, data.tasks, prompts)
    training = prepare_training(cfg, data)
    labelled = [case for case in data.held_out if case.label is not None]
    seen = read_seen(arguments.run)
    found = evaluate_held_out(
        cfg,
        data,
        predict,
        prompts,
        training,
        arguments.run,
        recorded,
        seen=those_among(seen, labelled, cache_root(cfg)),
        doubt=seen.doubt,
    )
    for probe in prompts.probes:
        told = found[probe_name(probe)]
        print("\n" + compare(found[MODEL], told, (own_name, PROBES[probe])))
    for name, other in recorded.items():
        print("\n" + compare(found[MODEL], other, (own_name, name.removeprefix("run "))))


if __name__ == "__main__":
    run_command(main)
