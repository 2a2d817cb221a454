"""Scores folders of masks, made by whatever program, against a folder of true ones.

A case is a file name: masks of one case are called alike in every folder. Without labelled values a
file holds one structure, and inside is what is not zero; with them, every value is a task of its
own, scored in every case or in those that the table of patients names for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rtsam_jax.data.import_folder import some
from rtsam_jax.data.nifti import Volume, label_of, read_label, read_volume
from rtsam_jax.errors import ConfigError, MissingFile
from rtsam_jax.evaluation.mask_files import Owner, files_of, on_grid, unmatched
from rtsam_jax.evaluation.report import pick_for_figures, write_results
from rtsam_jax.evaluation.results_folder import (
    FIGURES,
    earlier_pictures,
    picture_name,
    require_writable,
)
from rtsam_jax.geometry import index_map, resample
from rtsam_jax.metrics.case import CaseMetrics, score_case
from rtsam_jax.report.figures import plot_overlay
from rtsam_jax.report.results_html import Picture
from rtsam_jax.report.results_tables import render_differences

ONE_TASK = "mask"  # the task of masks that nobody named
_FIELD = "value, with --values"
_MEND = f"name the one that is inside as the case's {_FIELD}, or store a mask of one structure"


@dataclass(frozen=True)
class MaskFolders:
    """What is compared; places are as of `files_of`.

    Attributes:
        predictions: place by method, the one in question first.
        structures: folder with a folder of masks per structure that should hold no prediction;
            "": none.
        images: place of the images, which overlays are drawn on and whose diagonal stands for an
            infinite distance; "": black, and the truth's own grid.
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
        return self._read(self.truth[case], value, "truth")

    def read(self, method: str, case: str, value: int | None, grid: Volume) -> np.ndarray:
        """A prediction on its truth's grid."""
        if case in self.missing[method]:
            return np.zeros(grid.shape, bool)
        what = f"mask of {method}"
        return self._on_grid(self._read(self.files[method][case], value, what), grid, what, case)

    def read_structures(self, case: str, grid: Volume) -> dict[str, np.ndarray]:
        return {
            name: self._on_grid(read_label(files[case], what=what, field=_FIELD), grid, what, case)
            for name, files in self.structures.items()
            if case in files and (what := f"structure {name}")
        }

    def diagonal_mm(self, case: str) -> float | None:
        """Of the case's image, corner to corner; None where none is at hand."""
        if case not in self.images:
            return None
        image = read_volume(self.images[case])
        return float(np.linalg.norm(image.shape * image.spacing))

    def require_values(self) -> None:
        """Raises `ConfigError` for a value that no file holds.

        It reads only until it has met every value: as a rule the first files.
        """
        left = {value: task for task, value in self.folders.values.items()}
        methods = {f"mask of {name}": files for name, files in self.files.items()}
        for what, files in {"truth": self.truth, **methods}.items():
            for path in files.values():
                if not left:
                    return
                array = read_volume(path, what=what).array
                left = {v: task for v, task in left.items() if not (array == v).any()}
        for value, task in left.items():
            raise ConfigError(
                f"No file of {self.folders.truth} or of the predictions holds the value {value} "
                f"(task {task}); correct it in --values, or leave it out."
            )

    def _read(self, path: Path, value: int | None, what: str) -> Volume:
        return label_of(read_volume(path, what=what), path, value, what=what, mend=_MEND)

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
        NotWritable: `out` cannot be written.
        MissingFile, UnreadableFile, VolumeError, ConfigError: of the masks; the message names them.
    """
    require_writable(out)
    earlier = earlier_pictures(out)
    masks = _Masks(folders)
    masks.require_values()
    found = _score(masks)
    for picture in earlier:  # of another choice
        picture.unlink(missing_ok=True)
    first, own = next(iter(found.items()))
    chosen = pick_for_figures(own, figures)
    drawn = [_draw(masks, first, own[i], kind, rank, out / FIGURES) for i, rank in chosen.items()]
    heading = f"{', '.join(found)} against {Path(folders.truth).name}"
    notes = [*masks.notes(), *_without_any(found)]
    text = write_results(out, found, heading=heading, kind=kind, notes=notes, figures=drawn)
    print(f"\n{heading} ({kind})\n{text}", flush=True)
    if len(found) > 1:
        print(render_differences(found), flush=True)
    print(f"tables, {len(drawn)} overlays and report.html are in {out}", flush=True)
    return found


def _without_any(found: Mapping[str, Sequence[CaseMetrics]]) -> Iterator[str]:
    """A sentence for each task in which nothing is marked, by nobody."""
    tasks: dict[str, list[CaseMetrics]] = {}
    for case in (case for cases in found.values() for case in cases):
        tasks.setdefault(case.task, []).append(case)
    for task, cases in tasks.items():
        if all(case.both_empty for case in cases):
            yield (
                f"Task {task} is in no truth and in no mask of its cases: each counts 1 in "
                "overlaps, which says nothing on finding it."
            )


def _score(masks: _Masks) -> dict[str, list[CaseMetrics]]:
    found: dict[str, list[CaseMetrics]] = {name: [] for name in masks.files}
    total = len(masks.truth)
    for done, (case, tasks) in enumerate(masks.tasks.items(), start=1):
        diagonal_mm = masks.diagonal_mm(case)
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
                        diagonal_mm=diagonal_mm,
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
    path = folder / picture_name(case, scored.task)
    about = f"{scored.task} ({kind}) · {method} · Dice {scored.dice:.2f}"
    predicted = masks.read(method, case, value, truth)
    title = f"{case} · {about} · {rank}"
    plot_overlay(image, truth.array, predicted, None, None, truth.spacing, title, path)
    return Picture(path, f"{rank}: {case}", about)
