"""An optimised HLO module as text, read far enough to say how often each instruction runs."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+)\w*\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|\w+_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count":?\{"?n"?:"(\d+)"')
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")


class Shape(NamedTuple):
    """Of an array: bytes per element, and dimensions."""

    itemsize: int
    dims: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.itemsize * math.prod(self.dims)


def shapes(text: str) -> list[Shape]:
    """The arrays of a type, of which a tuple has several."""
    found = []
    for dtype, dims in _SHAPE.findall(text):
        bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype))
        found.append(Shape(max(bits // 8, 1), integers(dims)))
    return found


def integers(text: str) -> tuple[int, ...]:
    """`"4,2"` -> `(4, 2)`."""
    return tuple(int(x) for x in text.split(",") if x)


@dataclass(frozen=True)
class Instruction:
    """One line: `name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    line: str
    runs: int  # per run of the program
    exact: bool  # False: inside a loop that does not say how often it turns; then `runs` takes one


def instructions(text: str) -> list[Instruction]:
    """All that a module runs, its computations unfolded into how often they are."""
    bodies: dict[str, list[tuple[str, str, str, str]]] = defaultdict(list)
    entry = current = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = header[2]
            entry = current if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            bodies[current].append((found[1], found[2], found[3], line))
    runs: dict[str, int] = defaultdict(int)
    exact: dict[str, bool] = defaultdict(lambda: True)

    def visit(computation: str, times: int, known: bool) -> None:
        runs[computation] += times
        exact[computation] &= known
        for *_, opcode, line in bodies[computation]:
            trips = _TRIPS.search(line) if opcode == "while" else None
            inside = known and (opcode != "while" or trips is not None)
            for callee in _called(line):
                visit(callee, times * (int(trips[1]) if trips else 1), inside)

    visit(entry, 1, True)
    return [
        Instruction(*fields, runs[name], exact[name]) for name in runs for fields in bodies[name]
    ]


def _called(line: str) -> Iterator[str]:
    attributes = line.partition(", metadata=")[0]
    yield from _CALLED.findall(attributes)
    for names in _BRANCHES.findall(attributes):
        yield from (name.strip().lstrip("%") for name in names.split(","))


def matrix_flop(program: list[Instruction]) -> float:
    """Floating point operations of the matrix products: two per multiply-add."""
    types = {each.name: each.type for each in program}
    total = 0.0
    for each in program:
        if each.opcode != "dot":
            continue
        operand = re.search(r" dot\((?:[^%\s]+ )?%([\w.\-]+)", each.line)
        contracted = _CONTRACTED.search(each.line)
        if operand is None or contracted is None:
            continue
        (left,), (out,) = shapes(types[operand[1]]), shapes(each.type)
        depth = math.prod(left.dims[i] for i in integers(contracted[1]))
        total += 2.0 * each.runs * depth * math.prod(out.dims)
    return total
