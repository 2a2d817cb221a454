"""An evaluation as one page: tables that sort at a click, plots and overlays inside the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from rtsam_jax.report.page import page, page_file, picture_html, soft, table_html
from rtsam_jax.report.results_tables import TitledTable
from rtsam_jax.report.tables import numeric_columns

KINDS = {
    "synthetic": "Synthetic: images made by a program. The numbers show that the machinery works, "
    "not how well it finds injuries.",
    "surrogate": "Surrogate: the labels are not the injury. The numbers show that the machinery "
    "works, not how well it finds injuries.",
    "clinical": "Clinical labels, as the dataset states.",
}
_STYLE = """
body { max-width: 80rem; }
.wide { overflow-x: auto; }
table { font-size: .86rem; overflow-wrap: normal; } th, td { padding: .22rem .5rem; }
td { white-space: nowrap; }
th { cursor: pointer; background: var(--page); }
th[aria-sort=ascending]::after { content: " \\25B2"; } th[aria-sort=descending]::after
  { content: " \\25BC"; }
figure { margin: 1rem 0; } figcaption { font-size: .9rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(34rem, 1fr)); gap: 0 1rem; }
.kind { margin: .8rem 0; padding: .5rem .8rem; border-left: 4px solid var(--warn);
  background: var(--warn-ground); color: var(--warn); }
img { background: #fff; }
@media print { body { max-width: none; padding: 0; font-size: 10px; background: #fff; }
  th { cursor: auto; } figure, tr { break-inside: avoid; } h2, .soft { break-after: avoid; }
  h2 { font-size: 12px; } figcaption { font-size: 9px; }
  .wide { overflow: visible; } table { font-size: 7.5px; } th, td { padding: .1rem .25rem; }
  .plots { display: block; } }
"""
# Numbers by their value, whatever stands after it (0.71 ± 0.10); dashes last.
_SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const sign = up ? 1 : -1;
    const text = row => row.cells[column].textContent;
    const number = row => text(row) === "inf" ? Infinity : parseFloat(text(row).replace("<", ""));
    const byNumber = (a, b) => a === b ? 0 : isNaN(a) - isNaN(b) || sign * (a - b);
    const compare = head.classList.contains("count")
      ? (a, b) => byNumber(number(a), number(b))
      : (a, b) => sign * text(a).localeCompare(text(b), "en", {numeric: true});
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  }));
}
"""


class Picture(NamedTuple):
    """A PNG or JPEG to show; its file must exist when the page is written."""

    path: Path
    title: str
    caption: str = ""


def write_results_page(
    path: Path,
    *,
    heading: str,
    kind: str,
    notes: Sequence[str],
    tables: Sequence[TitledTable],
    plots: Sequence[Picture],
    pictures: Sequence[Picture],
    cases: TitledTable,
) -> None:
    """Writes the page, whole or not at all.

    Args:
      path: HTML; its folder is made.
      heading: what was evaluated.
      kind: of the labels; see `KINDS`. Any other text is said as it is.
      notes: sentences on the cases.
      tables: before the pictures.
      plots: of the measures.
      pictures: whatever else there is to see, such as overlays and curves.
      cases: the table at the end.
    """
    with page_file(path) as file:
        body = _body(kind, notes, tables, plots, pictures, cases)
        file.writelines(page(heading, "", body, style=_STYLE, script=_SCRIPT))


def _body(
    kind: str,
    notes: Sequence[str],
    tables: Sequence[TitledTable],
    plots: Sequence[Picture],
    pictures: Sequence[Picture],
    cases: TitledTable,
) -> Iterator[str]:
    yield f'<p class="kind">{escape(KINDS.get(kind, kind))}</p>\n'
    yield from (f"<p>{escape(note)}</p>\n" for note in notes)
    yield from map(_section, tables)
    if plots:
        yield '<h2>Plots</h2>\n<div class="plots">\n'
        yield from map(_figure, plots)
        yield "</div>\n"
    if pictures:
        yield "<h2>Pictures</h2>\n"
        yield from map(_figure, pictures)
    yield _section(cases)


def _section(titled: TitledTable) -> str:
    right = numeric_columns(titled.table)
    return (
        f"<h2>{escape(titled.title)}</h2>\n{soft(titled.note)}"
        f'<div class="wide">{table_html(titled.table, right=right)}</div>\n'
    )


def _figure(picture: Picture) -> str:
    caption = f": {escape(picture.caption)}" if picture.caption else ""
    return (
        f"<figure>\n{picture_html(picture.path.read_bytes(), alt=picture.title)}"
        f"<figcaption><b>{escape(picture.title)}</b>{caption}</figcaption>\n</figure>\n"
    )
