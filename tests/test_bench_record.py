"""What the bench keeps of a run: the summary of a trace, and tables in a document."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtsam_jax import bench
from rtsam_jax.benchmark.cases import Result
from rtsam_jax.benchmark.profile import describe, summarise
from rtsam_jax.benchmark.record import Record, text, write_markdown
from rtsam_jax.benchmark.sweeps import Sweep
from rtsam_jax.benchmark.timing import Timing
from rtsam_jax.errors import UnreadableFile

HLO = """HloModule jit_f

FileNames
1 "/somewhere/rtsam_jax/models/layers.py"
2 "/lib/flax/linear.py"
3 "/somewhere/rtsam_jax/benchmark/ours.py"

FunctionNames
1 "SameConv.__call__.<locals>.add"
2 "Linear.__call__"
3 "run"

FileLocations
1 {file_name_id=3 function_name_id=3 line=1 end_line=1 column=1 end_column=2}
2 {file_name_id=1 function_name_id=1 line=5 end_line=5 column=1 end_column=2}
3 {file_name_id=2 function_name_id=2 line=9 end_line=9 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}

%fused (p: f32[2]) -> f32[2] {
  ROOT %dot.1 = f32[2]{0} dot(%p), metadata={op_name="jit(f)/dot_general" stack_frame_id=3}
}

ENTRY %main (a: f32[2]) -> f32[2] {
  %ynn_fusion.7 = f32[2]{0} fusion(%a), kind=kCustom, calls=%fused
  %exp.2 = f32[2]{0} exponential(%a), metadata={op_name="jit(f)/exp" stack_frame_id=1}
  ROOT %while.3 = (s32[], f32[2]{0}) while(%t), metadata={op_name="jit(f)/while" stack_frame_id=2}
}
"""


def test_a_profile_counts_an_operation_without_what_runs_inside_it() -> None:
    described = describe(HLO)
    assert described["ynn_fusion.7"] == ("dot_general", "models/layers.py: SameConv.__call__")
    assert described["exp.2"] == ("exp", "")  # the bench's own

    def event(name: str, ts: float, dur: float, tid: int = 1) -> dict[str, object]:
        return {"ph": "X", "pid": 1, "tid": tid, "ts": ts, "dur": dur, "args": {"hlo_op": name}}

    events = [
        event("while.3", 0, 1000),
        event("ynn_fusion.7", 100, 600),
        event("exp.2", 200, 100),  # as if run inside the fusion
        event("ynn_fusion.7", 1500, 500, tid=2),
        {"ph": "X", "pid": 1, "tid": 1, "ts": 0, "dur": 9e9, "name": "python"},
    ]
    shares = summarise(events, described, runs=2)
    assert [(s.kind, s.ms) for s in shares] == [("dot_general", 0.5), ("exp", 0.05)]
    assert shares[0].share == pytest.approx(1 / 1.1)


def test_tables_replace_what_stands_between_the_marks_alone(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    marks = "<!-- bench cpu -->\n{}<!-- end of bench cpu -->\n\n<!-- bench gpu -->\nx\n"
    rest = "<!-- end of bench gpu -->\nend\n"
    document.write_text("# Title\n" + marks.format("old\n") + rest)
    write_markdown(Record("python -m rtsam_jax.bench", "test", "float32"), document, "cpu")
    text = document.read_text()
    assert text.startswith("# Title\n<!-- bench cpu -->\n\n```\npython -m rtsam_jax.bench\n```")
    assert "old" not in text and text.endswith("<!-- bench gpu -->\nx\n" + rest)
    with pytest.raises(UnreadableFile, match="<!-- bench tpu -->"):
        write_markdown(Record("", "test", "float32"), document, "tpu")
    assert document.read_text() == text


def test_a_document_that_is_missing_is_begun(tmp_path: Path) -> None:
    document = tmp_path / "new.md"
    for preset in ("first", "second"):
        figure = tmp_path / "images" / "bench.png"
        write_markdown(Record("", preset, "float32"), document, "cpu", figure)
    text = document.read_text()
    assert "](images/bench.png)" in text
    assert "second, float32" in text and "first" not in text
    assert text.count("<!-- bench cpu -->") == 1


def test_a_rival_that_fails_at_one_point_of_a_sweep_is_named() -> None:
    timing = Timing("rtsam_jax", 1.0, 1.0, seconds=[1.0], cpu_seconds=[1.0])
    lost = Result("step", 8, [timing], [], ["medim failed in step: MemoryError"])
    record = Record("command", "small", "float32")
    record.sweeps = [Sweep("batch", [("1", [Result("step", 1, [timing], [])]), ("8", [lost])])]
    assert [line for line in text(record).splitlines() if "failed" in line] == [
        "medim failed in step: MemoryError at 8"
    ]


def test_a_document_without_marks_is_told_before_anything_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "performance.md"
    document.write_text("No marks.\n")
    monkeypatch.setattr(bench, "run_bench", lambda *_: pytest.fail("timed"))
    with pytest.raises(UnreadableFile, match="add both"):
        bench.main(["--markdown", str(document)])
