"""The skeleton of a page that needs nothing beside it: its head, its tables, its pictures.

Every text comes from files that others wrote, so every text is escaped, and a content security
policy in the page forbids whatever might slip through: nothing is fetched, and no script runs but
the page's own, which the policy names by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import IO

from rtsam_jax.report.files import written_whole
from rtsam_jax.report.tables import Table, shown

STYLE = """
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
.count { text-align: right; font-variant-numeric: tabular-nums; }
img { display: block; width: 100%; height: auto; margin: .6rem 0; border-radius: 4px; }
"""
_COUNT = ' class="count"'


@contextmanager
def page_file(path: Path) -> Iterator[IO[str]]:
    """An open file that becomes `path` when the block has succeeded; see `written_whole`."""
    # A file name that is not Unicode comes as lone surrogates, which UTF-8 cannot hold.
    with (
        written_whole(path) as beside,
        beside.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        yield file


def page(
    title: str, subtitle: str, body: Iterable[str], *, style: str = "", script: str = ""
) -> Iterator[str]:
    """The whole page, part by part.

    Args:
      title: heading, and the title of the window.
      subtitle: a line below the heading, or none.
      body: HTML.
      style: CSS after `STYLE`.
      script: JavaScript in ASCII, run at the end; "": none may run.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    if script:
        digest = hashlib.sha256(script.encode("ascii")).digest()
        policy += f"; script-src 'sha256-{base64.b64encode(digest).decode('ascii')}'"
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n"
    )
    yield soft(subtitle)
    yield from body
    if script:
        yield f"<script>{script}</script>\n"
    yield "</body>\n</html>\n"


def soft(text: str) -> str:
    """A paragraph that stands back; nothing for an empty text."""
    return f'<p class="soft">{escape(text)}</p>\n' if text else ""


def table_html(table: Table, *, right: Sequence[bool], css: str = "") -> str:
    """A table; `right`: which columns hold numbers and stand to the right."""

    def row(tag: str, cells: Iterable[str]) -> str:
        aligned = zip(cells, right, strict=True)
        inner = (f"<{tag}{_COUNT * number}>{escape(text)}</{tag}>" for text, number in aligned)
        return f"<tr>{''.join(inner)}</tr>\n"

    lines = "".join(row("td", map(shown, cells)) for cells in table.rows)
    head = row("th", table.header)
    return f'<table class="{css}">\n<thead>\n{head}</thead>\n<tbody>\n{lines}</tbody>\n</table>\n'


def picture_html(content: bytes, *, alt: str, lazy: bool = False) -> str:
    """A PNG or JPEG inside the page; `lazy`: decoded when it comes into view."""
    encoded = base64.b64encode(content).decode("ascii")
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    loading = ' loading="lazy"' if lazy else ""
    return f'<img{loading} alt="{escape(alt)}" src="data:image/{kind};base64,{encoded}">\n'
