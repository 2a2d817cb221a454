"""What devices send each other in a compiled program."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rtsam_jax.planning.hlo import Instruction, integers, shapes

# Bytes that a device of n sends by a ring algorithm, per byte of the result.
_SENT = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S+)\))?(?: \{([^}]*)\})?"
)


@dataclass(frozen=True)
class Collective:
    """All exchanges of one kind along the same axes of the mesh, in one run of the program."""

    kind: str
    axes: tuple[str, ...]
    devices: int  # that exchange with each other
    count: int
    sent_bytes: int  # by one device
    exact: bool  # False: a loop does not say how often it turns, and is counted once


def collectives(program: Sequence[Instruction], mesh: Mapping[str, int]) -> list[Collective]:
    """The exchanges of a program, those with most bytes first.

    Args:
        mesh: sizes of the axes by name, outermost first, as the devices are numbered.
    """
    totals: dict[tuple[str, tuple[str, ...], int], list[Instruction]] = defaultdict(list)
    for each in program:
        if each.opcode not in _SENT:
            continue
        members = _group(each.line, math.prod(mesh.values()))
        places = np.unravel_index(members, tuple(mesh.values()))
        axes = tuple(n for n, p in zip(mesh, places, strict=True) if len(np.unique(p)) > 1)
        if axes:
            totals[each.opcode, axes, len(members)].append(each)
    found = [
        Collective(
            kind,
            axes,
            devices,
            count=sum(each.runs for each in members),
            sent_bytes=round(
                _SENT[kind](devices)
                * sum(each.runs * sum(s.nbytes for s in shapes(each.type)) for each in members)
            ),
            exact=all(each.exact for each in members),
        )
        for (kind, axes, devices), members in totals.items()
    ]
    return sorted(found, key=lambda c: -c.sent_bytes)


def _group(line: str, devices: int) -> np.ndarray:
    """Numbers of devices that exchange with each other: one of the groups, all being alike."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", line):
        moves = (integers(pair) for pair in re.findall(r"\{([\d,]+)", pairs[1] + "}"))
        return np.array(next((move for move in moves if move[0] != move[1]), (0,)))
    if grouped := _MESH_GROUPS.search(line):
        return _along_axes(*grouped.groups())
    if iota := re.search(r"replica_groups=" + _IOTA.pattern, line):
        return _numbered(*iota.groups()[1:]).reshape(integers(iota[1]))[0]
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return np.array(integers(listed[1]))
    return np.arange(devices)


def _numbered(dims: str, order: str | None) -> np.ndarray:
    """`[2,4]T(1,0)`: counted in this shape, its axes then reordered."""
    numbers = np.arange(math.prod(integers(dims))).reshape(integers(dims))
    return numbers.transpose(integers(order)) if order else numbers


def _along_axes(axes: str, ids: str | None, along: str | None) -> np.ndarray:
    """`mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`; `'b':(2)2` is a part of an axis."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    numbers = np.arange(math.prod(sizes.values()))
    if ids and (order := re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", ids)):
        numbers = _numbered(order[1], order[2])
    numbers = numbers.reshape(tuple(sizes.values()))
    chosen = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", along or "") or [(n, "", "") for n in sizes]
    parts = {name: (int(before), int(size)) for name, before, size in chosen if size}
    index: list[slice | int] = []
    split: list[int] = []
    whole = {name for name, _, size in chosen if not size}
    for name, length in sizes.items():
        before, size = parts.get(name, (1, length if name in whole else 1))
        split += [before, size, length // before // size]
        index += [0, slice(None), 0]
    return numbers.reshape(split)[tuple(index)].reshape(-1)
