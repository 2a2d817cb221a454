"""LaTeX tables: whatever the texts, the columns stay and nothing is a command."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.report.latex import escaped, latex
from rtsam_jax.report.tables import Table

texts = st.text(alphabet=st.sampled_from("aZ09 \\&%$#_{}~^<>|±-.\n"), min_size=1, max_size=12)


def test_a_table_with_rules_and_groups() -> None:
    table = Table(
        ("Task", "Dice", "p"),
        (("orn", "0.50 ± 0.10", "<0.001"), ("orn", "-0.30", "0.5"), ("c_e", "1.00", "-")),
    )
    assert latex(table, caption="50 % of all", label="tab:a").splitlines() == [
        r"\begin{table}[t]",
        r"\centering\small",
        r"\caption{50 \% of all}",
        r"\label{tab:a}",
        r"\medskip",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"Task & Dice & p \\",
        r"\midrule",
        r"orn & 0.50 $\pm$ 0.10 & $<$0.001 \\",
        r" & $-$0.30 & 0.5 \\",
        r"\addlinespace",
        r"c\_e & 1.00 & - \\",
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a-1", "a-1"), ("-1.5 to -0.2", "$-$1.5 to $-$0.2"), ("2-3", "2-3"), (r"\b{}", None)],
)
def test_minus_signs_are_told_from_hyphens(text: str, expected: str | None) -> None:
    assert escaped(text) == (expected or r"\textbackslash{}b\{\}")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=4))
def test_every_row_keeps_its_columns_whatever_the_texts(rows: list[tuple[str, ...]]) -> None:
    lines = latex(Table(("a", "b", "c"), tuple(rows)), caption="", label="x").splitlines()
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    body = [line for line in body if line != r"\addlinespace"]
    assert len(body) == len(rows)
    for line in body:
        assert len(re.findall(r"(?<!\\)&", line)) == 2
        assert line.endswith(r" \\") and not re.search(r"(?<!\\)[#%_]", line)
        assert len(re.findall(r"(?<!\\)\$", line)) % 2 == 0
