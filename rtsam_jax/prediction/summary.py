"""What lies in a folder of predictions, read back and as one table: OUT/summary.csv, summary.md."""

from __future__ import annotations

import math
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
        _done(folder, document)
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
        rows.append(_unread(path) if document is None else _done(path.parent, document))
    rows = [
        _earlier(row) if row["case"] in failed and (row["case"], row["task"]) not in made else row
        for row in rows
    ]
    rows += [_failed(failure) for failure in failures]
    rows = [{name: _printable(cell) for name, cell in row.items()} for row in rows]
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


def _done(folder: Path, document: Mapping[str, Any]) -> dict[str, Cell]:
    """A prediction by its folder's name, which is another than its own once it was copied."""
    mask, dose, confidence = document["mask"], document["dose"] or {}, document["confidence"]
    case, task = folder.parent.name, folder.name
    predicted = _text(document["case"]), _text(document["task"]["name"])
    empty, flag = mask["empty"] and _text(mask["empty"]), _text(confidence["flag"])
    reasons = [reason.rstrip(".") for reason in _texts(confidence["reasons"])]
    warnings, remarks = _texts(document["warnings"]), []
    if predicted != (case, task):
        remarks.append(f"It was predicted as {'/'.join(predicted)}.")
    if empty:
        remarks.append(f"Empty: {empty}.")
    if flag == ACCEPT:
        reasons = []
    else:
        remarks.append(f"{flag.capitalize()}: {'; '.join(reasons)}.")
    remarks += [said for said in warnings if said.rstrip(".") not in reasons]
    return {
        "case": case,
        "task": task,
        "result": "empty" if empty else "mask",
        **{name: _number(mask[name]) for name in ("volume_ml", "lesions", "longest_diameter_mm")},
        "mean_dose": _number(dose.get("mean_in_mask")),
        "max_dose": _number(dose.get("max_in_mask")),
        "flag": flag,
        **{name: _number(confidence[name]) for name in ("quality", "expected_dice")},
        **{name: _number(confidence[name]) for name in ("agreement", "distance")},
        "largest_probability": _number(mask["largest_probability"]),
        "weights": _text(document["model"]["weights"])[:12],
        "warnings": len(warnings),
        "what": " ".join(remarks),
    }


def _number(value: Any) -> float | None:
    """A measure, or null; `TypeError` for anything else."""
    if value is not None and not (type(value) in (int, float) and abs(value) < math.inf):
        raise TypeError(f"{value!r} is no number")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return [_text(part) for part in value]


def _printable(cell: Cell) -> Cell:
    """A cell that UTF-8 can hold, as not every name of a file can be."""
    return cell.encode(errors="replace").decode() if isinstance(cell, str) else cell


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
