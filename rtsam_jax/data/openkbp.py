"""A dataset with three surrogate tasks from OpenKBP (Babier et al., Med. Phys. 48:5549, 2021).

python -m rtsam_jax.data.openkbp SOURCE OUT

OpenKBP has no injury. Whole organs stand in for one: the mandible, the right and the left parotid
gland are three answers to one image and one dose. Labels never depend on the dose threshold.

SOURCE is one of
- the distribution: `train-pats`, `validation-pats`, `test-pats` (or `provided-data/` with them),
  each `pt_N/{ct,dose,voxel_dimensions,Mandible,RightParotid,LeftParotid,...}.csv`;
- a NIfTI form: `train`, `val`, `test`, each `pt_N/{ct,dose,oar}.nii.gz`.

The CSV files are sparse. A row is `index,value` (for masks `index,`), the index runs through a cube
of 128 voxels per axis in C order, what is not listed is 0, and HU = value - 1000.

Orientation of the cube. No file states it; the content does, and `tests/data/test_openkbp.py`
repeats the argument. The third axis has the slice spacing of `voxel_dimensions.csv`; along it the
cord comes after the brainstem, so it runs to inferior. Along the first axis the cord comes after
the mandible: to posterior. Along the second the parotid called left comes after the right one: to
the patient's left. These are the rows, columns and slices (from the top) of axial images. As a
check, of the 48 ways to lay 128^3 axes only this one maps the NIfTI form's right parotid of pt_1,
voxel for voxel, to the distribution's indices (940210, 940342, 956594, ...). The origin is lost;
the cube's middle is put at 0 mm, as the NIfTI form does.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rtsam_jax.data.cases import TaskInfo, write_dataset
from rtsam_jax.data.new_folder import new_folder
from rtsam_jax.data.nifti import Volume, read_volume, write_volume
from rtsam_jax.errors import (
    MissingFile,
    RTSamError,
    UnreadableFile,
    VolumeError,
    ZeroDose,
    run_command,
)

SIDE = 128  # voxels per axis of the distribution's cube
HU_OFFSET = -1000.0
# task: (title, name of its CSV file, value in oar.nii.gz)
STRUCTURES = {
    "mandible": ("mandible (surrogate task)", "Mandible", 7),
    "parotid_right": ("right parotid gland (surrogate task)", "RightParotid", 3),
    "parotid_left": ("left parotid gland (surrogate task)", "LeftParotid", 4),
}
# Structures that are no task; predictions that reach into them are counted when scoring.
ORGANS = {"brainstem": ("Brainstem", 1), "spinal_cord": ("SpinalCord", 2)}
TASKS = tuple(TaskInfo(name, "CT", title) for name, (title, _, _) in STRUCTURES.items())
DESCRIPTION = (
    "Surrogate: real head-and-neck CT and dose from OpenKBP; the tasks are whole organs, not "
    "radiation injuries, and results say nothing about the detection of injuries."
)
_FOLDERS = {
    "csv": {
        "train-pats": "train",
        "validation-pats": "val",
        "valid-pats": "val",
        "test-pats": "test",
    },
    "nifti": {"train": "train", "val": "val", "test": "test"},
}


@dataclass(frozen=True)
class Patient:
    """One patient on one grid, RAS+.

    Attributes:
      image: CT in HU.
      dose: in Gy.
      masks: task -> bool [X, Y, Z], of the structures that were contoured.
      organs: of `ORGANS`, likewise.
    """

    image: Volume
    dose: Volume
    masks: dict[str, np.ndarray]
    organs: dict[str, np.ndarray]


def read_nifti_patient(folder: Path) -> Patient:
    """Reads `ct`, `dose` and `oar` of the NIfTI form.

    Raises:
      MissingFile, UnreadableFile, VolumeError: naming the file.
    """
    image = read_volume(folder / "ct.nii.gz", what="CT")
    dose = read_volume(folder / "dose.nii.gz", what="dose")
    stored = read_volume(folder / "oar.nii.gz", what="structures")
    for volume, name in ((dose, "dose"), (stored, "oar")):
        same = volume.shape == image.shape
        if not same or not np.allclose(volume.affine, image.affine, atol=1e-3):
            raise VolumeError(f"{folder / name}.nii.gz is not on the grid of ct.nii.gz beside it.")
    masks = {task: stored.array == value for task, (_, _, value) in STRUCTURES.items()}
    organs = {name: stored.array == value for name, (_, value) in ORGANS.items()}
    return Patient(image, dose, _contoured(masks), _contoured(organs))


def _contoured(masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: mask for name, mask in masks.items() if mask.any()}


def read_csv_patient(folder: Path) -> Patient:
    """Reads the distribution's CSV form, cut to the box of everything that is listed.

    Raises:
      MissingFile, UnreadableFile, VolumeError: naming the file.
    """
    spacing = _read_numbers(folder / "voxel_dimensions.csv", header=False, columns=1)[:, 0]
    if spacing.shape != (3,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise VolumeError(f"{folder / 'voxel_dimensions.csv'} must hold three positive lengths.")
    stored = _read_cube(folder / "ct.csv")
    dose = _read_cube(folder / "dose.csv")
    masks = _read_masks(folder, {task: name for task, (_, name, _) in STRUCTURES.items()})
    organs = _read_masks(folder, {organ: name for organ, (name, _) in ORGANS.items()})
    listed = (stored > 0) | (dose > 0)
    for mask in (*masks.values(), *organs.values()):
        listed |= mask
    if not listed.any():
        raise VolumeError(f"{folder} lists no voxel at all; copy it again.")
    window = tuple(
        slice(int(at[0]), int(at[-1]) + 1)
        for at in (np.flatnonzero(listed.any(axis=other)) for other in ((1, 2), (0, 2), (0, 1)))
    )
    affine = np.diag([spacing[1], spacing[0], spacing[2], 1.0])  # x, y, z: columns, rows, slices
    first = np.array([w.start for w in window])
    affine[:3, 3] = affine[:3, :3] @ (first - (SIDE - 1) / 2)
    return Patient(
        Volume(stored[window] + np.float32(HU_OFFSET), affine),
        Volume(dose[window], affine),
        {task: mask[window] for task, mask in masks.items()},
        {organ: mask[window] for organ, mask in organs.items()},
    )


def _read_masks(folder: Path, names: dict[str, str]) -> dict[str, np.ndarray]:
    """Masks of the structures that were contoured; `names` are those of their CSV files."""
    paths = {key: folder / f"{name}.csv" for key, name in names.items()}
    return _contoured(
        {key: _read_cube(path, mask=True) > 0 for key, path in paths.items() if path.is_file()}
    )


def to_ras(cube: np.ndarray) -> np.ndarray:
    """The distribution's cube, axes (posterior, left, inferior), along (right, anterior, superior).

    The inverse is `from_ras`.
    """
    return cube.transpose(1, 0, 2)[::-1, ::-1, ::-1]


def from_ras(cube: np.ndarray) -> np.ndarray:
    """An RAS+ cube with the distribution's axes; `ravel()` has its indices."""
    return cube[::-1, ::-1, ::-1].transpose(1, 0, 2)


def _read_numbers(path: Path, *, header: bool, columns: int) -> np.ndarray:
    """The first columns of a CSV file, float64 `[rows, columns]`; no rows are allowed."""
    if not path.is_file():
        raise MissingFile(f"There is no {path}; copy the patient's folder again.")
    try:
        # Rows are cut here, since loadtxt warns about a file without any.
        rows = path.read_text(encoding="utf-8").split("\n", 1 if header else 0)[-1].split()
        if not rows:
            return np.zeros((0, columns))
        return np.loadtxt(rows, delimiter=",", usecols=range(columns), ndmin=2)
    except (OSError, ValueError) as cause:
        raise UnreadableFile(
            f"{path} is not a CSV file of OpenKBP ({cause}); copy it again."
        ) from cause


def _read_cube(path: Path, *, mask: bool = False) -> np.ndarray:
    """A sparse file as float32 `[128, 128, 128]` along RAS+; a mask is 1 where listed."""
    table = _read_numbers(path, header=True, columns=1 if mask else 2)
    index = table[:, 0]
    if not ((index >= 0) & (index < SIDE**3) & (index == np.rint(index))).all():
        raise UnreadableFile(f"{path} has an index outside 0..{SIDE**3 - 1}; copy it again.")
    if not np.isfinite(table).all():
        raise UnreadableFile(f"{path} has values that are no numbers; copy it again.")
    cube = np.zeros(SIDE**3, np.float32)
    cube[index.astype(np.int64)] = 1.0 if mask else table[:, 1]
    return to_ras(cube.reshape(SIDE, SIDE, SIDE))


def find_patients(source: Path) -> tuple[str, list[tuple[str, Path]]]:
    """Finds the form of `source` ("csv" or "nifti") and its (split, patient folder) pairs.

    Raises:
      MissingFile: neither form is there.
    """
    found: dict[str, list[tuple[str, Path]]] = {}
    for form, marker in (("csv", "voxel_dimensions.csv"), ("nifti", "ct.nii.gz")):
        for base in (source, source / "provided-data"):
            pairs = [
                (split, patient)
                for folder, split in _FOLDERS[form].items()
                for patient in sorted((base / folder).glob("pt_*"), key=_number)
                if patient.is_dir()
            ]
            if any((patient / marker).is_file() for _, patient in pairs):
                found.setdefault(form, pairs)
    if not found:
        raise MissingFile(
            f"{source} holds neither train-pats/pt_N/*.csv nor train/pt_N/ct.nii.gz; "
            "name the folder that has OpenKBP's train and validation folders."
        )
    return next(iter(found.items()))


def _number(folder: Path) -> tuple[int, str]:
    digits = re.sub(r"\D", "", folder.name)
    return (int(digits) if digits else 0, folder.name)


def build(source: Path, root: Path) -> None:
    """Writes the surrogate dataset; it appears complete or not at all.

    Prints a progress line and, at the end, how many patients lack which structure.

    Args:
      source: OpenKBP in either form.
      root: the folder to make; it must not exist, or be empty.

    Raises:
      MissingFile: `source` is not OpenKBP.
      OutputExists: `root` holds something.
      UnreadableFile: some patients cannot be read; all of them are listed.
    """
    form, patients = find_patients(Path(source))
    read = {"csv": read_csv_patient, "nifti": read_nifti_patient}[form]
    with new_folder(root) as beside:
        cases, lacking = _convert(patients, read, beside)
        write_dataset(
            beside,
            name="openkbp_surrogate",
            kind="surrogate",
            description=DESCRIPTION,
            tasks=TASKS,
            cases=cases,
        )
    _summary(len(patients), cases, lacking)


def _convert(
    patients: list[tuple[str, Path]], read: Callable[[Path], Patient], root: Path
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Writes all patients' files; returns the cases and how often each structure lacks."""
    cases: list[dict[str, Any]] = []
    lacking: Counter[str] = Counter()
    failures: list[str] = []
    for done, (split, folder) in enumerate(patients, 1):
        try:
            patient = read(folder)
            if not patient.dose.array.max(initial=0.0) > 0:
                raise ZeroDose(f"The dose in {folder} has no positive voxel; copy it again.")
        except RTSamError as error:
            failures.append(f"{split}/{folder.name}: {error}")
            continue
        if not failures:  # after a failure nothing is kept, but every patient is still checked
            cases += _write_patient(root, f"{split}/{folder.name}", folder.name, split, patient)
        lacking.update(task for task in STRUCTURES if task not in patient.masks)
        end = "\n" if done == len(patients) else "\r" if sys.stderr.isatty() else ""
        if end or done % 20 == 0:
            print(f"openkbp {done}/{len(patients)}", end=end or "\n", file=sys.stderr, flush=True)
    if failures:
        raise UnreadableFile(
            f"{len(failures)} of {len(patients)} patients cannot be read, so nothing was written: "
            + " | ".join(failures)
        )
    return cases, lacking


def _write_patient(
    root: Path, place: str, name: str, split: str, patient: Patient
) -> list[dict[str, Any]]:
    """Writes image and dose once, one mask per structure; returns the patient's cases."""
    image, dose = f"{place}/ct.nii.gz", f"{place}/dose.nii.gz"
    write_volume(root / image, patient.image, np.int16)
    write_volume(root / dose, patient.dose, np.float32)
    masks = patient.masks | patient.organs
    paths = {structure: f"{place}/{structure}.nii.gz" for structure in masks}
    for structure, mask in masks.items():
        volume = Volume(mask.astype(np.uint8), patient.image.affine)
        write_volume(root / paths[structure], volume, np.uint8)
    cases = []
    for task in patient.masks:
        cases.append(
            {
                "id": f"{name}_{task}",
                "patient": name,
                "task": task,
                "image": image,
                "dose": dose,
                "label": paths[task],
                "structures": {organ: paths[organ] for organ in patient.organs},
                "record": {"site": "head and neck", "prescription_gy": 70.0},
                "split": split,
            }
        )
    return cases


def _summary(patients: int, cases: list[dict[str, Any]], lacking: Counter[str]) -> None:
    print(f"OpenKBP surrogate: {patients} patients, {len(cases)} cases (no injury is labelled)")
    counts = Counter((case["task"], case["split"]) for case in cases)
    for task in STRUCTURES:
        per = ", ".join(f"{n} {split}" for (t, split), n in sorted(counts.items()) if t == task)
        print(f"  {task}: {per or 'no case'}; not contoured in {lacking[task]} patients")


def main() -> None:
    """Parses the command line and runs it."""
    parser = argparse.ArgumentParser(
        prog="python -m rtsam_jax.data.openkbp",
        description="Makes a dataset of three surrogate tasks from OpenKBP's CSV or NIfTI form.",
    )
    parser.add_argument("source", type=Path, help="folder with OpenKBP's train and val folders")
    parser.add_argument("out", type=Path, help="folder to make")
    arguments = parser.parse_args()
    build(arguments.source, arguments.out)


if __name__ == "__main__":
    run_command(main)
