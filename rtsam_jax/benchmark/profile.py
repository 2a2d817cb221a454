"""Where our side's time goes: a `jax.profiler` trace, and its operations summed by kind."""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rtsam_jax.benchmark.timing import Contender

_RUNS = 3
_ROWS = 12  # of the table; the rest is one more
_CONTAINERS = ("while", "conditional", "call")  # whose time is that of what they run

# One HLO instruction: its name, its kind, and what it came from.
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*?[\])}] ([a-z-]+)\(")
_COMPUTATION = re.compile(r"^%?([\w.-]+) \(.*\{$")
_CALLS = re.compile(r"calls=%?([\w.-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_NAMES = re.compile(r'^(\d+) "(.*)"$')
_LOCATION = re.compile(r"^(\d+) \{file_name_id=(\d+) function_name_id=(\d+)")
_STACK = re.compile(r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?")


class Share(NamedTuple):
    """Operations of one kind that come from one place.

    Attributes:
        kind: the JAX primitive, or XLA's own name where none is known.
        source: file and function of the package; "" where it is not known.
        ms: per run, summed over the threads or streams that execute operations.
        share: of all operations.
    """

    kind: str
    source: str
    ms: float
    share: float


def profile(contender: Contender, folder: Path) -> list[Share]:
    """Traces a few runs into `folder`, for xprof or Perfetto, and sums them up, largest first."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # or Python's own calls fill the trace
    with jax.profiler.trace(str(folder), profiler_options=options):
        for _ in range(_RUNS):
            contender.run()
    trace = max(folder.rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    described = describe(contender.compiled.as_text()) if contender.compiled else {}
    return summarise(events, described, _RUNS)


def summarise(
    events: list[dict[str, Any]], described: dict[str, tuple[str, str]], runs: int
) -> list[Share]:
    """The largest kinds of operations, and one `Share` for all others.

    Args:
        events: of a Chrome trace.
        described: kind and source by name of the HLO instruction.
    """
    spent: dict[tuple[str, str], float] = defaultdict(float)
    for name, microseconds in _own_times(events):
        kind, source = described.get(name, (_unnumbered(name), ""))
        if kind not in _CONTAINERS:
            spent[kind, source] += microseconds / 1e3 / runs
    total = sum(spent.values())
    ranked = sorted(spent.items(), key=lambda item: -item[1])
    shares = [Share(*what, ms, ms / total) for what, ms in ranked[:_ROWS]]
    if rest := sum(ms for _, ms in ranked[_ROWS:]):
        shares.append(Share("all others", "", rest, rest / total))
    return shares


def _own_times(events: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """Each operation's time in microseconds, without that of operations inside it."""
    threads: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            threads[event["pid"], event["tid"]].append(event)
    for thread in threads.values():
        open_until: list[tuple[float, int]] = []  # ends, and places in `own`, of those around
        own: list[float] = []
        ordered = sorted(thread, key=lambda event: (event["ts"], -event["dur"]))
        for at, event in enumerate(ordered):
            while open_until and open_until[-1][0] <= event["ts"]:
                open_until.pop()
            if open_until:
                own[open_until[-1][1]] -= event["dur"]
            own.append(event["dur"])
            open_until.append((event["ts"] + event["dur"], at))
        yield from ((event["args"]["hlo_op"], t) for event, t in zip(ordered, own, strict=True))


def _unnumbered(name: str) -> str:
    return re.sub(r"[.\d]+$", "", name)


def describe(hlo: str) -> dict[str, tuple[str, str]]:
    """Kind and source of every instruction in the text of a compiled module.

    A fusion that says neither has those of the last operation in it that does.
    """
    frames = _frames(hlo)
    described: dict[str, tuple[str, str]] = {}
    fused: dict[str, tuple[str, str]] = {}  # by computation; callers follow in the text
    computation = ""
    for line in hlo.splitlines():
        if started := _COMPUTATION.match(line):
            computation = started.group(1)
        if not (found := _INSTRUCTION.match(line)):
            continue
        name, opcode = found.groups()
        op, frame, calls = (p.search(line) for p in (_OP_NAME, _FRAME, _CALLS))
        kind, source = opcode, frames.get(frame.group(1), "") if frame else ""
        if op and opcode not in _CONTAINERS:
            kind = op.group(1).partition(";")[0].rpartition("/")[2]
        if opcode == "fusion" and calls and not source:
            kind, source = fused.get(calls.group(1), (_unnumbered(name), source))
        described[name] = kind, source
        if source:
            fused[computation] = kind, source
    return described


def _frames(hlo: str) -> dict[str, str]:
    """The innermost place in the package, the bench apart, by number of a stack frame."""
    tables: dict[str, dict[str, tuple[str, ...]]] = {}
    patterns = {"FileNames": _NAMES, "FunctionNames": _NAMES, "FileLocations": _LOCATION}
    patterns["StackFrames"] = _STACK
    section = ""
    for line in hlo.splitlines():
        if line in patterns:
            section = line
            tables[section] = {}
        elif section and (found := patterns[section].match(line)):
            number, *rest = found.groups()
            tables[section][number] = tuple(rest)
    if not patterns.keys() <= tables.keys():
        return {}

    stack = tables["StackFrames"]
    # XLA prints a caller's number one too high, so that the outermost frames call themselves.
    shift = any(parent == number for number, (_, parent) in stack.items())

    def place(frame: str) -> str:
        while frame in stack:
            location, parent = stack[frame]
            file, function = tables["FileLocations"][location]
            (path,), (name,) = tables["FileNames"][file], tables["FunctionNames"][function]
            inside = path.rpartition("/rtsam_jax/")[2]
            if inside != path and not inside.startswith("benchmark/"):
                return f"{inside}: {name.partition('.<locals>')[0]}"
            frame = str(int(parent or 0) - shift)
        return ""

    return {frame: place(frame) for frame in stack}
