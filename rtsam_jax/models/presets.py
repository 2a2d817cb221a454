"""Model sizes by name; `vit_b_ori` is the published SAM-Med3D, the others share its design."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from rtsam_jax.errors import ConfigError


@dataclass(frozen=True)
class ModelSpec:
    """Everything that fixes the parameters' shapes.

    Sizes in voxels or channels. `image_size / patch_size` is the side of the token grid; the mask
    decoder's logits have four times that side.
    """

    image_size: int = 128
    patch_size: int = 16
    width: int = 768  # encoder
    depth: int = 12
    heads: int = 12
    mlp_ratio: int = 4
    window: int = 14  # tokens
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    prompt_width: int = 384  # neck, prompts and decoder; a multiple of 3 and of 16
    mask_channels: int = 16
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    mask_tokens: int = 4
    iou_hidden: int = 256

    @property
    def grid(self) -> int:
        """Side of the token grid."""
        return self.image_size // self.patch_size

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution logit volume, which is also the mask prompt's."""
        return 4 * self.grid

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}."
            )


_CPU_XS = ModelSpec(
    image_size=24,
    patch_size=4,
    width=128,
    depth=4,
    heads=4,
    window=6,
    global_blocks=(0, 1, 2, 3),
    prompt_width=96,
    decoder_mlp=256,
    iou_hidden=96,
)

PRESETS: dict[str, ModelSpec] = {
    # Published weights (sam_med3d.pth, sam_med3d_turbo.pth): 100,509,232 parameters.
    "vit_b_ori": ModelSpec(),
    "vit_l": ModelSpec(
        image_size=256, width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)
    ),
    "vit_h": ModelSpec(
        image_size=256, width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)
    ),
    # For training from scratch on a CPU: few tokens, all attended globally, for many steps.
    # cpu_s: whole structures at 3 mm (logits every 12 mm, interpolated; that bounds Dice near 0.8).
    # cpu_xs: lesions at 2 to 3 mm in a crop of some 64 mm, a logit for every voxel. Patches of 4
    # voxels reach in 1250 steps what patches of 8 reach in 2500.
    "cpu_s": ModelSpec(
        image_size=96,
        patch_size=16,
        width=192,
        depth=4,
        heads=6,
        window=6,
        global_blocks=(0, 1, 2, 3),
        prompt_width=96,
        decoder_mlp=384,
    ),
    "cpu_xs": _CPU_XS,
    # Whole structures at 6 mm: cpu_s's field of view and logits at an eighth of its voxels.
    "cpu_s48": dataclasses.replace(_CPU_XS, image_size=48, patch_size=8),
    # For tests: every mechanism (a padded window, a global block), few parameters.
    "test": ModelSpec(
        image_size=32,
        patch_size=8,
        width=48,
        depth=2,
        heads=3,
        window=6,
        global_blocks=(1,),
        prompt_width=48,
        mask_channels=8,
        decoder_mlp=64,
        iou_hidden=32,
    ),
}


def get_spec(preset: str) -> ModelSpec:
    """The sizes of a preset; `ConfigError` lists the names if there is none such."""
    if preset not in PRESETS:
        raise ConfigError(
            f"config.model.preset is {preset!r}; choose one of {', '.join(sorted(PRESETS))}."
        )
    return PRESETS[preset]
