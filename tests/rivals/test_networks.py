"""MONAI's networks as rivals: shapes, padding, channels, and the sizes that the document names."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.errors import ConfigError, ExtraMissing
from rtsam_jax.rivals.networks import ARCHITECTURES, Rival, rebuild_vnet, require_torch
from tests.rivals import needs
from tests.tiny import REPOSITORY

torch = needs.torch()

SMALL = 0.01  # of the published width: the narrowest there is
# What an edge must be a multiple of: as often as the network halves it.
HALVED = {"vnet": 16, "segresnet": 8, "dynunet": 4, "unetr": 16, "swinunetr": 32}


def crops(size: int, rows: int = 2, seed: int = 0) -> tuple[object, object, object]:
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(rng.normal(size=(rows, size, size, size)).astype(np.float32))
    roi = torch.from_numpy((rng.random((rows, size, size, size)) < 0.3).astype(np.uint8))
    return image, roi, torch.arange(rows) % 3


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_network_answers_every_crop_and_all_of_it_is_trained(name: str) -> None:
    rival = Rival(name, size=24, tasks=3, width=SMALL)
    image, roi, task = crops(24)
    logits = rival.logits(image, roi, task)
    assert logits.shape == (2, 24, 24, 24) and logits.isfinite().all()
    logits.square().mean().backward()
    for parameter, values in rival.module.named_parameters():
        if "norm_cross_attn" in parameter:  # MONAI's ViT holds them and does not use them
            assert name == "unetr" and values.grad is None
        else:
            assert values.grad.isfinite().all() and values.grad.any(), parameter


@pytest.mark.parametrize(("edge", "kind"), [(32, "GroupNorm"), (64, "InstanceNorm3d")])
def test_swinunetr_normalises_by_instance_where_there_is_more_than_a_voxel(
    edge: int, kind: str
) -> None:
    module = ARCHITECTURES["swinunetr"].build(12, edge, 1, 3)
    kinds = {type(part).__name__ for part in module.modules()}
    assert kinds & {"GroupNorm", "InstanceNorm3d"} == {kind}


@pytest.mark.parametrize("name", ARCHITECTURES)
@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 160))
def test_an_edge_is_the_least_that_can_be_halved(name: str, size: int) -> None:
    edge = ARCHITECTURES[name].edge(size)
    assert edge >= size and edge % HALVED[name] == 0
    least = {"swinunetr": 32, "vnet": 32, "unetr": 32}.get(name, 16)
    if name == "dynunet":  # halves larger crops more often
        assert edge < 2 * max(size, least)
    else:
        assert edge == max(least, -(-size // HALVED[name]) * HALVED[name])


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(["segresnet", "dynunet"]),
    size=st.integers(5, 41),
    seed=st.integers(0, 99),
)
def test_padding_is_cut_back_and_each_row_gets_its_tasks_channel(
    name: str, size: int, seed: int
) -> None:
    rival = Rival(name, size=size, tasks=3, width=SMALL)
    seen = []

    def thrice(x: object) -> object:
        seen.append(x.shape)
        return torch.cat([x, 2 * x, 3 * x], 1)

    rival.module = thrice
    image, roi, _ = crops(size, rows=4, seed=seed)
    task = torch.tensor([2, 0, 1, 2])
    found = rival.logits(image, roi, task)
    assert torch.equal(found, image * (task + 1)[:, None, None, None])
    assert seen == [(4, 1, rival.edge, rival.edge, rival.edge)]


def test_a_case_trains_its_own_tasks_channel_alone() -> None:
    rival = Rival("dynunet", size=16, tasks=3, width=SMALL)
    image, roi, _ = crops(16)
    rival.logits(image, roi, torch.tensor([1, 1])).sum().backward()
    last = rival.module.output_block.conv.conv.bias.grad
    assert last.tolist() == [0.0, 2 * 16**3, 0.0]


def test_the_roi_is_seen_only_as_a_channel() -> None:
    image, roi, task = crops(16)
    for asked in (False, True):
        rival = Rival("segresnet", size=16, tasks=3, width=SMALL, roi_channel=asked)
        rival.module.eval()
        same = torch.equal(rival.logits(image, roi, task), rival.logits(image, 1 - roi, task))
        assert same is not asked
        whole = rival.logits(image, 255 * roi, task)  # inside is inside
        assert torch.equal(whole, rival.logits(image, roi, task))


def test_a_seed_gives_the_same_network_and_another_seed_another() -> None:
    states = [
        Rival("segresnet", size=16, tasks=2, width=SMALL, seed=seed).module.state_dict()
        for seed in (3, 3, 4)
    ]
    first, again, other = (torch.cat([x.flatten() for x in s.values()]) for s in states)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_bfloat16_computes_near_float32_on_float32_parameters() -> None:
    image, roi, task = crops(16)
    full, half = (
        Rival("segresnet", size=16, tasks=3, width=SMALL, bfloat16=asked) for asked in (False, True)
    )
    assert all(p.dtype == torch.float32 for p in half.module.parameters())
    full.module.eval()
    half.module.eval()
    a, b = (rival.logits(image, roi, task).float() for rival in (full, half))
    assert not torch.equal(a, b)
    assert torch.allclose(a, b, atol=0.05 * float(a.detach().abs().max()))


def shapes(module: object) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in module.state_dict().items()}


def test_a_rebuilt_vnet_of_the_published_width_is_monais() -> None:
    from monai.networks.nets.vnet import VNet

    with torch.device("meta"):
        own, rebuilt = (VNet(3, 2, 3) for _ in range(2))
        rebuild_vnet(rebuilt, ARCHITECTURES["vnet"].published, 2, 3)
    assert shapes(rebuilt) == shapes(own)
    assert str(rebuilt) == str(own)  # dropout and activations too


def counted(name: str, share: float) -> int:
    architecture = ARCHITECTURES[name]
    with torch.device("cpu" if name == "swinunetr" else "meta"):  # whose constructor needs values
        edge = architecture.edge(128)
        module = architecture.build(architecture.width(share), edge, 1, 3)
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_document_says_how_many_parameters_there_are(name: str) -> None:
    text = (REPOSITORY / "docs" / "baselines.md").read_text()
    title = ARCHITECTURES[name].title
    (row,) = re.findall(rf"^\| {title} \|.*$", text, re.MULTILINE)
    for share in (0.25,) if name == "swinunetr" else (1.0, 0.25):
        assert f" {counted(name, share):,} |" in row


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(list(ARCHITECTURES)), share=st.floats(0.001, 1))
def test_a_width_is_a_multiple_of_its_unit_and_near_the_share(name: str, share: float) -> None:
    architecture = ARCHITECTURES[name]
    width = architecture.width(share)
    assert width % architecture.unit == 0 and 0 < width <= architecture.published
    wanted = max(architecture.published * share, architecture.unit)
    assert abs(width - wanted) <= architecture.unit / 2
    assert architecture.width(1) == architecture.published


@pytest.mark.parametrize("share", [0, -1, 1.01, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="--width"):
        ARCHITECTURES["vnet"].width(share)


@pytest.mark.parametrize("package", ["torch", "monai", "einops"])
def test_a_missing_package_is_named_with_the_way_to_install_it(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExtraMissing, match=rf"{package}.*pip install -e '\.\[baselines\]'"):
        require_torch()
