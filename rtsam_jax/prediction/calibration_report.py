"""What a calibration is worth, as tables, pictures and numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rtsam_jax.data.json_file import write_json
from rtsam_jax.metrics.ranking import AUROC, bootstrap_auroc, risk_coverage
from rtsam_jax.metrics.reliability import BINS, Reliability
from rtsam_jax.prediction.calibration import (
    ASSURED,
    CONFIDENCE,
    GOOD,
    RELIABLE,
    Calibration,
    Fit,
    Observed,
)
from rtsam_jax.prediction.confidence import ACCEPT, REJECT, REVIEW, Confidence, judge
from rtsam_jax.prediction.temperature import bound, reliability_at
from rtsam_jax.report.calibration_plots import draw_reliability, draw_risk_coverage
from rtsam_jax.report.files import written_whole
from rtsam_jax.report.results_html import KINDS
from rtsam_jax.report.tables import Cell, Table, render, write_csv

_FEW = 10  # failures, or successes: below, an AUROC is hardly known
# What a temperature at an end of its range tells.
_ENDS = {
    "lowest": (
        "hardly a voxel is on the wrong side of one half, so nothing says how sure the model may "
        "be, and calibrated probabilities are nearly 0 or 1"
    ),
    "highest": (
        "the probabilities say nothing of the truth in the high-dose region, and calibrated ones "
        "are all near one half, so neither they nor the expected Dice tell masks apart"
    ),
}
_FLAGS = (ACCEPT, REVIEW, REJECT)
_HEADER = (
    *("Cases", "n", "Patients", f"Dice < {GOOD:g}", "Empty", "ECE before", "ECE after"),
    *("AUROC of the quality (95 % interval)", "AUROC of the flag (95 % interval)"),
    *("Accepted", "To review", "Rejected"),
)


@dataclass(frozen=True, eq=False)
class Trial:
    """Cases that a calibration is tried on, each judged by a fit that did not see its patient."""

    name: str
    cases: Sequence[Observed]
    fits: Sequence[Fit]

    @property
    def chances(self) -> np.ndarray:
        """Of a success, by case: float64 [n]."""
        return np.array(
            [fit.chance(case.signals) for case, fit in zip(self.cases, self.fits, strict=True)],
            np.float64,
        )

    def reliability(self) -> tuple[Reliability, Reliability] | None:
        """Inside the high-dose region, before and after; None where no case has a voxel of it."""
        voxels = [case.voxels for case in self.cases]
        if not any(len(of.logits) for of in voxels):
            return None
        before = reliability_at(voxels, [1.0] * len(voxels))
        return before, reliability_at(voxels, [fit.temperature for fit in self.fits])

    def auroc(self) -> AUROC:
        """Of the chance for Dice below 0.5."""
        return bootstrap_auroc(
            self.chances.tolist(),
            [not case.good for case in self.cases],
            [case.patient for case in self.cases],
        )

    def flag_auroc(self, calibration: Calibration) -> AUROC:
        """Of the flag itself for Dice below 0.5: accept above review above reject."""
        return bootstrap_auroc(
            [-_FLAGS.index(of.flag) for of in self.judged(calibration)],
            [not case.good for case in self.cases],
            [case.patient for case in self.cases],
        )

    def judged(self, calibration: Calibration) -> list[Confidence]:
        """Each case with its own fit and the calibration's thresholds."""
        return [
            judge(case.signals, dataclasses.replace(calibration, fit=fit))
            for case, fit in zip(self.cases, self.fits, strict=True)
        ]


def measured(trial: Trial, calibration: Calibration) -> dict[str, Any]:
    """A trial's numbers as strict JSON; what does not exist is null."""
    pair, auroc = trial.reliability(), trial.auroc()
    flags = {flag: {"n": 0, "n_good": 0} for flag in _FLAGS}
    for case, of in zip(trial.cases, trial.judged(calibration), strict=True):
        flags[of.flag]["n"] += 1
        flags[of.flag]["n_good"] += int(case.good)
    return {
        "n": auroc.n,
        "n_patients": auroc.n_patients,
        "n_failed": auroc.n_failed,
        "n_empty": sum(case.signals.empty for case in trial.cases),
        "ece_before": None if pair is None else pair[0].ece,
        "ece_after": None if pair is None else pair[1].ece,
        "auroc": _as_json(auroc),
        "flag_auroc": _as_json(trial.flag_auroc(calibration)),
        "flags": flags,
    }


def _as_json(area: AUROC) -> dict[str, float | None]:
    return {
        name: None if math.isnan(value) else value
        for name, value in zip(("value", "low", "high"), area[:3], strict=True)
    }


def write_calibration_report(
    folder: Path,
    calibration: Calibration,
    own: Trial,
    others: Sequence[Trial],
    found: Mapping[str, Mapping[str, Any]],
    *,
    heading: str,
    kind: str,
    doubts: Sequence[str] = (),
) -> str:
    """Writes `calibration.md`, `calibration.json`, `cases.csv` and two pictures.

    Args:
        folder: made if it is not there.
        calibration: that was fitted.
        own: on the cases it was fitted on, cross-fitted.
        others: on other splits.
        found: `measured` of all of them, by name.
        heading: dataset and split.
        kind: "clinical", "surrogate" or "synthetic".
        doubts: why the run may have seen the cases, sentences without their full stops.

    Returns:
        The table and the notes.
    """
    trials = [own, *others]
    rows = [_row(name, of) for name, of in found.items()]
    fitted = Trial("", own.cases, [calibration.fit] * len(own.cases)).reliability()
    notes = [f"{doubt}." for doubt in doubts]
    notes += _notes(calibration, found, fitted, len(others))
    text = render(Table(_HEADER, tuple(rows))) + "".join(f"\n{note}\n" for note in notes)
    title = f"{heading} ({kind})"
    document = {"heading": title, "measured": found, "calibration": calibration.to_dict()}
    write_json(folder / "calibration.json", document)
    write_csv(_case_rows(trials, calibration), folder / "cases.csv")
    with written_whole(folder / "calibration.md") as beside:
        blocks = (f"# {title}", KINDS.get(kind, ""), text)
        beside.write_text("\n\n".join(filter(None, blocks)), encoding="utf-8")
    _draw(folder, trials, title)
    return text


def _row(name: str, of: Mapping[str, Any]) -> tuple[Cell, ...]:
    areas = [_shown(of[name]) for name in ("auroc", "flag_auroc")]
    flags = [f"{of['flags'][flag]['n_good']}/{of['flags'][flag]['n']}" for flag in _FLAGS]
    counts = (of["n"], of["n_patients"], of["n_failed"], of["n_empty"])
    return (name, *counts, of["ece_before"], of["ece_after"], *areas, *flags)


def _shown(area: Mapping[str, float | None]) -> str:
    text = "-" if area["value"] is None else f"{area['value']:.3f}"
    return text if area["low"] is None else f"{text} ({area['low']:.3f} to {area['high']:.3f})"


def _notes(
    calibration: Calibration,
    found: Mapping[str, Mapping[str, Any]],
    fitted: tuple[Reliability, Reliability] | None,
    others: int,
) -> list[str]:
    fit = calibration.fit
    after = "" if fitted is None else f" On those it was fitted on, ECE is {fitted[1].ece:.3f}."
    notes = [
        f"Temperature {fit.temperature:.3f}, on the logit of the foreground's probability.{after} "
        f"ECE: inside the high-dose region on the label's grid, {BINS} bins of equal width, every "
        "case with the same weight.",
        _said_of_quality(calibration),
        f"AUROC: of the quality, the chance that Dice is at least {GOOD:g}, for Dice below it. "
        "And of the flag: accept above review above reject, ties count one half; the warnings of "
        "predict on image and dose, which make it a review, are not in it. Cross-fitted: every "
        "case is judged by a fit that saw no case of its patient. Flags are given as good ones of "
        "all; in the cross-fitted row the thresholds have seen the cases.",
    ]
    if end := bound(fit.temperature):
        notes.insert(1, f"That temperature is the {end} that is tried: {_ENDS[end]}.")
    for name, of in found.items():
        failed, right = of["n_failed"], of["n"] - of["n_failed"]
        if min(failed, right) < _FEW:
            notes.append(
                f"{name}: {failed} of {of['n']} cases fail and {right} do not, which is too few "
                "to know an AUROC, or a threshold, well."
            )
    if not others:
        notes.append("The dataset has no other split with labels to try the calibration on.")
    return notes


def _said_of_quality(calibration: Calibration) -> str:
    quality = calibration.fit.quality
    if not quality.features:
        return (
            f"{calibration.good} of {calibration.cases} cases have Dice of at least {GOOD:g}, so "
            "that there is nothing to tell apart: the quality is constant, and every mask that is "
            "not empty is to be reviewed."
        )
    named = zip(quality.features, quality.weights, strict=True)
    weights = ", ".join(f"{name} {weight:+.2f}" for name, weight in named)
    sides = {"accepted at or above": calibration.accept, "rejected at or below": calibration.reject}
    said = [f"{side} {at:.3f}" for side, at in sides.items() if at is not None]
    said += [f"never {side.split()[0]}" for side, at in sides.items() if at is None]
    return (
        f"Quality by logistic regression, weights per standard deviation: {weights}. Masks are "
        f"{' and '.join(said)}; of the cases beyond a threshold at least {RELIABLE:.0%} are "
        f"rightly there, and with {CONFIDENCE:.0%} confidence more than {ASSURED:.0%} of all such "
        "cases would be."
    )


def _case_rows(trials: Sequence[Trial], calibration: Calibration) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for trial in trials:
        for case, of in zip(trial.cases, trial.judged(calibration), strict=True):
            judged = (of.quality, of.flag, of.expected_dice, of.agreement, of.distance)
            about = (trial.name, case.case, case.patient, case.task, case.dice, case.signals.empty)
            rows.append((*about, *judged, of.predicted_iou, of.mean_probability))
    header = (
        *("cases", "case", "patient", "task", "dice", "empty", "quality", "flag", "expected_dice"),
        *("agreement", "distance", "predicted_iou", "mean_probability"),
    )
    return Table(header, tuple(rows))


def _draw(folder: Path, trials: Sequence[Trial], title: str) -> None:
    diagrams, curves = {}, {}
    for trial in trials:
        if (pair := trial.reliability()) is not None:
            diagrams[f"{trial.name}, before"], diagrams[f"{trial.name}, after"] = pair
        dices = np.array([case.dice for case in trial.cases])
        curves[f"{trial.name}: share with Dice < {GOOD:g}"] = risk_coverage(
            trial.chances, dices < GOOD
        )
        curves[f"{trial.name}: 1 - Dice"] = risk_coverage(trial.chances, 1 - dices)
    draw_reliability(diagrams, title, folder / "reliability.png")
    draw_risk_coverage(curves, title, folder / "risk_coverage.png")
