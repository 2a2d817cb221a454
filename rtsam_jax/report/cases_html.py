"""The report on a dataset's cases: one HTML file with all pictures in it, without a script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from rtsam_jax.data.failure import Failure
from rtsam_jax.report.case_facts import CaseFacts, DoseFacts, LabelFacts
from rtsam_jax.report.case_picture import CT_WINDOW, LEGEND, Line
from rtsam_jax.report.case_view import CaseView
from rtsam_jax.report.case_warnings import percent, times
from rtsam_jax.report.page import page, page_file, picture_html, table_html
from rtsam_jax.report.planes import WINDOW_PERCENTILES
from rtsam_jax.report.tables import Table

Terms = list[tuple[str, str]]  # what is stated, its value: plain text

_STYLE = """
.failed { background: var(--bad-ground); } .failed td { min-width: 10rem; }
.list { display: flex; flex-wrap: wrap; gap: .2rem .9rem; margin: .4rem 0; padding: 0;
  list-style: none; }
.legend { padding: .5rem .8rem; border-radius: 6px; background: #26292d; color: #f0f0f0; }
.legend svg { margin-right: .4rem; vertical-align: middle; }
article { margin: 1rem 0; padding: .8rem; border: 1px solid var(--line); border-radius: 8px;
  background: var(--card); content-visibility: auto; contain-intrinsic-size: auto 34rem; }
article:target { border-color: var(--link); box-shadow: 0 0 0 2px var(--link); }
header { display: flex; flex-wrap: wrap; gap: .1rem .9rem; align-items: baseline; }
img { background: #000; }
.complete { color: var(--good); } .incomplete { color: var(--warn); }
.warnings { margin: .6rem 0; padding: .4rem .8rem .4rem 1.6rem; border-left: 4px solid var(--warn);
  background: var(--warn-ground); color: var(--warn); }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr));
  gap: .6rem 1.4rem; }
dl { margin: 0; font-size: .85rem; }
dl div { display: flex; gap: .7rem; justify-content: space-between; }
dt { color: var(--soft); } dd { margin: 0; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
"""
_READING = (
    "Planes pass through the label, without one through the high-dose region, else through the "
    "middle, on the model's grid and at one scale. Radiological display: the patient's right is on "
    f"the left. CT is shown from {CT_WINDOW[0]:g} to {CT_WINDOW[1]:g} HU, anything else between "
    f"its {WINDOW_PERCENTILES[0]:g} and {WINDOW_PERCENTILES[1]:g} % percentiles."
)


def write_cases_report(
    path: Path,
    *,
    title: str,
    subtitle: str,
    views: Sequence[CaseView],
    failures: Sequence[Failure],
) -> None:
    """Writes the report, whole or not at all: a summary, the failures, then a row per case.

    Args:
      path: HTML; its folder is made.
      title: heading, such as the dataset's name.
      subtitle: a line below it, such as the dataset's kind and the settings.
      views: in the order to list them.
      failures: the cases that have no view.
    """
    with page_file(path) as file:
        file.writelines(page(title, subtitle, _body(views, failures), style=_STYLE))


def _body(views: Sequence[CaseView], failures: Sequence[Failure]) -> Iterator[str]:
    yield from _summary(views, failures)
    if failures:
        rows = tuple((f.case, f.code, f.message) for f in failures)
        yield '<h2 id="failures">Failed cases</h2>\n'
        listed = Table(("Case", "Error", "Message"), rows)
        yield table_html(listed, right=(False, False, False), css="failed")
    yield "<h2>Cases</h2>\n"
    yield f'<ul class="legend list">{"".join(map(_legend_entry, LEGEND))}</ul>\n'
    yield f'<p class="soft">{escape(_READING)}</p>\n'
    for number, view in enumerate(views):
        yield _row(number, view)


def _summary(views: Sequence[CaseView], failures: Sequence[Failure]) -> Iterator[str]:
    yield "<h2>Summary</h2>\n"
    tasks = list(dict.fromkeys(view.task for view in views))
    rows = [(task, *_counts([v for v in views if v.task == task])) for task in tasks]
    if len(tasks) != 1:
        rows.append(("all tasks", *_counts(views)))
    counted = Table(("Task", "Cases", "Complete", "Incomplete", "With warnings"), tuple(rows))
    yield table_html(counted, right=(False, True, True, True, True))
    if failures:
        count = f"{len(failures)} case{'s' if len(failures) > 1 else ''}"
        yield f'<p><a href="#failures">{count} failed</a> and have no row below.</p>\n'
    else:
        yield '<p class="soft">No case failed.</p>\n'
    warned = [(number, view) for number, view in enumerate(views) if view.warnings]
    if warned:
        links = "".join(
            f'<li><a href="#case-{number}">{escape(view.id)}</a> '
            f'<span class="soft">{len(view.warnings)}</span></li>'
            for number, view in warned
        )
        yield f'<p>With warnings, and how many:</p>\n<ul class="list">{links}</ul>\n'


def _counts(views: Sequence[CaseView]) -> tuple[int, int, int, int]:
    complete = sum(view.status == "complete" for view in views)
    warned = sum(bool(view.warnings) for view in views)
    return len(views), complete, len(views) - complete, warned


def _legend_entry(line: Line) -> str:
    dashes = " ".join(f"{length * line.width:g}" for length in line.dashes) or "none"
    return (
        '<li><svg width="44" height="11" aria-hidden="true"><line x1="1" y1="5.5" x2="43" y2="5.5" '
        f'stroke="{line.colour}" stroke-width="{line.width:g}" stroke-dasharray="{dashes}"/></svg>'
        f"{escape(line.name)}</li>"
    )


def _row(number: int, view: CaseView) -> str:
    # Anchors by number: an id may hold anything.
    status = "complete" if view.status == "complete" else "incomplete"
    about = [f"patient {view.patient}", view.task, f"split {view.split}" if view.split else ""]
    named = "".join(f"<span>{escape(text)}</span>" for text in about if text)
    planes = f"Axial, coronal and sagittal plane of {view.id}"
    warnings = "".join(f"<li>{escape(sentence)}</li>" for sentence in view.warnings)
    groups = "".join(
        f"<section><h4>{escape(name)}</h4><dl>"
        + "".join(
            f"<div><dt>{escape(term)}</dt><dd>{escape(value)}</dd></div>" for term, value in terms
        )
        + "</dl></section>"
        for name, terms in _groups(view.facts)
    )
    return (
        f'<article id="case-{number}">\n<header><h3>{escape(view.id)}</h3>{named}'
        f'<span class="{status}">{escape(view.status)}</span></header>\n'
        + picture_html(view.picture, alt=planes, lazy=True)
        + (f'<ul class="warnings">{warnings}</ul>\n' if warnings else "")
        + f'<div class="facts">{groups}</div>\n</article>\n'
    )


def _groups(facts: CaseFacts) -> Iterator[tuple[str, Terms]]:
    yield (
        "Image",
        [
            ("Voxels (R, A, S)", " × ".join(map(str, facts.shape))),
            ("Spacing", f"{times(facts.spacing_mm)} mm"),
            ("Axes in the file", facts.stored_axes),
            ("Model grid, crop", f"{facts.model_spacing_mm:g} mm, {facts.crop_mm:g} mm"),
        ],
    )
    least, low, median, high, largest = (f"{value:.4g}" for value in facts.intensities)
    yield (
        "Intensities" + (" (HU)" if facts.modality == "CT" else f" ({facts.modality})"),
        [
            ("Least, largest", f"{least}, {largest}"),
            ("1 %, 99 %", f"{low}, {high}"),
            ("Median", median),
            ("Normalised by", f"{facts.mean:.4g} ± {facts.std:.4g}"),
        ],
    )
    if facts.dose is not None:
        yield "Dose (unit as stored)", _dose_terms(facts.dose)
    if facts.label is not None:
        yield "Label", _label_terms(facts.label)


def _dose_terms(dose: DoseFacts) -> Terms:
    return [
        ("Largest, threshold", f"{dose.dmax:.4g}, {dose.threshold:.4g}"),
        ("High-dose region", f"{dose.roi_ml:.4g} mL"),
        ("Box", f"{times(dose.box_mm)} mm"),
        ("Crops over the box", str(dose.crops)),
        ("Dose grid", f"{times(dose.spacing_mm)} mm"),
        ("Image outside it", percent(dose.outside)),
    ]


def _label_terms(label: LabelFacts) -> Terms:
    terms = [("Volume", f"{label.ml:.4g} mL"), ("Lesions", str(label.lesions))]
    if label.outside_roi is not None:
        terms.append(("Outside the region", percent(label.outside_roi)))
    if label.outside_crops is not None:
        terms.append(("Outside every crop", percent(label.outside_crops)))
    return terms
