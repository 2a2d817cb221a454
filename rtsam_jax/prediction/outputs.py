"""A prediction's files: a folder per case and task that appears whole; `summary` tabulates them.

    OUT/CASE/TASK/mask.nii.gz, probability.nii.gz, entropy.nii.gz, prediction.json, prediction.png

Volumes are NIfTI on the image file's own grid: its order and direction of axes, its place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rtsam_jax.data.file_lock import take_lock
from rtsam_jax.data.json_file import write_json
from rtsam_jax.errors import NotWritable, OutputExists
from rtsam_jax.geometry import index_map
from rtsam_jax.prediction.document import Result, box_of, describe
from rtsam_jax.prediction.remarks import guess_modality
from rtsam_jax.prediction.trained import Trained
from rtsam_jax.report.planes import overlay_centre
from rtsam_jax.report.prediction_picture import draw_prediction

DOCUMENT = "prediction.json"
FILES = ("mask.nii.gz", "probability.nii.gz", "entropy.nii.gz", DOCUMENT, "prediction.png")
TABLES = ("summary.csv", "summary.md")
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
        OutputExists: another command works in it, it is a file, or a folder is in a table's place.
    """
    if out.exists() and not out.is_dir():
        raise OutputExists(f"{out} is a file; name a folder with --out.")
    for name in TABLES:
        if os.path.isdir(out / name):
            raise OutputExists(
                f"{out / name} is a folder, but a table is to be there; move it away, or name "
                "another folder with --out."
            )
    new = not out.exists()
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / _LOCK).open("a")
    with lock:
        with writing(out):
            alone = take_lock(lock)
        if not alone:
            raise OutputExists(
                f"{out} is in use by another command; wait for its end, or name another folder."
            )
        with writing(out):
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
    """Which files of a prediction a folder does not have, or has without a byte in them."""
    paths = {name: folder / name for name in FILES}
    return [  # a file that is refused is lacking too
        name for name, path in paths.items() if not (os.path.isfile(path) and os.path.getsize(path))
    ]


def altered(folder: Path, document: Mapping[str, Any]) -> list[str]:
    """Which files of a prediction have another size than they were written with.

    They may be damaged, or corrected by hand. A document of before sizes were stored knows of none.
    """
    sizes, there = document.get("bytes"), {*FILES} - {*lacking(folder)}
    known = sizes if isinstance(sizes, dict) else {}
    return sorted(
        name for name in there & {*known} if os.path.getsize(folder / name) != known[name]
    )


def check_folders(folder: Path) -> None:
    """Raises `OutputExists` where a prediction's folder, or its case's, is something else."""
    for path in (folder.parent, folder):
        if os.path.lexists(path) and not os.path.isdir(path):
            raise OutputExists(
                f"{path} is no folder, but a prediction is to be there; move it away, or name "
                "another folder with --out."
            )


def check_own(folder: Path) -> None:
    """Raises `OutputExists` where a folder that is to be replaced holds what no prediction has.

    It is `NotWritable` if it cannot be looked at.
    """
    with writing(folder):
        names = sorted(os.listdir(folder))
    for name in names:
        if name not in FILES or not os.path.isfile(folder / name):
            raise OutputExists(
                f"{folder} holds {name}, which is not a prediction's, and is left as it is; move "
                f"{name} away, or name another folder with --out."
            )


def _half_made(folder: Path) -> bool:
    """Whether there is nothing in a folder but files of a prediction, whole or being written."""
    try:
        return all(name.lstrip(".").partition(".")[0] in _STEMS for name in os.listdir(folder))
    except OSError:  # a file, or refused
        return False


def write_result(out: Path, result: Result, trained: Trained) -> None:
    """Writes a prediction's folder, whole or not at all; one that is there is replaced.

    Raises:
        NotWritable: no space, no permission.
        OutputExists: the one that is there holds what is not a prediction's.
    """
    case, task = result.request.case, result.opened.task.name
    folder, beside = out / case / task, out / f"{_OWN}{case}.{task}{_PART}"
    grid = result.inputs.grid
    with writing(folder):
        beside.mkdir()
        try:
            grid.write(beside / "mask.nii.gz", result.mask, np.uint8)
            grid.write(beside / "probability.nii.gz", result.probability, np.float32)
            grid.write(beside / "entropy.nii.gz", result.entropy, np.float32)
            document = describe(result, trained)
            _draw(result, document, beside / "prediction.png")
            sizes = {path.name: path.stat().st_size for path in sorted(beside.iterdir())}
            write_json(beside / DOCUMENT, {**document, "bytes": sizes})
            _to_disk(beside)
            _put(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _to_disk(folder: Path) -> None:
    """Has the system store a folder's files now: a loss of power leaves none of them empty."""
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _put(beside: Path, folder: Path) -> None:
    """Renames a folder to where another may be, which is then removed."""
    folder.parent.mkdir(exist_ok=True)
    old = folder.with_name(f"{_OWN}{folder.name}{_OLD}")
    if folder.exists():
        check_own(folder)
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
def writing(place: Path) -> Iterator[None]:
    """`NotWritable` where the system refuses to write there."""
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
