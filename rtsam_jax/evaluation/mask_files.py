"""Masks from anywhere: which files belong together, and a mask on the grid of its truth."""

from __future__ import annotations

import csv
import glob
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from rtsam_jax.data.cases import RESERVED, is_name
from rtsam_jax.data.grid import require_overlap
from rtsam_jax.data.import_folder import ending_of, some, volumes_in
from rtsam_jax.data.nifti import Volume
from rtsam_jax.errors import ConfigError, MissingFile, UnreadableFile, VolumeError
from rtsam_jax.geometry import index_map, resample

CASE = "{case}"
_SAME_GRID = 0.1  # voxels that the corners of one grid may lie apart; headers round


@dataclass(frozen=True)
class Owner:
    """Whose a case is, and which tasks it is scored in; without any, in all."""

    patient: str
    tasks: tuple[str, ...] = ()


def matched(where: str) -> dict[str, Path]:
    """The paths that exist, by what stands in them for `{case}`, the same wherever it stands."""
    first, *rest = where.split(CASE)
    again = "(?P=case)".join(re.escape(part) for part in rest)
    name = re.compile(f"{re.escape(first)}(?P<case>[^/]+){again}")
    paths = glob.glob("*".join(glob.escape(part) for part in (first, *rest)))
    found = ((match["case"], Path(path)) for path in paths if (match := name.fullmatch(path)))
    return dict(sorted(found))


def files_of(where: str) -> dict[str, Path]:
    """NIfTI files by case, sorted.

    Args:
        where: a folder, whose files are called after their case, `CASE.nii.gz` or `CASE.nii`; or a
            path in which `{case}` stands for the case, such as `out/{case}/mask.nii.gz`.

    Raises:
        ConfigError: `{case}` stands there twice.
        MissingFile: no such folder, or no such file.
        UnreadableFile, DatasetSchemaError: see `volumes_in`.
    """
    if CASE in where:
        if where.count(CASE) > 1:
            raise ConfigError(f"{where} says {CASE} twice; let it stand once.")
        found = matched(where)
        for path in found.values():
            ending_of(path)
    elif Path(where).is_dir():
        found = volumes_in(Path(where))
    else:
        what = f"{where} is a file" if Path(where).is_file() else f"There is no folder {where}"
        raise MissingFile(f"{what}; name a folder of masks, or a path with {CASE} in it.")
    if not found:
        raise MissingFile(f"{where} holds no NIfTI file; name the place of the masks.")
    return dict(sorted(found.items()))


def named_places(texts: Iterable[str]) -> dict[str, str]:
    """`NAME=PLACE` or `PLACE`, which is then called after its folder.

    A text that is a place as it stands is one, and so is one with a "/" before its "=".

    Raises:
        ConfigError: two have one name; one lacks its name or its place.
    """
    places: dict[str, str] = {}
    for text in texts:
        name, equals, place = text.partition("=")
        if not equals or "/" in name or Path(text).is_dir() or (CASE in text and matched(text)):
            name, place = Path(text.partition(CASE)[0]).name or text, text
        if not name or not place:
            raise ConfigError(f"{text!r} lacks a name or a place; write NAME=PLACE, or the place.")
        if name in places:
            raise ConfigError(f"two places are called {name!r}; name them, as NAME=PLACE.")
        places[name] = place
    return places


def parse_values(texts: Iterable[str]) -> dict[str, int]:
    """`VALUE` or `VALUE=TASK` of a map of several structures, by task.

    Raises:
        ConfigError: no whole number above 0, a name that is none, or one of both twice.
    """
    values: dict[str, int] = {}
    for text in texts:
        value, _, name = text.partition("=")
        if not value.isdecimal() or int(value) == 0:
            raise ConfigError(
                f"--values {text} must be a whole number above 0, alone or as VALUE=TASK."
            )
        task = _task(name or value, f"--values {text}")
        if task in values or int(value) in values.values():
            raise ConfigError(
                f"--values {text} gives a value or a task that is given before; give each once."
            )
        values[task] = int(value)
    return values


def read_owners(path: Path) -> dict[str, Owner]:
    """Patients and tasks by case, from a CSV with the columns `case`, `patient` and maybe `task`.

    A case of several tasks has a row for each.

    Raises:
        MissingFile, UnreadableFile: no such file; no such columns; no rows; a case with two
            patients, or twice with one task.
        ConfigError: a task's name cannot be used.
    """
    if not path.is_file():
        what = f"{path} is a folder" if path.is_dir() else f"There is no {path}"
        raise MissingFile(f"{what}; name a CSV with the columns case and patient.")
    owners: dict[str, Owner] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                case, patient, task = row["case"], row["patient"], row.get("task") or ""
                if not case or not patient:
                    raise ValueError("a row without case or patient")
                tasks: tuple[str, ...] = (_task(task, str(path)),) if task else ()
                if known := owners.get(case):
                    if known.patient != patient:
                        raise ValueError(f"case {case!r} has two patients")
                    if not task or task in known.tasks:
                        raise ValueError(f"case {case!r} stands there twice")
                    tasks = known.tasks + tasks
                owners[case] = Owner(patient, tasks)
        if not owners:
            raise ValueError("it has no rows")
    except (KeyError, ValueError, csv.Error) as cause:
        raise UnreadableFile(
            f"{path} is no table of patients ({cause}); it needs the columns case and patient, "
            "may have task, and a row per case and task."
        ) from cause
    return owners


def _task(name: str, where: str) -> str:
    if name == RESERVED or not is_name(name):
        raise ConfigError(
            f"{where}: a task cannot be called {name!r}; use letters, digits, '.', '_' and '-', "
            f"and not {RESERVED!r}, which heads the row over all tasks."
        )
    return name


def unmatched(
    truth: Collection[str], files: Collection[str], name: str, *, allow_missing: bool
) -> list[str]:
    """The cases that a method has no mask of, where that is allowed.

    Raises:
        MissingFile: a mask without a truth; a truth without a mask, where that is not allowed.
    """
    if alone := sorted(set(files) - set(truth)):
        raise MissingFile(
            f"{some(alone)} of {name} ({len(alone)} in all) has no truth of the same name; rename "
            f"the files alike, state their place with {CASE}, or move these away."
        )
    missing = sorted(set(truth) - set(files))
    if missing and not allow_missing:
        raise MissingFile(
            f"{name} has no mask for {some(missing)} ({len(missing)} in all); add them, or count "
            "them as empty with --allow-missing."
        )
    return missing


def same_grid(volume: Volume, grid: Volume) -> bool:
    """Whether two volumes have the same voxels in world mm; both have RAS+ axes already."""
    return volume.shape == grid.shape and _apart(volume, grid) <= _SAME_GRID * grid.spacing.min()


def on_grid(mask: Volume, grid: Volume, *, what: str, case: str, resampled: bool) -> np.ndarray:
    """A mask on the grid of its truth: bool [*grid.shape].

    Args:
        resampled: take the nearest voxel where the grids differ; beyond the mask is background.

    Raises:
        VolumeError: the grids differ, and `resampled` is false.
        NoOverlap: they share no space.
    """
    if same_grid(mask, grid):
        return mask.array
    if not resampled:
        raise VolumeError(
            f"The {what} of {case} is on another grid than its truth: {_differences(mask, grid)}; "
            "bring it to the truth's grid, or take its nearest voxels with --resample."
        )
    require_overlap(mask, grid, what=what, name=case)
    return resample(mask.array, index_map(mask.affine, grid.affine), grid.shape, order=0) > 0


def _apart(volume: Volume, grid: Volume) -> float:
    """The largest distance between corners of the same indices, mm."""
    corners = np.array([*product(*((-0.5, n - 0.5) for n in grid.shape))])
    difference = volume.affine - grid.affine
    return float(np.linalg.norm(corners @ difference[:3, :3].T + difference[:3, 3], axis=1).max())


def _differences(volume: Volume, grid: Volume) -> str:
    found = []
    if volume.shape != grid.shape:
        found.append(f"{_times(volume.shape)} voxels against {_times(grid.shape)}")
    if not np.allclose(volume.spacing, grid.spacing, rtol=1e-3):
        found.append(f"of {_times(volume.spacing)} mm against {_times(grid.spacing)} mm")
    if not found:
        found.append(f"its corners lie up to {_apart(volume, grid):.3g} mm away")
    return ", ".join(found)


def _times(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
