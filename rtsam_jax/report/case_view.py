"""One case of a dataset as a reader checks it before training: a picture, facts, warnings."""

from __future__ import annotations

from dataclasses import dataclass

from rtsam_jax.data.cases import Case
from rtsam_jax.data.nifti import read_label, read_volume
from rtsam_jax.data.preprocess import PreprocessSpec, label_to_grid, preprocess
from rtsam_jax.report.case_facts import CaseFacts, measure
from rtsam_jax.report.case_picture import draw_case
from rtsam_jax.report.case_warnings import looks_like_hu, warnings_of


@dataclass(frozen=True)
class CaseView:
    """A row of the report; nothing of the case's record is in it. Picklable, without volumes."""

    id: str
    patient: str
    task: str
    split: str | None
    status: str  # "complete" | "incomplete: no dose", "... no label", "... no dose, no label"
    picture: bytes  # JPEG
    facts: CaseFacts
    warnings: tuple[str, ...]  # sentences


def view_case(case: Case, modality: str, spec: PreprocessSpec, size: int) -> CaseView:
    """Reads, preprocesses, measures and draws a case with whatever parts it has.

    Args:
      case: dose and label may be missing.
      modality: of its task, "CT" or "MR".
      spec: grid and ROI.
      size: edge of the model's crop in voxels.

    Raises:
      RTSamError: whatever reading or preprocessing refuses.
    """
    image = read_volume(case.image)
    dose = None if case.dose is None else read_volume(case.dose, what="dose")
    label = None if case.label is None else read_label(case.label, case.label_value)
    prescription = case.record.get("prescription_gy")
    scan = preprocess(
        image,
        dose,
        modality,
        spec,
        name=case.id,
        prescription_gy=None if prescription is None else float(prescription),
    )
    truth = None if label is None else label_to_grid(label, scan.grid, name=case.id)
    facts = measure(case.image, image, dose, label, scan, truth, size=size)
    missing = ", ".join(f"no {part}" for part in case.missing)
    return CaseView(
        id=case.id,
        patient=case.patient,
        task=case.task,
        split=case.split,
        status=f"incomplete: {missing}" if missing else "complete",
        picture=draw_case(scan, dose, truth, in_hu=looks_like_hu(facts)),
        facts=facts,
        warnings=warnings_of(facts),
    )
