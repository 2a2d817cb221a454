"""Draws records that the allow-list accepts."""

from __future__ import annotations

from hypothesis import strategies as st

from rtsam_jax.prompts.record import FIELDS, Field, Flag, Note, Number, Scalar


def values(field: Field) -> st.SearchStrategy[Scalar]:
    kind = field.kind
    if isinstance(kind, Flag):
        return st.booleans()
    if isinstance(kind, Note):
        return st.just("Denies pain; eats a soft diet")
    if isinstance(kind, Number):
        if kind.whole:
            return st.integers(int(kind.low), int(kind.high))
        hundredths = st.integers(round(kind.low * 100), round(kind.high * 100))
        return hundredths.map(lambda n: n / 100)
    terms = st.sampled_from(kind.terms)
    if kind.several:
        lists = st.lists(st.sampled_from(kind.terms[1:]), min_size=1, max_size=4, unique=True)
        return st.just("none") | lists.map(", ".join)
    return terms | st.booleans() if kind.flag else terms


def records(*, note: bool = False) -> st.SearchStrategy[dict[str, Scalar]]:
    """Any subset of the fields, in any order; `note`, which needs free text, on request."""
    names = [name for name, field in FIELDS.items() if note or not isinstance(field.kind, Note)]
    return st.lists(st.sampled_from(names), unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({name: values(FIELDS[name]) for name in chosen})
    )
