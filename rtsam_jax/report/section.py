"""Tables inside a document that people write: whatever stands between two marks is replaced."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rtsam_jax.errors import UnreadableFile
from rtsam_jax.report.files import written_whole


def require_section(document: Path, kind: str, name: str) -> None:
    """Raises what `write_section` would raise, before there is anything to write."""
    if document.exists():
        _around(document, kind, name)


def write_section(
    document: Path, kind: str, name: str, body: str, pictures: Mapping[str, Path] | None = None
) -> None:
    """Puts `body` between the two marks of a section; a document that is missing is begun.

    Args:
        document: Markdown with the lines `<!-- KIND NAME -->` and `<!-- end of KIND NAME -->`.
        kind: which command writes it.
        name: of the section, since a document may hold several of a kind.
        body: Markdown.
        pictures: PNGs to show below it by their titles, copied to `images/` beside the document as
            `KIND_NAME_FILE`; those of patients are not for publishing.

    Raises:
        UnreadableFile: the document lacks one of the marks.
    """
    before, after = _around(document, kind, name) if document.exists() else ("", "\n")
    begin, end = _marks(kind, name)
    shown = []
    for title, picture in (pictures or {}).items():
        place = f"images/{kind}_{name}_{picture.name}"
        with written_whole(document.parent / place) as beside:
            beside.write_bytes(picture.read_bytes())
        shown.append(f"![{title}]({place})\n")
    body = "\n".join([body, *shown])
    with written_whole(document) as beside:
        beside.write_text(f"{before}{begin}\n\n{body}\n{end}{after}", encoding="utf-8")


def _around(document: Path, kind: str, name: str) -> tuple[str, str]:
    """What stands before and after the marks."""
    begin, end = _marks(kind, name)
    before, found, rest = document.read_text(encoding="utf-8").partition(begin + "\n")
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise UnreadableFile(
            f"{document} has no lines {begin} and {end} for the tables to stand between; add both."
        )
    return before, after


def _marks(kind: str, name: str) -> tuple[str, str]:
    return f"<!-- {kind} {name} -->", f"<!-- end of {kind} {name} -->"
