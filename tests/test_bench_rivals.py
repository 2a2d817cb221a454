"""The bench's other sides: that they do what they are said to do. No timings."""

from __future__ import annotations

import builtins
import shutil
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from rtsam_jax.benchmark import augmentation, cases, packed, recipe
from rtsam_jax.benchmark.cases import Rivals, bench_config, model_sides, run_augmentation, run_case
from rtsam_jax.benchmark.ours import synthetic_batch
from rtsam_jax.benchmark.record import Record, text
from rtsam_jax.benchmark.rival import RivalSide, TorchModel
from rtsam_jax.config import ExperimentConfig, LossConfig
from rtsam_jax.errors import ConfigError, ExtraMissing
from rtsam_jax.losses import make_target, segmentation_loss
from rtsam_jax.models import presets
from rtsam_jax.models.presets import ModelSpec

AUTO = Rivals.asked(["auto"])


@pytest.fixture(autouse=True)
def small_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """`small`: the published design with fewer tokens, a padded window and a global block."""
    small = ModelSpec(
        image_size=32, patch_size=8, width=48, depth=2, heads=3, global_blocks=(1,), prompt_width=48
    )
    monkeypatch.setitem(presets.PRESETS, "small", small)


def side(name: str) -> RivalSide:
    pytest.importorskip("torch")
    pytest.importorskip("medim")
    return RivalSide(TorchModel(bench_config("small", 2)), name)


def test_packed_attention_equals_the_originals() -> None:
    torch = pytest.importorskip("torch")
    encoder = side("medim").model.image_encoder
    generator = torch.Generator().manual_seed(0)
    for parameter in encoder.parameters():  # every one, or a zero would hide a mistake
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    image = torch.randn((2, 1, 32, 32, 32), generator=generator, requires_grad=True)

    def value_and_gradient(encode: Any) -> list[Any]:
        encoder.zero_grad()
        value = encode(image)
        value.square().sum().backward()
        blocks = [p.grad.clone() for p in encoder.blocks.parameters()]
        return [value.detach(), torch.cat([g.ravel() for g in blocks])]

    ours = value_and_gradient(lambda x: packed.encode(torch, encoder, x))
    for a, b in zip(ours, value_and_gradient(encoder), strict=True):
        assert float((a - b).norm() / b.norm()) <= 1e-5


def test_packed_attention_wants_one_window() -> None:
    packed.require_one_window(ModelSpec(image_size=192))
    with pytest.raises(ConfigError, match="--rival medim"):
        packed.require_one_window(ModelSpec(image_size=256))


@pytest.mark.parametrize("name", ["medim", "medim-packed"])
def test_every_case_runs_on_a_rival(name: str) -> None:
    rival = side(name)
    before = [p.detach().clone() for p in rival.model.image_encoder.parameters()]
    for case in cases.MODEL_CASES:
        contender = getattr(rival, case)(synthetic_batch(32, 2))
        contender.run()
        assert contender.side == name and contender.hand_flop > 0 and contender.compile_s == 0
    after = rival.model.image_encoder.parameters()
    assert all((a == b).all() for a, b in zip(before, after, strict=True))  # frozen


def test_a_rivals_step_moves_its_decoder() -> None:
    torch = pytest.importorskip("torch")
    rival = side("medim")
    before = rival.model.mask_decoder.mask_tokens.weight.detach().clone()
    rival.step(synthetic_batch(32, 2)).run()
    assert not torch.equal(before, rival.model.mask_decoder.mask_tokens.weight)


@pytest.mark.slow
def test_compiling_changes_no_value() -> None:
    torch = pytest.importorskip("torch")
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs g++ on a CPU")
    eager = side("medim")
    compiled = RivalSide(TorchModel(eager.cfg), "medim-compile")
    compiled.model.load_state_dict(eager.model.state_dict())
    batch, values = synthetic_batch(32, 2), []
    for rival in (eager, compiled):
        label, roi = rival._masks(batch)
        with torch.no_grad():
            embedding = rival._encoder()(rival._image(batch))
        loss, *logits = rival._pass()(embedding, None, rival._no_mask(2), label, roi)
        loss.backward()
        parameters = rival.model.mask_decoder.parameters()
        # What takes no part has no gradient, or, compiled, one of zeros.
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        values.append([x.detach() for x in (embedding, loss, *logits, *gradients)])
    assert sum(bool(value.any()) for value in values[0]) > 30
    for a, b in zip(*values, strict=True):
        assert float((a - b).norm()) <= 1e-4 * float(a.norm()) + 1e-7
    assert compiled.step(batch).compile_s > 0


def test_autocast_computes_in_bfloat16() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("medim")
    model = TorchModel(bench_config("small", 1, "bfloat16"))
    dtypes = []
    linear = model.module.image_encoder.blocks[0].mlp.lin1
    linear.register_forward_hook(lambda module, given, found: dtypes.append(str(found.dtype)))
    RivalSide(model, "medim-packed").step(synthetic_batch(32, 1)).run()
    assert dtypes == ["torch.bfloat16"]


def test_sides_stand_in_order_with_a_ratio_each() -> None:
    pytest.importorskip("medim")
    rivals = Rivals.asked(["medim-packed", "medim"])
    sides = model_sides(bench_config("small", 1), rivals)
    result, _ = run_case("encoder", sides, 1, 2)
    assert [t.side for t in result.timings] == ["rtsam_jax", "medim", "medim-packed"]
    assert [r.side for r in result.ratios] == ["medim", "medim-packed"]
    ours, original, ours_in_torch = result.timings
    assert ours.hand_flop == ours_in_torch.hand_flop
    assert original.hand_flop and ours.hand_flop and original.hand_flop > 3 * ours.hand_flop


def test_a_rival_has_the_published_design_only() -> None:
    pytest.importorskip("medim")
    with pytest.raises(ConfigError, match="--preset vit_b_ori"):
        model_sides(bench_config("test", 1), Rivals.asked(["medim"]))


def test_compiling_on_a_cpu_wants_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("medim")
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ExtraMissing, match=r"g\+\+"):
        model_sides(bench_config("small", 1), Rivals.asked(["medim-compile"]))


def test_without_torch_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name in ("torch", "medim"):
            raise ImportError(f"No module named {name!r}")
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ExtraMissing, match=r"pip install -e '\.\[test\]'.*--rival none"):
        TorchModel(ExperimentConfig())
    with pytest.raises(ExtraMissing):
        model_sides(bench_config("small", 1), Rivals.asked(["medim"]))
    assert len(model_sides(bench_config("small", 1), AUTO)) == 1


def test_by_default_a_missing_rival_is_left_out_and_said() -> None:
    def missing() -> None:
        raise ExtraMissing("no module named medim; install it.")

    said = ["Left out: no module named medim; install it."]
    for names, expected in ((["auto"], said), (["none"], []), (["monai"], [])):
        rivals = Rivals.asked(names)
        assert cases.optional("medim", rivals, missing) == []
        assert rivals.left_out == expected
        record = Record("command", "small", "float32", left_out=rivals.left_out)
        assert ("Left out" in text(record)) == bool(expected)
    with pytest.raises(ExtraMissing):
        cases.optional("medim", Rivals.asked(["auto", "medim"]), missing)


def test_augmentation_is_timed_beside_monai() -> None:
    pytest.importorskip("monai")
    result, _ = run_augmentation("test", 2, AUTO)
    assert result.case == "augment" and result.batch == 1
    assert [timing.side for timing in result.timings] == ["rtsam_jax", "monai"]
    assert len(result.ratios) == 1 and result.timings[0].compile_s


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
        run_augmentation("test", 1, Rivals.asked(["monai"]))


def test_the_rival_minimises_the_same_loss() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 6, 6, 6), dtype=np.float32)
    label, roi = rng.random((2, 6, 6, 6)) < 0.3, rng.random((2, 6, 6, 6)) < 0.6
    cfg = LossConfig(alpha=0.3, beta=0.7)
    target = make_target(jnp.asarray(label), jnp.asarray(roi))
    ours, _ = segmentation_loss(jnp.asarray(logits), target, None, cfg)
    theirs = recipe.loss(torch, *map(torch.from_numpy, (logits, label, roi)), cfg)
    assert float(theirs) == pytest.approx(float(ours.mean()), rel=1e-5)


def test_the_rivals_clicks_lie_on_its_errors() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    predicted, label = (torch.from_numpy(rng.random((2, 5, 5, 5)) < 0.5) for _ in range(2))
    predicted[1] = label[1]  # nothing to correct in the second case
    points, signs = recipe.draw_clicks(torch, predicted, label, 40)
    for (i, j, k), sign in zip(points[0].long().tolist(), signs[0].tolist(), strict=True):
        assert predicted[0, i, j, k] != label[0, i, j, k]
        assert sign == int(label[0, i, j, k])
    assert set(signs[0].tolist()) == {0, 1} and set(signs[1].tolist()) == {-1}
