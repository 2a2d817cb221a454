"""What lies in a folder of predictions, read back and as one table: OUT/summary.csv, summary.md."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rtsam_jax.data.failure import Failure
from rtsam_jax.data.json_file import read_json
from rtsam_jax.errors import DatasetSchemaError, UnreadableFile
from rtsam_jax.prediction.confidence import ACCEPT
from rtsam_jax.prediction.document import SCHEMA_VERSION
from rtsam_jax.prediction.outputs import DOCUMENT, TABLES, writing
from rtsam_jax.report.files import written_whole
from rtsam_jax.report.tables import Cell, Table, render, write_csv

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
    in_full, in_short = (out / name for name in TABLES)
    with writing(in_full):
        write_csv(table, in_full)
    with writing(in_short), written_whole(in_short) as beside:
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
