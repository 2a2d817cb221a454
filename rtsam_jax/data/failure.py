"""A case that could not be used, kept so that the rest can go on and it is not forgotten."""

from __future__ import annotations

from typing import NamedTuple


class Failure(NamedTuple):
    """What struck a case: the error's stable code and its sentence."""

    case: str
    code: str
    message: str
