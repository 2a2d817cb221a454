"""The bench's content, on a tiny preset: what it counts, compares and writes. No timings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from rtsam_jax import bench
from rtsam_jax.benchmark import devices, measures, sweeps
from rtsam_jax.benchmark.cases import Result, Rivals, bench_config, run_case
from rtsam_jax.benchmark.flops import (
    decoder_flop,
    encoder_flop,
    encoder_grad_flop,
    refine_flop,
    upsample_flop,
)
from rtsam_jax.benchmark.ours import OurSide
from rtsam_jax.benchmark.record import Record, text
from rtsam_jax.benchmark.tables import describe_rate
from rtsam_jax.benchmark.timing import Contender, Timing, ratio, time_in_turn
from rtsam_jax.models import presets
from rtsam_jax.models.presets import get_spec


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """A preset with one block of each kind, which compiles in half the time."""
    small = dataclasses.replace(get_spec("test"), depth=1, global_blocks=(), decoder_depth=1)
    monkeypatch.setitem(presets.PRESETS, "test", small)
    return "test"


def test_the_command_prints_tables_and_writes_every_number(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        f"--preset {tiny} --rival none --rounds 2 --batch 2 --case encoder refine augment input"
    )
    files = {name: tmp_path / f"bench.{name}" for name in ("json", "png", "md")}
    written = f"--json {files['json']} --png {files['png']} --markdown {files['md']}"
    bench.main([*options.split(), *written.split(), "--profile", str(tmp_path / "traces")])

    printed = capsys.readouterr().out
    batches = {"encoder": 1, "refine": 2, "augment": 1}
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in printed.splitlines()]
    for case, batch in batches.items():
        assert [row[2] for row in rows if row[:2] == [case, str(batch)]] == ["rtsam_jax"] * 2
    assert printed.strip() in files["md"].read_text()
    assert options in printed  # the very command
    assert files["png"].read_bytes().startswith(b"\x89PNG")

    found = json.loads(files["json"].read_text())
    assert found["matrix_flop_per_s"] > 0 and found["dtype"] == "float32"
    assert found["preset"] == tiny and found["machine"]["threads"] >= 1
    for case, measured in zip(batches, found["cases"], strict=True):
        assert measured["case"] == case and measured["ratios"] == []
        (ours,) = measured["timings"]
        assert len(ours["seconds"]) == 2 and min(ours["seconds"]) > 0
        assert ours["compile_s"] > 0 and ours["first_s"] > 0 and ours["temp_bytes"] > 0
        shares = found["profiles"][case]
        assert sum(share["share"] for share in shares) == pytest.approx(1)
        assert list((tmp_path / "traces" / case).rglob("*.trace.json.gz"))
    assert any(s["source"].startswith("models/") for s in found["profiles"]["refine"])
    fed = found["input"]
    assert fed["batch"] == 2 and 0 <= fed["waited"] < 1
    assert min(fed["record_mb"], fed["read_ms"], fed["step_ms"], fed["loop_ms"]) > 0


@pytest.mark.slow  # processes that start cold
def test_segmenter_sets_encoding_against_clicks_and_cold_starts_against_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = "--json", str(tmp_path / "bench.json")
    bench.main(["--preset", "test", "--case", "segmenter", "--rounds", "1", *files])
    printed = " ".join(capsys.readouterr().out.split())
    assert "| Encode (ms) | Warm click (ms) | Encode / click | Cold start (s) |" in printed
    found = json.loads((tmp_path / "bench.json").read_text())["segmenter"]
    for name in ("encode", "click"):
        assert len(found[name]["seconds"]) == 1 and found[name]["seconds"][0] > 0
    encode, click = found["encode"]["seconds"], found["click"]["seconds"]
    assert found["times"]["of_medians"] == pytest.approx(encode[0] / click[0])
    assert len(found["cold_s"]) == len(found["kept_s"]) == 1
    assert min(found["cold_s"] + found["kept_s"]) > 0


@pytest.mark.filterwarnings("ignore:monai:FutureWarning")  # of its own calls
def test_measures_scores_simulated_cases_of_every_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "SIDE", 24)
    monkeypatch.setattr(measures, "CASES", 3)
    monkeypatch.setattr(measures, "KINDS", {"small": (2.0, 4.0, 3), "large": (8.0, 10.0, 1)})
    bench.main(["--case", "measures", "--rounds", "2", "--json", str(tmp_path / "bench.json")])
    assert "| Truth |" in " ".join(capsys.readouterr().out.split())
    kinds = json.loads((tmp_path / "bench.json").read_text())["measures"]["kinds"]
    assert [kind["kind"] for kind in kinds] == ["small", "large"]
    for kind in kinds:
        assert len(kind["cpu_seconds"]) == 3 and min(kind["cpu_seconds"]) >= 0
        assert len(kind["monai_cpu_seconds"]) in (0, 2)  # none without MONAI


def test_scale_measures_a_fresh_process_on_a_simulated_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "VOLUMES", 70)
    monkeypatch.setattr(bench, "MASKS", 300)
    bench.main(["--case", "scale", "--json", str(tmp_path / "bench.json")])
    assert "| Volumes | Masks |" in capsys.readouterr().out
    found = json.loads((tmp_path / "bench.json").read_text())["scale"]
    assert (found["volumes"], found["masks"]) == (70, 300)
    assert 0.1 < found["nominal_gb"] < 1
    assert 0 < found["imported_mb"] < found["indexed_mb"] <= found["peak_mb"]
    # Of 70 records of 1.8 MB, those that are read ahead.
    assert found["peak_mb"] - found["imported_mb"] < 0.8 * 1e3 * found["nominal_gb"]


def test_xla_counts_about_what_the_hand_counts(tiny: str) -> None:
    """Only matrix products by hand, so XLA's own count is a little larger, but for its loops.

    It counts a loop's body once, and the neck's convolution is a loop over three planes.
    """
    side, spec = OurSide(bench_config(tiny, 1)), get_spec(tiny)
    convolution = 2 * spec.grid**3 * 27 * spec.prompt_width**2
    looped = {"encoder": 2 / 3 * convolution, "encoder_grad": 2 * convolution, "click": 0}
    for case, uncounted in looped.items():
        (ours,) = run_case(case, [side], 1, 1)[0].timings
        assert ours.hand_flop is not None and ours.xla_flop is not None
        once = ours.hand_flop - uncounted
        assert once < ours.xla_flop < 2 * once, case


def test_a_prediction_compiles_in_its_first_run_and_counts_both_halves(tiny: str) -> None:
    (ours,) = run_case("predict", [OurSide(bench_config(tiny, 1))], 1, 1)[0].timings
    spec = get_spec(tiny)
    assert ours.compile_s is None and ours.cold_s == ours.first_s > min(ours.seconds)
    decoded = decoder_flop(spec, 7) + upsample_flop(spec)
    assert ours.hand_flop == encoder_flop(spec) + decoded


class Broken:
    """A rival whose compiler gives up."""

    side = "broken"

    def encoder(self, batch: object) -> Contender:
        raise RuntimeError("no kernel\nfor this")


def test_a_rival_that_fails_is_named_and_the_others_go_on(tiny: str) -> None:
    ours = OurSide(bench_config(tiny, 1))
    result, _ = run_case("encoder", [ours, Broken(), ours], 1, 1)
    assert [timing.side for timing in result.timings] == ["rtsam_jax"] * 2
    assert len(result.ratios) == 1
    assert result.failed == ["broken failed in encoder: RuntimeError: no kernel"]
    record = Record("bench", tiny, "float32", results=[result])
    assert "broken failed in encoder" in text(record)


def test_flop_of_the_published_encoder() -> None:
    """The reference's description: about 104 GFLOP, and 3.5 times that with the padding."""
    spec = get_spec("vit_b_ori")
    assert encoder_flop(spec) == pytest.approx(104e9, rel=0.01)
    assert encoder_flop(spec, padded=True) / encoder_flop(spec) == pytest.approx(3.5, rel=0.1)
    assert encoder_grad_flop(spec) == pytest.approx(3 * encoder_flop(spec), rel=0.02)


def test_flop_of_a_refinement_grow_with_clicks_and_masks() -> None:
    spec = get_spec("vit_b_ori")
    assert refine_flop(spec, 12) > refine_flop(spec, 4)
    assert decoder_flop(spec, 4, masks=4) > decoder_flop(spec, 4)
    assert refine_flop(spec, 4) == 3 * (decoder_flop(spec, 4) + upsample_flop(spec))


def test_the_encoder_is_set_against_the_rate_of_a_plain_product() -> None:
    timing = Timing("ours", 0, 0, hand_flop=50e9, seconds=[0.5, 0.5, 0.9], cpu_seconds=[1.0] * 3)
    text = describe_rate([Result("encoder", 1, [timing], [])], 200e9, "float32")
    assert "runs at 200 GFLOP/s" in text and "ours reaches 50% of that" in text
    assert describe_rate([], 200e9, "float32").endswith("200 GFLOP/s here.")


def test_sides_take_turns_and_the_warm_up_is_apart() -> None:
    calls: list[str] = []
    sides = [
        Contender(name, lambda name=name: calls.append(name), device_peak=lambda: len(calls))
        for name in "ABC"
    ]
    timings = time_in_turn(sides, 3)
    assert "".join(calls) == "ABC" + "ABCABCABC"
    assert [len(timing.seconds) for timing in timings] == [3, 3, 3]
    assert [timing.peak_device for timing in timings] == [10, 11, 12]  # the largest


def test_ratio_is_of_medians_and_its_spread_of_pairs() -> None:
    ours = Timing("ours", 0, 0, seconds=[1.0, 2.0, 4.0], cpu_seconds=[2.0, 2.0, 2.0])
    other = Timing("other", 0, 0, seconds=[10.0, 10.0, 60.0], cpu_seconds=[6.0, 6.0, 9.0])
    found = ratio(ours, other)
    assert dataclasses.astuple(found) == ("other", 5.0, 5.0, 15.0, 3.0)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What sweeps ask for; nothing is compiled, each answer is a made-up time."""
    asked: list[tuple[Any, ...]] = []

    def run(case: str, sides: list[OurSide], batch: int, rounds: int) -> tuple[Result, list[Any]]:
        (ours,) = sides
        click = ours.cfg.click
        asked.append((case, ours.spec.image_size, batch, click.iterations, click.per_iteration))
        timing = Timing("rtsam_jax", 1.0, 1.0, seconds=[float(len(asked))], cpu_seconds=[1.0])
        return Result(case, batch, [timing], []), []

    monkeypatch.setattr(sweeps, "run_case", run)
    return asked


def test_a_sweep_changes_one_quantity_for_each_case(
    tiny: str, measured: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "SIDES", (16, 32))
    monkeypatch.setattr(sweeps, "BATCHES", (1, 8))
    monkeypatch.setattr(sweeps, "CLICKS", ((1, 2), (5, 6)))
    known, cfg = set(presets.PRESETS), bench_config(tiny, 2)
    for of, expected in {
        "side": [("encoder", 16, 1), ("step", 16, 2), ("encoder", 32, 1), ("step", 32, 2)],
        "batch": [("encoder", 32, 1), ("step", 32, 1), ("encoder", 32, 8), ("step", 32, 8)],
        "clicks": [("step", 32, 2, 1, 2), ("step", 32, 2, 5, 6)],
    }.items():
        measured.clear()
        sweeps.run_sweep(of, cfg, 1, Rivals())
        assert [found[: len(e)] for found, e in zip(measured, expected, strict=True)] == expected
    assert set(presets.PRESETS) == known
    assert cfg == bench_config(tiny, 2)


def test_a_swept_batch_is_large_enough_for_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def on_devices(cfg: Any, batch: int, rounds: int, count: int) -> Timing:
        counts.append(count)
        return Timing("rtsam_jax", 1.0, 1.0)

    monkeypatch.setattr(sweeps, "time_on_devices", on_devices)
    points = sweeps.run_sweep("devices", bench_config("test", 3), 1, Rivals()).points
    assert [(at, result.batch) for at, (result,) in points] == [(str(n), 8) for n in (1, 2, 4, 8)]
    assert counts == [1, 2, 4, 8]


def test_sweeps_are_tabled_drawn_and_kept(
    tiny: str,
    measured: list[tuple[Any, ...]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = "--json", str(tmp_path / "bench.json"), "--png", str(tmp_path / "bench.png")
    bench.main(["--preset", tiny, "--rival", "none", "--sweep", "batch", "clicks", *files])
    lines = capsys.readouterr().out.splitlines()
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert ["8", "encoder", "8", "7000.0", "-"] in rows
    assert ["3 x 4", "step", "1", "11000.0", "-"] in rows
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["cases"] == [] and [sweep["of"] for sweep in found["sweeps"]] == [
        "batch",
        "clicks",
    ]
    assert found["sweeps"][0]["points"][3]["cases"][1]["timings"][0]["seconds"] == [8.0]
    assert (tmp_path / "bench.png").stat().st_size > 1000


@pytest.mark.slow
def test_devices_are_timed_in_a_process_of_their_own() -> None:
    timing = devices.time_on_devices(bench_config("test", 2), 2, 1, 2)
    assert timing.side == "rtsam_jax" and len(timing.seconds) == 1
