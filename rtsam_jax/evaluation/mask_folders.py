"""Scores folders of masks, made by whatever program, against a folder of true ones.

A case is a file name: masks of one case are called alike in every folder. Without labelled values a
file holds one structure, and inside is what is not zero; with them, every value is a task of its
own, scored in every case or in those that the table of patients names for it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rtsam_jax.data.import_folder import some
from rtsam_jax.data.nifti import Volume, read_label, read_volume
from rtsam_jax.errors import ConfigError, MissingFile, OutputExists
from rtsam_jax.evaluation.mask_files import Owner, files_of, on_grid, unmatched
from rtsam_jax.evaluation.report import pick_for_figures, write_results
from rtsam_jax.geometry import index_map, resample
from rtsam_jax.metrics.case import CaseMetrics, score_case
from rtsam_jax.report.figures import plot_overlay
from rtsam_jax.report.results_html import Picture
from rtsam_jax.report.results_tables import COMPARED, difference_table, find_differences
from rtsam_jax.report.tables import render

ONE_TASK = "mask"  # the task of masks that nobody named


@dataclass(frozen=True)
class MaskFolders:
    """What is compared; places are as of `files_of`.

    Attributes:
        predictions: place by method, the one in question first.
        structures: folder with a folder of masks per structure that should hold no prediction;
            "": none.
        images: place of the images that overlays are drawn on; "": on black.
        values: what is inside, by task; empty: each file holds one structure.
        owners: patients and tasks by case; empty: each case is a patient of its own.
        allow_missing: count a mask that is missing as empty.
        resampled: take the nearest voxels of a mask on another grid than its truth's.
    """

    truth: str
    predictions: Mapping[str, str]
    structures: str = ""
    images: str = ""
    values: Mapping[str, int] = field(default_factory=dict)
    owners: Mapping[str, Owner] = field(default_factory=dict)
    allow_missing: bool = False
    resampled: bool = False


class _Masks:
    """The files of `MaskFolders`, matched, and what happened to them while reading."""

    def __init__(self, folders: MaskFolders):
        self.folders = folders
        self.truth = files_of(folders.truth)
        self.files = {name: files_of(place) for name, place in folders.predictions.items()}
        self.missing = {
            name: unmatched(self.truth, files, name, allow_missing=folders.allow_missing)
            for name, files in self.files.items()
        }
        self.structures = _structures(folders.structures, self.truth)
        self.images = files_of(folders.images) if folders.images else {}
        self.resampled: dict[str, list[str]] = {}
        self.tasks = {case: self._tasks(case) for case in self.truth}

    def patient(self, case: str) -> str:
        owners = self.folders.owners
        return owners[case].patient if owners else case

    def _tasks(self, case: str) -> dict[str, int | None]:
        """What is inside, by task, in a case's files; None: what is not zero."""
        owners, values = self.folders.owners, self.folders.values
        if owners and case not in owners:
            raise MissingFile(f"The table of patients does not name case {case}; add a row for it.")
        named = owners[case].tasks if owners else ()
        if not values:
            if len(named) > 1:
                raise ConfigError(
                    f"The table of patients names the tasks {', '.join(named)} for case {case}; "
                    "say which value is which with --values VALUE=TASK."
                )
            return {(named or (ONE_TASK,))[0]: None}
        if unknown := set(named) - set(values):
            raise ConfigError(
                f"The table of patients names task {sorted(unknown)[0]!r} for case {case}, but "
                f"--values has {', '.join(values)}; name its value."
            )
        return {task: value for task, value in values.items() if not named or task in named}

    def read_truth(self, case: str, value: int | None) -> Volume:
        return _read(self.truth[case], value, "truth")

    def read(self, method: str, case: str, value: int | None, grid: Volume) -> np.ndarray:
        """A prediction on its truth's grid."""
        if case in self.missing[method]:
            return np.zeros(grid.shape, bool)
        what = f"mask of {method}"
        return self._on_grid(_read(self.files[method][case], value, what), grid, what, case)

    def read_structures(self, case: str, grid: Volume) -> dict[str, np.ndarray]:
        return {
            name: self._on_grid(_read(files[case], None, what), grid, what, case)
            for name, files in self.structures.items()
            if case in files and (what := f"structure {name}")
        }

    def _on_grid(self, mask: Volume, grid: Volume, what: str, case: str) -> np.ndarray:
        array = on_grid(mask, grid, what=what, case=case, resampled=self.folders.resampled)
        if array is not mask.array and case not in self.resampled.setdefault(what, []):
            self.resampled[what].append(case)
        return array

    def notes(self) -> Iterator[str]:
        total = len(self.truth)
        for name, cases in self.missing.items():
            if cases:
                yield (
                    f"Counted as empty, for want of a file: {len(cases)} of {total} masks of "
                    f"{name} ({some(cases)})."
                )
        for what, cases in self.resampled.items():
            yield (
                f"Brought to the truth's grid by nearest voxels, the {what}: {len(cases)} of "
                f"{total} cases ({some(cases)})."
            )
        if not self.folders.owners:
            yield "Every case counts as a patient of its own, since no table of patients was given."


def _read(path: Path, value: int | None, what: str) -> Volume:
    return read_label(path, value, what=what, field="value, with --values")


def _structures(place: str, truth: Mapping[str, Path]) -> dict[str, dict[str, Path]]:
    if not place:
        return {}
    if not Path(place).is_dir():
        raise MissingFile(f"There is no folder {place}; name one with a folder per structure.")
    folders = sorted(path for path in Path(place).iterdir() if path.is_dir())
    found = {folder.name: files_of(str(folder)) for folder in folders}
    if not found:
        raise MissingFile(f"{place} holds no folder; put each structure's masks into one.")
    for name, files in found.items():
        if not files.keys() & truth.keys():
            raise MissingFile(
                f"{place}/{name} has no mask of any case; call the files as those of the truth."
            )
    return found


def evaluate_masks(
    folders: MaskFolders, out: Path, *, kind: str, figures: int
) -> dict[str, list[CaseMetrics]]:
    """Scores every case, prints the tables, writes a results folder.

    Args:
        out: a new or empty folder, or one of an earlier evaluation.
        kind: what the labels are, in the words of a dataset.
        figures: overlays of the first method, spread over its Dice ranking.

    Returns:
        Measures of every method, case by case.

    Raises:
        OutputExists: `out` holds something else.
        MissingFile, UnreadableFile, VolumeError, ConfigError: of the masks; the message names them.
    """
    if out.exists() and any(out.iterdir()) and not (out / "results.json").is_file():
        raise OutputExists(f"{out} holds something else; name another folder with --out.")
    masks = _Masks(folders)
    found = _score(masks)
    shutil.rmtree(out / "figures", ignore_errors=True)  # an earlier evaluation's choice
    first, own = next(iter(found.items()))
    chosen = pick_for_figures(own, figures)
    drawn = [_draw(masks, first, own[i], kind, rank, out / "figures") for i, rank in chosen.items()]
    heading = f"{', '.join(found)} against {Path(folders.truth).name}"
    notes = list(masks.notes())
    text = write_results(out, found, heading=heading, kind=kind, notes=notes, figures=drawn)
    print(f"\n{heading} ({kind})\n{text}", flush=True)
    if len(found) > 1:
        print(render(difference_table(find_differences(found, COMPARED))), flush=True)
    print(f"tables, {len(drawn)} overlays and report.html are in {out}", flush=True)
    return found


def _score(masks: _Masks) -> dict[str, list[CaseMetrics]]:
    found: dict[str, list[CaseMetrics]] = {name: [] for name in masks.files}
    total = len(masks.truth)
    for done, (case, tasks) in enumerate(masks.tasks.items(), start=1):
        for task, value in tasks.items():
            truth = masks.read_truth(case, value)
            structures = masks.read_structures(case, truth)
            for name, metrics in found.items():
                metrics.append(
                    score_case(
                        masks.read(name, case, value, truth),
                        truth.array,
                        spacing_mm=truth.spacing,
                        case=case,
                        patient=masks.patient(case),
                        task=task,
                        structures=structures,
                    )
                )
        if done % max(1, total // 10) == 0 or done == total:
            print(f"evaluated {done}/{total} cases", flush=True)
    return found


def _draw(
    masks: _Masks, method: str, scored: CaseMetrics, kind: str, rank: str, folder: Path
) -> Picture:
    case = scored.case
    value = masks.tasks[case][scored.task]
    truth = masks.read_truth(case, value)
    image = np.zeros(truth.shape, np.float32)
    if case in masks.images:
        volume = read_volume(masks.images[case])
        image = resample(volume.array, index_map(volume.affine, truth.affine), truth.shape)
    path = folder / f"{case}_{scored.task}.png"
    about = f"{scored.task} ({kind}) · {method} · Dice {scored.dice:.2f}"
    predicted = masks.read(method, case, value, truth)
    title = f"{case} · {about} · {rank}"
    plot_overlay(image, truth.array, predicted, None, None, truth.spacing, title, path)
    return Picture(path, f"{rank}: {case}", about)
