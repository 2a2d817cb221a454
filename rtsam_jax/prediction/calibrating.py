"""Calibrates a trained run: what its confidence was worth on cases whose truth is known."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rtsam_jax.data.cases import Case
from rtsam_jax.data.crops import extract
from rtsam_jax.data.neighbourhood import Neighbourhood, anchor_box
from rtsam_jax.data.nifti import Volume, read_label
from rtsam_jax.data.prepared import PreparedCases
from rtsam_jax.data.preprocess import Preprocessed, require_coverage
from rtsam_jax.data.scans import preprocess_scan, preprocessed, scan_source
from rtsam_jax.data.selection import RunData
from rtsam_jax.evaluation.click_model import ClickModel
from rtsam_jax.evaluation.tiles import part_of, resample_window, tile, whole_mask
from rtsam_jax.geometry import index_map, resample
from rtsam_jax.metrics.overlap import dice
from rtsam_jax.prediction.calibration import (
    Calibration,
    Fit,
    Observed,
    choose_thresholds,
    cross_fit,
)
from rtsam_jax.prediction.calibration_cases import calibration_cases
from rtsam_jax.prediction.calibration_report import Trial, measured, write_calibration_report
from rtsam_jax.prediction.confidence import REPEATS, observe
from rtsam_jax.prediction.distance import Reference, pooled, replaced, sha256
from rtsam_jax.prediction.opened import Opened, open_scan
from rtsam_jax.prediction.temperature import Voxels
from rtsam_jax.prediction.trained import Trained, load_trained
from rtsam_jax.prompts.text import mirror_prompt
from rtsam_jax.text.prompt_set import encode_texts
from rtsam_jax.training.model_file import write_calibration
from rtsam_jax.training.run import prepare_training

_VOXELS = 10_000  # of a case's region, drawn at random, that the temperature is fitted on


def calibrate_run(
    run: Path, *, split: str = "", language_model: str = "", repeats: int = REPEATS
) -> Calibration:
    """Fits on the labelled cases of a split, measures on cases that it did not see, keeps both.

    The calibration goes into the run's `model.json` and `calibration.npz`, tables and pictures into
    `run/evaluation/SPLIT/calibration/`.

    Args:
        run: its folder.
        split: to calibrate on; "" is "val" where the dataset has such a split that neither the run
            nor one that it started from was trained on, and else the run's own.
        language_model: where the run's lies now; "" is where it lay.
        repeats: augmented repeats per case; 0 leaves the agreement out.

    Raises:
        IncompleteCase: no case of the split has a label.
        ConfigError: the run, or one that it started from, was trained on images of the split; the
            run was on other cases than its dataset now has for training, or with boxes around
            labels.
        MissingFile: the folder is a copy without `run.json`, which says what it was trained on.
        SplitError: all of its labelled cases are of one patient.
        RTSamError: of the run, its dataset or a case.
    """
    chosen = calibration_cases(run, split=split, language_model=language_model)
    cfg, data, others, doubts = chosen
    trained = load_trained(run, language_model=language_model)
    trained.require_language_model()
    model = trained.click_model()
    reference = training_reference(trained, model, prepare_training(cfg, data), data.train)
    observer = _Observer(trained, model, data, reference, repeats)
    found = observer.all(data.held_out, data.held_out_name)
    fits = cross_fit(found)
    own = Trial(f"{data.held_out_name}, cross-fitted", found, fits)
    calibration = calibrate(own, reference)
    trials = [own]
    for name, rest in others.items():
        seen = observer.all(rest, name)
        trials.append(Trial(f"{name}, not calibrated on", seen, [calibration.fit] * len(seen)))
    packed = None if reference is None else reference.packed()
    arrays = None if packed is None else sha256(packed)
    calibration = dataclasses.replace(calibration, arrays=arrays)
    results = {trial.name: measured(trial, calibration) for trial in trials}
    about = {
        "step": trained.step,
        "weights": trained.weights,
        "dataset": data.dataset.name,
        "kind": data.dataset.kind,
        "split": data.held_out_name,
        "measured": results,
    }
    folder = run / "evaluation" / data.held_out_name / "calibration"
    heading = f"{data.dataset.name}, split {data.held_out_name}"
    text = write_calibration_report(
        folder,
        calibration,
        own,
        trials[1:],
        results,
        heading=heading,
        kind=data.dataset.kind,
        doubts=doubts,
    )
    # Last: a calibration that predictions heed has its report.
    with replaced(run, packed):
        write_calibration(run, about | calibration.to_dict())
    print(f"\n{heading} ({data.dataset.kind})\n\n{text}\ntables and pictures are in {folder}")
    return calibration


def calibrate(trial: Trial, reference: Reference | None) -> Calibration:
    """The fit of all cases, and thresholds on what the fits say that did not see them.

    Args:
        trial: of the calibration cases.
        reference: the training cases, if there are enough.
    """
    fit = Fit.of(trial.cases)
    shown = [at for at, case in enumerate(trial.cases) if not case.signals.empty]
    accept = reject = None
    if fit.quality.features:  # without, all masks look alike
        accept, reject = choose_thresholds(
            trial.chances[shown].tolist(), [trial.cases[at].good for at in shown]
        )
    farthest = None
    if reference is not None:
        seen = [case.signals.distance for case in trial.cases if case.signals.distance is not None]
        farthest = max([float(reference.distances[-1]), *seen])
    good = sum(case.good for case in trial.cases)
    repeats = min(case.signals.repeats for case in trial.cases)
    return Calibration(fit, accept, reject, farthest, len(trial.cases), good, repeats, arrays=None)


def training_reference(
    trained: Trained, model: ClickModel, prepared: PreparedCases, cases: Sequence[Case]
) -> Reference | None:
    """Features of the training cases, in the crops that prediction would take.

    Args:
        trained: the run.
        model: of `trained`.
        prepared: its training cases; a scan that several share is encoded once.
        cases: the same.
    """
    scans = [scan for scan, _ in prepared.keys]
    features: dict[str, np.ndarray] = {}
    for at, scan in enumerate(scans):
        if scan in features:
            continue
        if trained.cfg.dose.source == "none":  # prepared crops lie around the labels
            images, rois = _tiled(trained, cases[at])
        else:
            images, rois = _around(prepared[at], trained.size)
        crops = model.encode(images, rois, 0)
        features[scan] = pooled(crops.embedding, rois, trained.cfg.dose.source)
        _tell("encoded", len(features), len(set(scans)), "training scans")
    return Reference.fit(
        np.stack([features[scan] for scan in scans]),
        np.array([case.patient for case in cases]),
        np.array([case.task for case in cases]),
    )


def _around(case: Neighbourhood, size: int) -> tuple[Iterator[np.ndarray], np.ndarray]:
    """Images of the crops that hold some of a prepared case's ROI, one by one, and their ROIs."""
    origins = np.unique(case.origins, axis=0)
    rois = np.stack([extract(case.roi, origin, size, 0) for origin in origins])
    kept = rois.any((1, 2, 3)) if rois.any() else np.ones(len(rois), bool)
    images = (extract(case.image, at, size, case.background) for at in origins[kept])
    return (image.astype(np.float32) for image in images), rois[kept]


def _tiled(trained: Trained, case: Case) -> tuple[Iterator[np.ndarray], np.ndarray]:
    """The same of the crops that tile a case's image, as for a model that knows no region."""
    modality = {case.task: trained.task(case.task).modality}
    source = scan_source(case, modality, trained.spec, dose=False)
    scan = preprocess_scan(source, trained.spec, name=case.id)
    tiles = tile(scan, trained.size, name=case.id, box=anchor_box(scan, None))
    rows = range(len(tiles))
    return map(tiles.image, rows), np.stack([tiles.region(row) for row in rows])


@dataclasses.dataclass(frozen=True, eq=False)
class _Observer:
    """Predicts labelled cases as `predict` does, and sees what the predictions show."""

    trained: Trained
    model: ClickModel
    data: RunData
    reference: Reference | None
    repeats: int

    def all(self, cases: Sequence[Case], split: str) -> list[Observed]:
        """Cases in their order; tasks of one scan side by side share its preprocessing."""
        found: list[Observed] = []
        self._read_texts(cases)
        dosed = self.trained.cfg.dose.source == "dose"
        modality, spec = self.data.modality, self.trained.spec
        for case, scan in preprocessed(cases, modality, spec, dose=dosed):
            found.append(self._one(case, scan))
            _tell("judged", len(found), len(cases), f"cases of {split}")
        return found

    def _read_texts(self, cases: Sequence[Case]) -> None:
        """Asks the language model once for all texts that it will be asked for, case by case."""
        if self.trained.cfg.prompt.task == "text":
            own = [self.trained.prompt(case.task, case.record) for case in cases]
            mirrored = [text for text in map(mirror_prompt, own) if text is not None]
            encode_texts([*own, *mirrored], self.trained.cfg.prompt)

    def _one(self, case: Case, scan: Preprocessed) -> Observed:
        assert case.label is not None
        truth = read_label(case.label, case.label_value)
        require_coverage(truth, scan.grid, name=case.id)
        table, text_id = self.trained.text(case.task, case.record)
        opened = open_scan(
            self.model,
            scan,
            name=case.id,
            task=self.trained.task(case.task),
            native=truth,
            table=table,
            text_id=text_id,
        )
        probability = opened.probability(opened.first)
        place, part = resample_window(probability, opened.window, truth)
        mask = whole_mask(place, part, truth.shape)
        signals = observe(
            self.trained,
            self.model,
            opened,
            opened.first,
            probability,
            empty=not mask.any(),
            reference=self.reference,
            repeats=self.repeats,
            record=case.record,
        )
        return Observed(
            case=case.id,
            patient=case.patient,
            task=case.task,
            dice=dice(mask, truth.array),
            absent=not truth.array.any(),
            signals=signals,
            voxels=_region_voxels(opened, truth, place, part),
        )


def _region_voxels(
    opened: Opened, truth: Volume, place: tuple[slice, slice, slice], part: np.ndarray
) -> Voxels:
    """A sample of the high-dose region's voxels that some crop reaches, on the label's grid.

    Args:
        opened: the case.
        truth: its label.
        place: the part of the label's grid that the crops reach.
        part: the probability there.
    """
    low, high = np.array([(axis.start, axis.stop) for axis in place]).T
    matrix = index_map(opened.window.affine, part_of(truth, low, high).affine)
    roi = opened.tiles.roi[opened.tiles.place]
    inside = np.flatnonzero((resample(roi, matrix, part.shape, order=0) > 0) & (part > 0))
    if len(inside) > _VOXELS:
        digest = hashlib.sha256(opened.name.encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:16]))
        inside = rng.choice(inside, _VOXELS, replace=False)
    return Voxels.of(part.ravel()[inside], truth.array[place].ravel()[inside] != 0)


def _tell(done: str, count: int, total: int, what: str) -> None:
    if count % max(1, total // 10) == 0 or count == total:
        print(f"{done} {count}/{total} {what}", flush=True)
