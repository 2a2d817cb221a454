"""Many cases to predictions: what is there is kept, a case that fails stops no other."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rtsam_jax.data.failure import Failure
from rtsam_jax.data.grid import model_grid
from rtsam_jax.data.nifti import Volume
from rtsam_jax.data.prepare import Progress
from rtsam_jax.errors import (
    ConfigError,
    NotWritable,
    OutputExists,
    RTSamError,
    UnreadableFile,
)
from rtsam_jax.evaluation.scoring import THRESHOLD
from rtsam_jax.prediction.confidence import REPEATS, assess, calibrated, entropy
from rtsam_jax.prediction.document import Result, check_shown
from rtsam_jax.prediction.inputs import Inputs, Request, box_on_grid, click_in_world, read_inputs
from rtsam_jax.prediction.outputs import (
    altered,
    check_folders,
    check_own,
    lacking,
    only_one,
    write_result,
)
from rtsam_jax.prediction.predicted import Click, Prompts
from rtsam_jax.prediction.remarks import doubted, doubts, guess_modality, remarks
from rtsam_jax.prediction.segmenter import Segmenter
from rtsam_jax.prediction.summary import read_document, write_summary
from rtsam_jax.prediction.trained import Trained
from rtsam_jax.training.model_file import TaskEntry

# Part of every key: raise it where the same inputs would give other files.
FORMAT = 3


@dataclass(frozen=True)
class Options:
    """What a command asks of all its cases.

    Attributes:
        out: folder of the results.
        modality: of the images, "CT" or "MR"; "" is told by their values where it matters.
        repeats: augmented ones, for the confidence.
        seed: of the repeats.
        overwrite: predict again what is there already.
        origin: dataset, kind and split of the cases; "" where they were given by paths.
    """

    out: Path
    modality: str = ""
    repeats: int = REPEATS
    seed: int = 0
    overwrite: bool = False
    origin: str = ""


def predict_cases(
    segmenter: Segmenter, requests: Sequence[Request], options: Options
) -> tuple[str, list[Failure]]:
    """Predicts what is not there yet and writes the summary.

    A single case raises its own error instead of being listed. A prediction that is there of other
    files, prompts, weights or options is left as it is, and its case is one that failed.

    Returns:
        The summary's table, and the cases that failed.

    Raises:
        NotWritable: the folder refuses, whichever case it was at.
        OutputExists: another command works in the folder, or it holds the single case's prediction
            from other files, prompts, weights or options, or what is not a prediction's in its
            place.
        UnreadableFile: the calibration is damaged.
    """
    _has_reference(segmenter.trained)  # a damaged calibration is no case's own failure
    failures: list[Failure] = []
    made: set[tuple[str, str]] = set()
    with only_one(options.out):
        left: list[Request] = []
        for request in requests:
            try:
                if not _finished(segmenter.trained, request, options):
                    left.append(request)
            except OutputExists as cause:
                if len(requests) == 1:
                    raise
                failures.append(_failure(request, cause))
        if kept := len(requests) - len(left) - len(failures):
            print(f"{kept} of {len(requests)} cases are there already", flush=True)
        with Progress(len(left), "predicted") as progress:
            for request in left:
                try:
                    for result in _results(segmenter, request, options):
                        write_result(options.out, result, segmenter.trained)
                        made.add((request.case, result.opened.task.name))
                        del result  # its volumes, before the next one's are made
                except NotWritable:
                    raise
                except Exception as cause:
                    if len(requests) == 1:
                        raise
                    failures.append(_failure(request, cause))
                progress.add(1)
        heading = f"Predictions{f': {options.origin}' if options.origin else ''}"
        return write_summary(options.out, failures, heading, made), failures


def suitable(
    tasks: Sequence[TaskEntry], image: Volume, modality: str
) -> tuple[list[TaskEntry], tuple[str, ...]]:
    """The tasks that an image is of the modality of, and a warning where that left some out.

    Args:
        modality: of the image; "" is told by its values where the tasks have several.

    Raises:
        ConfigError: none of the tasks is.
    """
    if not modality and len({task.modality for task in tasks}) == 1:
        return [*tasks], ()
    guessed, modality = not modality, modality or guess_modality(image)
    found = [task for task in tasks if task.modality == modality]
    if not found:
        raise ConfigError(
            f"the image is {modality}, but no task asked for is: "
            f"{', '.join(f'{task.name} is {task.modality}' for task in tasks)}; name a task for "
            f"{modality}, or state the image's modality with --modality."
        )
    if not guessed:
        return found, ()
    left_out = ", ".join(task.name for task in tasks if task not in found)
    return found, (
        f"The image was taken for {modality}, because its smallest value is "
        f"{image.array.min():.4g}; tasks left out: {left_out}. State --modality if it is not.",
    )


def _finished(trained: Trained, request: Request, options: Options) -> bool:
    """Whether all that a request asks for is there, each with all its files.

    Raises:
        OutputExists: what is there comes of something else, and is not to be renewed; or there are
            others' files in the place of what would be.
        NotWritable: that place is refused.
    """
    tasks = [trained.task(name) for name in request.tasks]
    places = {task.name: options.out / request.case / task.name for task in tasks}
    for place in places.values():
        check_folders(place)
    present = [task for task in tasks if places[task.name].exists()]
    if options.overwrite:
        for task in present:
            check_own(places[task.name])
    if not present or options.overwrite:
        return False
    try:
        contents = request.contents()
    except RTSamError:  # said when the case's turn comes, so that it stops no other
        return False
    whole = True
    for task in present:
        place = places[task.name]
        document, without = read_document(place), lacking(place)
        own = document is not None and document["key"] == _key(
            trained, request, contents, task, options
        )
        changed = altered(place, document or {}) if own else []
        if without or not own:
            check_own(place)
        if not own and not (without and document is None):
            raise OutputExists(
                f"{place} is there and comes of other files, prompts, weights or options; move it "
                "away, name another folder with --out, or predict all anew with --overwrite."
            )
        if changed:
            raise OutputExists(
                f"{place / changed[0]} has another size than it was written with, damaged or "
                "changed by hand; move it away, and the same command predicts it again."
            )
        if without:
            print(f"{place} lacks {', '.join(without)}: it is predicted again", flush=True)
            whole = False
    if not whole:
        return False
    wanted = {options.modality or present[0].modality}
    return all(task in present for task in tasks if task.modality in wanted)


def _key(
    trained: Trained,
    request: Request,
    contents: Mapping[str, Any],
    task: TaskEntry,
    options: Options,
) -> str:
    parts = {
        "format": FORMAT,
        "case": [request.case, contents],
        "task": dataclasses.asdict(task),
        "model": [trained.weights, trained.about.language_model, trained.calibration],
        "preprocessing": dataclasses.asdict(trained.spec),
        "confidence": [options.repeats, options.seed, _has_reference(trained)],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _has_reference(trained: Trained) -> bool:
    """Whether the training cases that distances are measured from are there.

    Raises:
        UnreadableFile: the calibration that names them is damaged.
    """
    if trained.known is None:
        return False
    try:
        return trained.reference is not None
    except UnreadableFile:  # which the confidence gives as a reason
        return False


def _results(segmenter: Segmenter, request: Request, options: Options) -> Iterator[Result]:
    """A request's tasks one by one, without those that are there."""
    trained = segmenter.trained
    contents = request.contents()
    inputs = read_inputs(request, free_text=trained.cfg.prompt.free_text)
    tasks = [trained.task(name) for name in request.tasks]
    opened = False
    chosen, notes = suitable(tasks, inputs.image, options.modality)
    for task in chosen:
        if options.overwrite or lacking(options.out / request.case / task.name):
            if opened:
                segmenter.set_task(task.name)  # its image is encoded already
            else:
                _open(segmenter, request, inputs, task)
                opened = True
            key = _key(trained, request, contents, task, options)
            yield _predict(segmenter, request, inputs, options, key, contents, notes)


def _open(segmenter: Segmenter, request: Request, inputs: Inputs, task: TaskEntry) -> None:
    name, box = request.case, None
    if request.box is not None:
        grid = model_grid(inputs.image, segmenter.trained.spec.spacing_mm, name=name)
        box = box_on_grid(request.box, inputs.grid, grid, name=name)
    segmenter.set_case(
        inputs.image, inputs.dose, task=task.name, record=inputs.record, box=box, name=name
    )


def _predict(
    segmenter: Segmenter,
    request: Request,
    inputs: Inputs,
    options: Options,
    key: str,
    contents: Mapping[str, Any],
    notes: tuple[str, ...],
) -> Result:
    trained, name = segmenter.trained, request.case
    clicks = tuple(
        Click(click_in_world(click, inputs.grid, name=name), click.positive)
        for click in request.clicks
    )
    for given, click in zip(request.clicks, clicks, strict=True):
        check_shown(given, click, segmenter.opened, inputs.grid)
    prediction = segmenter.predict(Prompts(clicks, inputs.mask))
    raw = prediction.native_probability().array
    confidence = assess(
        trained,
        segmenter.model,
        prediction,
        repeats=options.repeats,
        seed=options.seed,
        record=inputs.record,
        mask=inputs.mask,
        native=raw,
    )
    mask = raw >= np.float32(THRESHOLD)
    probability = calibrated(raw, trained)
    doubt = doubts(prediction.opened, inputs.image)
    return Result(
        request=request,
        inputs=inputs,
        prediction=prediction,
        probability=probability,
        mask=mask,
        entropy=entropy(probability),
        clicks=clicks,
        confidence=doubted(confidence, doubt),
        repeats=options.repeats,
        seed=options.seed,
        warnings=(
            *segmenter.warnings,
            *notes,
            *doubt,
            *remarks(prediction, inputs.image, mask, clicks),
        ),
        key=key,
        contents=contents,
        origin=options.origin,
    )


def _failure(request: Request, cause: Exception) -> Failure:
    if isinstance(cause, RTSamError):
        return Failure(request.case, cause.code, str(cause))
    traceback.print_exception(cause)
    sentence = (
        f"{request.image} could not be predicted ({type(cause).__name__}: {cause}); report it."
    )
    return Failure(request.case, "unexpected", sentence)
