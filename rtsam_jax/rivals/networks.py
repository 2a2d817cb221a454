"""The networks of Table 1, each MONAI's own class at its published size or a share of its width.

They take any crop: it is padded to an edge that the network can halve as often as it does, and the
output is cut back. They have one output channel per task, and a case is answered by its task's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rtsam_jax.errors import ConfigError, ExtraMissing

Build = Callable[[int, int, int, int], Any]  # (width, edge, input channels, output channels)


@dataclass(frozen=True)
class Architecture:
    """One of MONAI's networks.

    Attributes:
        title: as the tables call it.
        published: channels of its first level, as published.
        unit: what the channels must be a multiple of.
        edge: the edge it takes for a crop's edge, at least as long.
        build: the module.
    """

    title: str
    published: int
    unit: int
    edge: Callable[[int], int]
    build: Build

    def width(self, share: float) -> int:
        """Channels of the first level at a share of the published width.

        Raises:
            ConfigError: the share is not above 0 and at most 1.
        """
        if not 0 < share <= 1:
            raise ConfigError(
                f"--width is {share:g}, but it must be a share of the published width, above 0 and "
                "at most 1."
            )
        return max(1, round(self.published * share / self.unit)) * self.unit


def _vnet(width: int, edge: int, inputs: int, outputs: int) -> Any:
    """Milletari et al. 2016; 16 channels, dropout of 0.5."""
    from monai.networks.nets.vnet import VNet

    net = VNet(spatial_dims=3, in_channels=inputs, out_channels=outputs)
    if width != ARCHITECTURES["vnet"].published:
        rebuild_vnet(net, width, inputs, outputs)
    return net


def rebuild_vnet(net: Any, width: int, inputs: int, outputs: int) -> None:
    """Replaces the levels of MONAI's VNet, whose widths are no argument of it, by others.

    Args:
        net: a `monai.networks.nets.VNet`, in place.
        width: channels of its first level; even.
    """
    from monai.networks.nets import vnet

    act, dropout = ("elu", {"inplace": True}), 0.5
    net.in_tr = vnet.InputTransition(3, inputs, width, act)
    net.down_tr32 = vnet.DownTransition(3, width, 1, act)
    net.down_tr64 = vnet.DownTransition(3, 2 * width, 2, act)
    net.down_tr128 = vnet.DownTransition(3, 4 * width, 3, act, dropout_prob=dropout)
    net.down_tr256 = vnet.DownTransition(3, 8 * width, 2, act, dropout_prob=dropout)
    both = (dropout, dropout)
    net.up_tr256 = vnet.UpTransition(3, 16 * width, 16 * width, 2, act, dropout_prob=both)
    net.up_tr128 = vnet.UpTransition(3, 16 * width, 8 * width, 2, act, dropout_prob=both)
    net.up_tr64 = vnet.UpTransition(3, 8 * width, 4 * width, 1, act)
    net.up_tr32 = vnet.UpTransition(3, 4 * width, 2 * width, 1, act)
    net.out_tr = vnet.OutputTransition(3, 2 * width, outputs, act)


def _segresnet(width: int, edge: int, inputs: int, outputs: int) -> Any:
    """Myronenko 2018, without its autoencoder branch; 32 channels, dropout of 0.2."""
    from monai.networks.nets.segresnet import SegResNet

    return SegResNet(
        spatial_dims=3,
        init_filters=width,
        in_channels=inputs,
        out_channels=outputs,
        dropout_prob=0.2,
    )


def _halvings(size: int) -> int:
    """nnU-Net's rule: halve while four voxels remain, five times at most; DynUNet needs two."""
    return min(5, max(2, int(math.log2(max(size, 1) / 4))))


def _dynunet(width: int, edge: int, inputs: int, outputs: int) -> Any:
    """Isensee et al. 2021, the full-resolution 3-D U-Net for this crop, without deep supervision.

    32 channels, doubled at every level up to 320.
    """
    from monai.networks.nets.dynunet import DynUNet

    levels = 1 + _halvings(edge)
    return DynUNet(
        spatial_dims=3,
        in_channels=inputs,
        out_channels=outputs,
        kernel_size=[3] * levels,
        strides=[1] + [2] * (levels - 1),
        upsample_kernel_size=[2] * (levels - 1),
        filters=[min(2**level, 10) * width for level in range(levels)],
    )


def _unetr(width: int, edge: int, inputs: int, outputs: int) -> Any:
    """Hatamizadeh et al. 2022; ViT-B/16 of 768 channels beside 16 channels of convolutions."""
    from monai.networks.nets.unetr import UNETR

    return UNETR(
        in_channels=inputs,
        out_channels=outputs,
        img_size=edge,
        feature_size=width,
        hidden_size=48 * width,
        mlp_dim=192 * width,
        num_heads=12,
    )


def _swinunetr(width: int, edge: int, inputs: int, outputs: int) -> Any:
    """Hatamizadeh et al. 2022; 48 channels, windows of 7.

    Its deepest level has a voxel for every 32 of an axis; a single one has no instance to normalise
    over, so crops that small get group normalisation. Padding them further would cost 8 times.
    """
    from monai.networks.nets.swin_unetr import SwinUNETR

    norm = "instance" if edge > 32 else ("group", {"num_groups": 4})
    return SwinUNETR(in_channels=inputs, out_channels=outputs, feature_size=width, norm_name=norm)


def _multiple(of: int, least: int) -> Callable[[int], int]:
    """The next multiple; the least is where normalisations have more than one voxel."""
    return lambda size: max(least, math.ceil(size / of) * of)


ARCHITECTURES = {
    "vnet": Architecture("VNet", 16, 2, _multiple(16, 32), _vnet),
    "segresnet": Architecture("SegResNet", 32, 8, _multiple(8, 16), _segresnet),
    "dynunet": Architecture(
        "DynUNet", 32, 1, lambda size: _multiple(2 ** _halvings(size), 16)(size), _dynunet
    ),
    "unetr": Architecture("UNETR", 16, 1, _multiple(16, 32), _unetr),
    "swinunetr": Architecture("SwinUNETR", 48, 12, _multiple(32, 32), _swinunetr),
}


def require_torch() -> Any:
    """The module `torch`, with MONAI there too.

    Raises:
        ExtraMissing: one of them is not installed.
    """
    try:
        import einops  # noqa: F401  # MONAI's transformers need it and do not declare it
        import monai  # noqa: F401
        import torch
    except ImportError as cause:
        raise ExtraMissing(
            f"the rival networks cannot be loaded ({cause}); install them with "
            f"pip install -e '.[baselines]'."
        ) from cause
    return torch


class Rival:
    """A network on crops of one size.

    Args:
        name: a key of `ARCHITECTURES`.
        size: edge of the crops in voxels.
        tasks: output channels.
        width: share of the published width.
        roi_channel: the high-dose ROI is a second input channel.
        bfloat16: what autocast computes in; parameters and their updates stay float32.
        seed: of the initial parameters.

    Raises:
        ExtraMissing: torch or MONAI is not installed.
        ConfigError: no such width.
    """

    def __init__(
        self,
        name: str,
        *,
        size: int,
        tasks: int,
        width: float = 1.0,
        roi_channel: bool = False,
        bfloat16: bool = False,
        seed: int = 0,
    ):
        architecture = ARCHITECTURES[name]
        channels = architecture.width(width)
        self.torch = require_torch()
        self.title, self.size, self.edge = architecture.title, size, architecture.edge(size)
        self.roi_channel, self.bfloat16 = roi_channel, bfloat16
        self.device = "cuda" if self.torch.cuda.is_available() else "cpu"
        self.torch.manual_seed(seed)
        module = architecture.build(channels, self.edge, 1 + roi_channel, tasks)
        self.module = module.to(self.device)

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.module.parameters())

    def tensor(self, array: Any) -> Any:
        """An array, on any device or the host, as a tensor on the network's."""
        return self.torch.from_numpy(np.array(array)).to(self.device)

    def logits(self, image: Any, roi: Any, task: Any) -> Any:
        """The answer to each row's own task.

        Args:
            image: [B, S, S, S] float32, normalised.
            roi: [B, S, S, S], non-zero inside; not looked at unless it is a channel.
            task: [B] int64.

        Returns:
            [B, S, S, S], in the type that the network computes in.
        """
        torch = self.torch
        channels = [image, (roi != 0).float()] if self.roi_channel else [image]
        low = (self.edge - self.size) // 2
        high = self.edge - self.size - low
        # What lies at the faces goes on beyond them: zeros would be an edge that no scan has.
        x = torch.nn.functional.pad(torch.stack(channels, 1), (low, high) * 3, mode="replicate")
        within = slice(low, low + self.size)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
            answers = self.module(x)
        return answers[torch.arange(len(task)), task, within, within, within]
