"""A prediction's files: a folder per case and task that appears whole, and a table of them all.

    OUT/CASE/TASK/mask.nii.gz, probability.nii.gz, entropy.nii.gz, prediction.json, prediction.png
    OUT/summary.csv, summary.md

Volumes are NIfTI on the image file's own grid: its order and direction of axes, its place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rtsam_jax.data.failure import Failure
from rtsam_jax.data.file_lock import take_lock
from rtsam_jax.data.json_file import read_json, write_json
from rtsam_jax.errors import DatasetSchemaError, NotWritable, OutputExists, UnreadableFile
from rtsam_jax.geometry import index_map
from rtsam_jax.prediction.confidence import ACCEPT
from rtsam_jax.prediction.document import SCHEMA_VERSION, Result, box_of, describe
from rtsam_jax.prediction.remarks import guess_modality
from rtsam_jax.prediction.trained import Trained
from rtsam_jax.report.files import written_whole
from rtsam_jax.report.planes import overlay_centre
from rtsam_jax.report.prediction_picture import draw_prediction
from rtsam_jax.report.tables import Cell, Table, render, write_csv

DOCUMENT = "prediction.json"
FILES = ("mask.nii.gz", "probability.nii.gz", "entropy.nii.gz", DOCUMENT, "prediction.png")
_STEMS = {name.partition(".")[0] for name in FILES}
# Hidden names that no other program gives: what has them may be renamed and removed.
_LOCK, _OWN, _PART, _OLD = ".lock", ".rtsam-", ".part", ".old"


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Keeps other commands out of a folder, and clears away what a killed one left half done.

    What it was about to replace comes back; what is not ours stays as it is. A folder that is made
    here and stays empty is removed if the command fails.

    Raises:
        NotWritable: the system refuses to make or to lock it.
        OutputExists: another command works in it, or it is a file.
    """
    if out.exists() and not out.is_dir():
        raise OutputExists(f"{out} is a file; name a folder with --out.")
    new = not out.exists()
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / _LOCK).open("a")
    with lock:
        with _writing(out):
            alone = take_lock(lock)
        if not alone:
            raise OutputExists(
                f"{out} is in use by another command; wait for its end, or name another folder."
            )
        with _writing(out):
            for old in out.glob(f"[!.]*/{_OWN}*{_OLD}"):
                _bring_back(old, old.with_name(old.name[len(_OWN) : -len(_OLD)]))
        for left in out.glob(f"{_OWN}*{_PART}"):
            if _half_made(left):
                shutil.rmtree(left, ignore_errors=True)
        try:
            yield
        except BaseException:
            if new and os.listdir(out) == [_LOCK]:
                shutil.rmtree(out, ignore_errors=True)
            raise


def lacking(folder: Path) -> list[str]:
    """Which files of a prediction a folder does not have; all of them where there is none."""
    return [name for name in FILES if not os.path.isfile(folder / name)]  # nor if it is refused


def only_own(folder: Path) -> bool:
    """Whether there is nothing but files of a prediction in a folder."""
    try:
        return all(name in FILES for name in os.listdir(folder))
    except OSError:  # a file, or refused
        return False


def _half_made(folder: Path) -> bool:
    """Whether there is nothing in a folder but files of a prediction, whole or being written."""
    try:
        return all(name.lstrip(".").partition(".")[0] in _STEMS for name in os.listdir(folder))
    except OSError:  # a file, or refused
        return False


def read_document(folder: Path) -> dict[str, Any] | None:
    """The `prediction.json` of a case and task; None where there is none that this version wrote.

    It may be damaged, of another schema, or another program's.
    """
    try:
        document = read_json(folder / DOCUMENT)
    except (OSError, DatasetSchemaError):
        return None
    if not isinstance(document, dict):
        return None
    ours = (document.get("schema"), document.get("kind")) == (SCHEMA_VERSION, "prediction")
    try:
        _done(document)
    except (KeyError, TypeError, AttributeError):  # of parts that it lacks, or that are not such
        return None
    return document if ours and document.get("key") else None


def write_result(out: Path, result: Result, trained: Trained) -> None:
    """Writes a prediction's folder, whole or not at all; one that is there is replaced.

    Raises:
        NotWritable: no space, no permission.
    """
    case, task = result.request.case, result.opened.task.name
    folder, beside = out / case / task, out / f"{_OWN}{case}.{task}{_PART}"
    grid = result.inputs.grid
    with _writing(folder):
        beside.mkdir()
        try:
            grid.write(beside / "mask.nii.gz", result.mask, np.uint8)
            grid.write(beside / "probability.nii.gz", result.probability, np.float32)
            grid.write(beside / "entropy.nii.gz", result.entropy, np.float32)
            document = describe(result, trained)
            write_json(beside / DOCUMENT, document)
            _draw(result, document, beside / "prediction.png")
            _put(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _put(beside: Path, folder: Path) -> None:
    """Renames a folder to where another may be, which is then removed."""
    folder.parent.mkdir(exist_ok=True)
    old = folder.with_name(f"{_OWN}{folder.name}{_OLD}")
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(beside, folder)
    finally:
        _bring_back(old, folder)


def _bring_back(old: Path, folder: Path) -> None:
    """Renames a folder back if nothing took its place, and else removes it."""
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        os.replace(old, folder)


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as cause:
        raise NotWritable(
            f"{place} cannot be written ({cause.strerror or cause}); free space, mend its "
            "permissions, or name another folder with --out."
        ) from cause


def _draw(result: Result, document: Mapping[str, Any], out: Path) -> None:
    image, opened = result.inputs.image, result.opened
    box = _box_on_image(result)
    if result.mask.any():
        centre = overlay_centre(image.shape, result.mask)
    else:
        last = np.array(image.shape) - 1
        x, y, z = np.clip(np.rint(box.mean(0)), 0, last).astype(int).tolist()
        centre = x, y, z
    mask, task, confidence = document["mask"], opened.task, result.confidence
    measures = f"{mask['volume_ml']:.3g} mL, longest diameter {mask['longest_diameter_mm']:.3g} mm"
    quality = "" if confidence.quality is None else f" (quality {confidence.quality:.2f})"
    flag = f"Flag: {confidence.flag}{quality}; {'; '.join(confidence.reasons)}."
    origin = f"From {result.origin}." if result.origin else ""
    draw_prediction(
        image,
        result.mask,
        result.entropy,
        box,
        centre,
        dose=result.inputs.dose,
        dmax=opened.scan.dmax or None,  # of no dose at all nothing is a share
        in_hu=guess_modality(image) == "CT" == task.modality,
        title=f"{result.request.case}, {task.title}: {result.empty or measures}",
        text=" ".join(filter(None, [flag, origin, *result.warnings])),
        out=out,
    )


def _box_on_image(result: Result) -> np.ndarray:
    """The region's box as first and last index of the image in RAS+ axes, with fractions."""
    box = box_of(result.opened)
    there = index_map(result.inputs.image.affine, result.opened.scan.grid.affine)
    faces = [corner @ there[:3, :3].T + there[:3, 3] for corner in (box[0] - 0.5, box[1] + 0.5)]
    return np.array([np.minimum(*faces) + 0.5, np.maximum(*faces) - 0.5])


SUMMARY = (
    *("case", "task", "result", "volume_ml", "lesions", "longest_diameter_mm"),
    *("mean_dose", "max_dose", "flag", "quality", "expected_dice", "agreement", "distance"),
    *("largest_probability", "weights", "warnings", "error", "what"),
)
_TITLES = {
    "case": "Case",
    "task": "Task",
    "result": "Result",
    "volume_ml": "Volume (mL)",
    "longest_diameter_mm": "Longest diameter (mm)",
    "max_dose": "Largest dose in it",
    "flag": "Flag",
    "quality": "Quality",
    "what": "Why, and what to know",
}


def write_summary(
    out: Path, failures: Sequence[Failure], heading: str, made: Collection[tuple[str, str]] = ()
) -> str:
    """Writes a table of all predictions in a folder and of the cases that failed; returns it.

    Args:
        failures: of this command.
        heading: of the Markdown.
        made: case and task of what this command predicted.

    Raises:
        NotWritable: no space, no permission.
    """
    failed = {failure.case for failure in failures}
    rows = []
    for path in sorted(out.glob(f"[!.]*/[!.]*/{DOCUMENT}")):
        document = read_document(path.parent)
        rows.append(_unread(path) if document is None else _done(document))
    rows = [
        _earlier(row) if row["case"] in failed and (row["case"], row["task"]) not in made else row
        for row in rows
    ]
    rows += [_failed(failure) for failure in failures]
    rows.sort(key=lambda row: (str(row["case"]), str(row["task"])))
    table = Table(SUMMARY, tuple(tuple(row.get(name) for name in SUMMARY) for row in rows))
    short = Table(
        tuple(_TITLES.values()), tuple(tuple(row.get(name) for name in _TITLES) for row in rows)
    )
    text = render(short)
    with _writing(out):
        write_csv(table, out / "summary.csv")
        with written_whole(out / "summary.md") as beside:
            beside.write_text(f"# {heading}\n\n{text}", encoding="utf-8")
    return text


def _done(document: Mapping[str, Any]) -> dict[str, Cell]:
    mask, dose, confidence = document["mask"], document["dose"] or {}, document["confidence"]
    remarks = [f"Empty: {mask['empty']}." if mask["empty"] else ""]
    reasons: list[str] = []
    if confidence["flag"] != ACCEPT:
        reasons = [reason.rstrip(".") for reason in confidence["reasons"]]
        remarks.append(f"{confidence['flag'].capitalize()}: {'; '.join(reasons)}.")
    remarks += [said for said in document["warnings"] if said.rstrip(".") not in reasons]
    return {
        "case": document["case"],
        "task": document["task"]["name"],
        "result": "empty" if mask["empty"] else "mask",
        **{name: mask[name] for name in ("volume_ml", "lesions", "longest_diameter_mm")},
        "mean_dose": dose.get("mean_in_mask"),
        "max_dose": dose.get("max_in_mask"),
        **{name: confidence[name] for name in ("flag", "quality", "expected_dice")},
        **{name: confidence[name] for name in ("agreement", "distance")},
        "largest_probability": mask["largest_probability"],
        "weights": document["model"]["weights"][:12],
        "warnings": len(document["warnings"]),
        "what": " ".join(filter(None, remarks)),
    }


def _unread(path: Path) -> dict[str, Cell]:
    """What has the name and place of a prediction, but is none."""
    return {
        "case": path.parent.parent.name,
        "task": path.parent.name,
        "result": "unreadable",
        "error": UnreadableFile.code,
        "what": f"{path} is damaged, or of another version or program; predict it again with "
        "--overwrite, or move it away.",
    }


def _earlier(row: Mapping[str, Cell]) -> dict[str, Cell]:
    """A prediction of an earlier command whose case failed in this one."""
    said = "Of an earlier command: in this one the case failed."
    return {**row, "result": f"earlier {row['result']}", "what": f"{said} {row['what']}".rstrip()}


def _failed(failure: Failure) -> dict[str, Cell]:
    return {
        "case": failure.case,
        "task": None,
        "result": "failed",
        "error": failure.code,
        "what": failure.message,
    }
