"""The report on a dataset's cases: one HTML file that needs nothing beside it and runs no script.

Every text comes from files that others wrote, so every text is escaped, and a content security
policy in the page forbids whatever might slip through.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from rtsam_jax.data.failure import Failure
from rtsam_jax.report.case_facts import CaseFacts, DoseFacts, LabelFacts
from rtsam_jax.report.case_picture import CT_WINDOW, LEGEND, WIDTH, Line
from rtsam_jax.report.case_view import CaseView
from rtsam_jax.report.case_warnings import percent, times
from rtsam_jax.report.files import written_whole
from rtsam_jax.report.planes import WINDOW_PERCENTILES

Terms = list[tuple[str, str]]  # what is stated, its value: plain text

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5a6470; --page: #f5f6f8; --card: #fff;
  --line: #d9dde2; --warn: #8a4b00; --warn-ground: #fff3e0; --bad: #a11212; --bad-ground: #fdeaea;
  --good: #1b6e3c; --link: #0b57b0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #9aa4b0; --page: #14171b;
  --card: #1d2126; --line: #343a42; --warn: #ffb866; --warn-ground: #37291a; --bad: #ff9b9b;
  --bad-ground: #3a1e1e; --good: #7fd6a0; --link: #8ab8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 66rem; background: var(--page);
  color: var(--ink); font: 14px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.5rem; } h2 { margin: 2rem 0 .6rem; font-size: 1.15rem; }
h3 { margin: 0; font-size: 1.02rem; } h4 { margin: 0 0 .2rem; font-size: .85rem; }
a { color: var(--link); } p { margin: .3rem 0; } .soft { color: var(--soft); }
table { border-collapse: collapse; background: var(--card); }
th, td { padding: .3rem .7rem; border: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { overflow-wrap: normal; }
td.count { text-align: right; font-variant-numeric: tabular-nums; }
.failed { background: var(--bad-ground); } .failed td { min-width: 10rem; }
.list { display: flex; flex-wrap: wrap; gap: .2rem .9rem; margin: .4rem 0; padding: 0;
  list-style: none; }
.legend { padding: .5rem .8rem; border-radius: 6px; background: #26292d; color: #f0f0f0; }
.legend svg { margin-right: .4rem; vertical-align: middle; }
article { margin: 1rem 0; padding: .8rem; border: 1px solid var(--line); border-radius: 8px;
  background: var(--card); content-visibility: auto; contain-intrinsic-size: auto 34rem; }
article:target { border-color: var(--link); box-shadow: 0 0 0 2px var(--link); }
header { display: flex; flex-wrap: wrap; gap: .1rem .9rem; align-items: baseline; }
img { display: block; width: 100%; height: auto; margin: .6rem 0; border-radius: 4px;
  background: #000; }
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
_HEAD = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
)
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
    # A file name that is not Unicode comes as lone surrogates, which UTF-8 cannot hold.
    with (
        written_whole(path) as beside,
        beside.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.writelines(_page(title, subtitle, views, failures))


def _page(
    title: str, subtitle: str, views: Sequence[CaseView], failures: Sequence[Failure]
) -> Iterator[str]:
    yield f"{_HEAD}<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
    yield f'<h1>{escape(title)}</h1>\n<p class="soft">{escape(subtitle)}</p>\n'
    yield from _summary(views, failures)
    if failures:
        rows = [[f.case, f.code, f.message] for f in failures]
        yield '<h2 id="failures">Failed cases</h2>\n'
        yield _table(("Case", "Error", "Message"), rows, css="failed")
    yield "<h2>Cases</h2>\n"
    yield f'<ul class="legend list">{"".join(map(_legend_entry, LEGEND))}</ul>\n'
    yield f'<p class="soft">{escape(_READING)}</p>\n'
    for number, view in enumerate(views):
        yield _row(number, view)
    yield "</body>\n</html>\n"


def _summary(views: Sequence[CaseView], failures: Sequence[Failure]) -> Iterator[str]:
    yield "<h2>Summary</h2>\n"
    tasks = list(dict.fromkeys(view.task for view in views))
    rows = [(task, *_counts([v for v in views if v.task == task])) for task in tasks]
    if len(tasks) != 1:
        rows.append(("all tasks", *_counts(views)))
    yield _table(("Task", "Cases", "Complete", "Incomplete", "With warnings"), rows)
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


def _table(header: Sequence[str], rows: Sequence[Sequence[str | int]], css: str = "") -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = [f"<tr>{cells}</tr>\n"]
    for row in rows:
        cells = "".join(
            f'<td class="count">{cell}</td>'
            if isinstance(cell, int)
            else f"<td>{escape(cell)}</td>"
            for cell in row
        )
        lines.append(f"<tr>{cells}</tr>\n")
    return f'<table class="{css}">\n{"".join(lines)}</table>\n'


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
    picture = base64.b64encode(view.picture).decode("ascii")
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
        f'<img loading="lazy" width="{WIDTH:g}" alt="Axial, coronal and sagittal '
        f'plane of {escape(view.id)}" src="data:image/jpeg;base64,{picture}">\n'
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
