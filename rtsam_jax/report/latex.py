r"""Tables as LaTeX, for a document with `\usepackage{booktabs,graphicx}`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rtsam_jax.report.tables import Cell, Table, numeric_columns, shown

_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "·": r"$\cdot$",
}
_MINUS = re.compile(r"(?<![\w.])-(?=\d)")  # a sign, not a hyphen


def escaped(text: str) -> str:
    """A text as LaTeX prints it, on one line; minus signs are typeset as such."""
    out = "".join(_SPECIAL.get(character, character) for character in " ".join(text.split()))
    return _MINUS.sub("$-$", out)


def latex(table: Table, *, caption: str, label: str) -> str:
    r"""A `table` environment with booktabs rules.

    Rows with the same first cell stand together: it is printed once, with a space before the next.

    Args:
      caption: plain text.
      label: for `\ref`, letters, digits, ":" and "-".
    """
    columns = "".join("r" if right else "l" for right in numeric_columns(table))
    lines = [
        r"\begin{table}[t]",
        r"\centering\small",
        f"\\caption{{{escaped(caption)}}}",
        f"\\label{{{label}}}",
        r"\medskip",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",  # if too wide
        f"\\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _line([escaped(title) for title in table.header]),
        r"\midrule",
        *_body(table.rows),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _body(rows: Sequence[Sequence[Cell]]) -> list[str]:
    lines: list[str] = []
    before: Cell = None
    for number, row in enumerate(rows):
        again = number > 0 and row[0] == before
        if number > 0 and not again:
            lines.append(r"\addlinespace")
        first = "" if again else escaped(shown(row[0]))
        lines.append(_line([first, *(escaped(shown(cell)) for cell in row[1:])]))
        before = row[0]
    return lines


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
