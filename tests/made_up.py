"""Cases with made-up measures, for tests of what is done with them."""

from __future__ import annotations

from typing import Any

from rtsam_jax.metrics.case import MEASURES, CaseMetrics


def made_up(
    case: str, value: float = 0.5, *, patient: str = "", task: str = "orn", **fields: Any
) -> CaseMetrics:
    """A case whose six measures are all `value`, with a single lesion that is found."""
    known: dict[str, Any] = {
        **dict.fromkeys(MEASURES, value),
        "volume_pred_ml": 1.5,
        "volume_truth_ml": 2.0,
        "both_empty": False,
        "missed": False,
        "diagonal_mm": 100.0,
        "masd_mm": value,
        "nsd_1mm": 0.6,
        "nsd_2mm": 0.8,
        "lesions_truth": 1,
        "lesions_pred": 1,
        "lesions_found": 1,
        "lesions_right": 1,
        "structures_ml": {},
    }
    return CaseMetrics(case=case, patient=patient or case, task=task, **(known | fields))
