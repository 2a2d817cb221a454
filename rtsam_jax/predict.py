"""Predicts masks from images and doses with a trained run, without any ground truth.

python -m rtsam_jax.predict --checkpoint RUN --image CT.nii.gz --dose DOSE.nii.gz --task orn
    --out DIR
python -m rtsam_jax.predict --checkpoint RUN --image 'in/{case}/ct.nrrd'
    --dose 'in/{case}/dose.nrrd' --record 'in/{case}/record.json' --task all --out DIR
python -m rtsam_jax.predict --checkpoint RUN --dataset DATASET --split val --out DIR

RUN is a run's folder, or a copy of its model.json, checkpoints/ and calibration.npz. Masks,
probabilities and entropy lie on the grid of the image's file, with JSON and a picture beside, in
OUT/CASE/TASK/, and a table of all in OUT/summary.md. The same command goes on where it was stopped;
a case that fails is listed, the others are predicted, and the exit status is not 0. See
docs/predict.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rtsam_jax.compilation import keep_compiled_programs
from rtsam_jax.data.cases import MODALITIES
from rtsam_jax.errors import CasesFailed, ConfigError, run_command
from rtsam_jax.prediction.cohort import Options, predict_cases
from rtsam_jax.prediction.confidence import REPEATS
from rtsam_jax.prediction.inputs import FRAMES
from rtsam_jax.prediction.requests import check_options, requests_of_dataset, requests_of_paths
from rtsam_jax.prediction.segmenter import Segmenter
from rtsam_jax.report.tables import failure_table
from rtsam_jax.training.processes import require_alone

_SIGNED = ("--click", "--box")  # whose values may begin with a minus sign


def run(arguments: argparse.Namespace) -> None:
    """Everything the command does.

    Raises:
        CasesFailed: some cases could not be predicted; the others are.
        RTSamError: of the checkpoint, of what was asked, or of the only case.
    """
    check_options(arguments)
    if arguments.repeats < 0:
        raise ConfigError(f"--repeats is {arguments.repeats}, but it must be 0 or above.")
    if arguments.seed < 0:
        raise ConfigError(f"--seed is {arguments.seed}, but it must be 0 or above.")
    segmenter = Segmenter.from_checkpoint(
        arguments.checkpoint, language_model=arguments.language_model or ""
    )
    trained = segmenter.trained
    if arguments.dataset is not None:
        requests, origin = requests_of_dataset(arguments, trained)
    else:
        requests, origin = requests_of_paths(arguments, trained), ""
    options = Options(
        out=Path(arguments.out),
        modality=arguments.modality or "",
        repeats=arguments.repeats,
        seed=arguments.seed,
        overwrite=arguments.overwrite,
        origin=origin,
    )
    print(
        f"{trained.folder}: checkpoint of step {trained.step}, weights {trained.weights[:12]}",
        flush=True,
    )
    table, failures = predict_cases(segmenter, requests, options)
    print(f"\n{table}\nmasks, pictures and summary.csv are in {arguments.out}", flush=True)
    if failures:
        print("\n" + failure_table(failures), flush=True)
        raise CasesFailed(
            f"{len(failures)} of {len(requests)} cases could not be predicted, for the reasons "
            "above; mend them and start the command again, which predicts only those."
        )


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    options = argparse.ArgumentParser(
        prog="python -m rtsam_jax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = options.add_argument
    add("--checkpoint", required=True, metavar="RUN", help="folder of a trained run")
    add("--out", required=True, metavar="DIR", help="folder of the results")
    add("--task", help="a task of the model, or all that suit the image")
    add("--image", metavar="PATH", help="NIfTI, NRRD, MHA or MHD; may have {case} in it")
    add("--dose", metavar="PATH", help="registered to the image, on any grid")
    add("--record", nargs="+", default=(), metavar="R", help="a JSON file, or FIELD=VALUE ...")
    add("--mask", metavar="PATH", help="an initial mask, to be refined")
    add("--click", action="append", default=[], metavar="X,Y,Z,+", help="inside (+) or outside (-)")
    add("--click-frame", choices=FRAMES, default=FRAMES[0], help="of clicks (%(default)s)")
    add("--box", metavar="X0,...,Z1", help="first and last corner, instead of the dose's box")
    add("--box-frame", choices=FRAMES, default=FRAMES[0], help="of the box (%(default)s)")
    add("--case", help="name of the case; default: that of the image's file")
    add("--modality", choices=MODALITIES, help="of the images; default: by values")
    add("--dataset", metavar="DIR", help="predict a dataset's cases instead")
    add("--split", help="of the dataset; default: all its cases")
    add("--split-seed", type=int, help="where the dataset has no splits of its own (0)")
    add("--repeats", type=int, default=REPEATS, help="augmented, for the confidence (%(default)s)")
    add("--seed", type=int, default=0, help="of the repeats")
    add("--language-model", help="where the run's language model lies now")
    add("--overwrite", action="store_true", help="predict again what is there already")
    return options


def joined(argv: Sequence[str]) -> list[str]:
    """`--click -1,2,3,+` as `--click=-1,2,3,+`, which argparse would take for an option."""
    rest: list[str] = []
    for argument in argv:
        if rest and rest[-1] in _SIGNED:
            rest[-1] += f"={argument}"
        else:
            rest.append(argument)
    return rest


def main() -> None:
    """Entry point of the command."""
    arguments = parser().parse_args(joined(sys.argv[1:]))
    require_alone(os.environ)
    keep_compiled_programs()
    run(arguments)


if __name__ == "__main__":
    run_command(main)
