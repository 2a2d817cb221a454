"""The bench's content, on the test preset: what it counts, compares and writes. No timings."""

from __future__ import annotations

import builtins
import dataclasses
import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rtsam_jax import bench
from rtsam_jax.benchmark import augmentation, rival
from rtsam_jax.benchmark.flops import encoder_flop
from rtsam_jax.benchmark.timing import Contender, Timing, ratio, time_in_turn
from rtsam_jax.config import ExperimentConfig, LossConfig
from rtsam_jax.errors import ConfigError, ExtraMissing
from rtsam_jax.losses import segmentation_loss
from rtsam_jax.models import presets
from rtsam_jax.models.presets import get_spec


def test_the_command_prints_a_table_and_writes_every_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One block of each kind compiles in half the time.
    small = dataclasses.replace(get_spec("test"), depth=1, global_blocks=(), decoder_depth=1)
    monkeypatch.setitem(presets.PRESETS, "test", small)
    path = tmp_path / "bench.json"
    options = "--preset test --rival none --rounds 2 --batch 2 --json"
    bench.main([*options.split(), str(path)])

    rows = [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines() if "|" in line]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[0] == ["Case", "Batch", "Side"]
    batches = {"encoder": 1, "step": 2, "augment": 1}
    timed = [[case, str(n), "rtsam_jax"] for case, n in batches.items()]
    assert cells[2:5] == timed
    assert cells[5] == ["Batch", "Threads", "Record (MB)"] and cells[7][:2] == ["2", "2"]

    written = json.loads(path.read_text())
    assert written["matrix_flop_per_s"] > 0
    assert written["preset"] == "test" and written["machine"]["threads"] >= 1
    for case, measured in zip(batches, written["cases"], strict=True):
        assert measured["case"] == case and measured["ratio"] is None
        (ours,) = measured["timings"]
        assert len(ours["seconds"]) == 2 and min(ours["seconds"]) > 0
        assert ours["compile_s"] > 0 and ours["first_s"] > 0
    assert written["cases"][0]["timings"][0]["hand_flop"] == encoder_flop(get_spec("test"))
    fed = written["input"]
    assert fed["batch"] == 2 and 0 <= fed["waited"] < 1
    assert min(fed["record_mb"], fed["read_ms"], fed["step_ms"], fed["loop_ms"]) > 0


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


def test_xla_counts_about_what_the_hand_counts() -> None:
    """Only matrix products by hand, so XLA's own count is a little larger, but for its loops.

    It counts a loop's body once, and the neck's convolution is a loop over three planes.
    """
    (result,) = bench.run_bench(["encoder"], "test", 1, 1, "none")
    (ours,) = result.timings
    assert ours.hand_flop is not None and ours.xla_flop is not None
    spec = get_spec("test")
    convolution = 2 * spec.grid**3 * 27 * spec.prompt_width**2
    once = ours.hand_flop - 2 / 3 * convolution
    assert once < ours.xla_flop < 1.3 * once


def test_the_encoder_is_set_against_the_rate_of_a_plain_product() -> None:
    timing = Timing("ours", 0, 0, 50e9, None, [0.5, 0.5, 0.9], [1.0, 1.0, 1.0])
    encoder = bench.Result("encoder", 1, [timing], None)
    text = bench.describe_rate([encoder], 200e9)
    assert "runs at 200 GFLOP/s" in text and "ours reaches 50% of that" in text
    assert bench.describe_rate([], 200e9).endswith("200 GFLOP/s here.")


def test_flop_of_the_published_encoder() -> None:
    """The reference's description: about 104 GFLOP, and 3.5 times that with the padding."""
    spec = get_spec("vit_b_ori")
    assert encoder_flop(spec) == pytest.approx(104e9, rel=0.01)
    assert encoder_flop(spec, padded=True) / encoder_flop(spec) == pytest.approx(3.5, rel=0.1)


def test_sides_take_turns_and_the_warm_up_is_apart() -> None:
    calls: list[str] = []
    sides = [Contender(name, lambda name=name: calls.append(name)) for name in "AB"]
    timings = time_in_turn(sides, 3)
    assert "".join(calls) == "AB" + "ABABAB"
    assert [len(timing.seconds) for timing in timings] == [3, 3]


def test_ratio_is_of_medians_and_its_spread_of_pairs() -> None:
    ours = Timing("ours", 0, 0, None, None, [1.0, 2.0, 4.0], [2.0, 2.0, 2.0])
    other = Timing("other", 0, 0, None, None, [10.0, 10.0, 60.0], [6.0, 6.0, 9.0])
    assert ratio(ours, other).of_medians == 5.0
    assert (ratio(ours, other).low, ratio(ours, other).high) == (5.0, 15.0)
    assert ratio(ours, other).of_cpu_medians == 3.0


def test_the_rival_only_has_the_published_preset() -> None:
    with pytest.raises(ConfigError, match="--preset vit_b_ori"):
        bench.run_bench(["encoder"], "test", 1, 1, "medim")


def test_without_torch_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name in ("torch", "medim"):
            raise ImportError(f"No module named {name!r}")
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ExtraMissing, match=r"pip install -e '\.\[test\]'.*--rival none"):
        rival.RivalSide(ExperimentConfig())
    with pytest.raises(ExtraMissing):
        bench.run_bench(["encoder"], "vit_b_ori", 1, 1, "medim")


def test_by_default_a_missing_rival_is_left_out_and_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def missing() -> None:
        raise ExtraMissing("no module named medim; install it.")

    assert bench._rival("medim", "auto", missing) == []
    assert "Timing this project alone: no module named medim" in capsys.readouterr().out
    assert bench._rival("medim", "none", missing) == bench._rival("medim", "monai", missing) == []
    assert capsys.readouterr().out == ""
    with pytest.raises(ExtraMissing):
        bench._rival("medim", "medim", missing)


def test_augmentation_is_timed_beside_monai_without_a_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("monai")
    monkeypatch.setattr(bench, "OurSide", None)  # nor is one made
    (result,) = bench.run_bench(["augment"], "test", 3, 2, "auto")
    assert result.case == "augment" and result.batch == 1
    assert [timing.side for timing in result.timings] == ["rtsam_jax", "monai"]
    assert result.ratio is not None and result.timings[0].compile_s > 0


def test_monai_makes_of_the_same_volume_a_crop_of_the_same_size() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("monai")
    source = augmentation.source_volume(16)
    image = torch.from_numpy(source.image[0, ..., 0])[None]
    masks = torch.from_numpy(np.stack([source.label[0], source.roi[0]]))
    crop = augmentation.monai_transforms(16)({"image": image, "masks": masks})
    assert crop["image"].shape == (1, 16, 16, 16) and crop["masks"].shape == (2, 16, 16, 16)
    label, roi = np.asarray(crop["masks"])
    assert set(np.unique(roi)) == {0, 1} and 0 < label.sum() < roi.sum()


def test_without_monai_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(ExtraMissing, match=r"pip install -e '\.\[test\]'.*--rival none"):
        bench.run_bench(["augment"], "test", 1, 1, "monai")


def test_the_rival_minimises_the_same_loss() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 6, 6, 6), dtype=np.float32)
    label, roi = rng.random((2, 6, 6, 6)) < 0.3, rng.random((2, 6, 6, 6)) < 0.6
    cfg = LossConfig(alpha=0.3, beta=0.7)
    ours, _ = segmentation_loss(*map(jnp.asarray, (logits, label, roi)), None, cfg)
    theirs = rival._loss(torch, *map(torch.from_numpy, (logits, label, roi)), cfg)
    assert float(theirs) == pytest.approx(float(ours.mean()), rel=1e-5)


def test_the_rivals_clicks_lie_on_its_errors() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    predicted, label = (torch.from_numpy(rng.random((2, 5, 5, 5)) < 0.5) for _ in range(2))
    predicted[1] = label[1]  # nothing to correct in the second case
    points, signs = rival._clicks(torch, predicted, label, 40)
    for (i, j, k), sign in zip(points[0].long().tolist(), signs[0].tolist(), strict=True):
        assert predicted[0, i, j, k] != label[0, i, j, k]
        assert sign == int(label[0, i, j, k])
    assert set(signs[0].tolist()) == {0, 1} and set(signs[1].tolist()) == {-1}
