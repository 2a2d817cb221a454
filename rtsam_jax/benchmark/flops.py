"""Floating point operations counted by hand: two per multiply-add, matrix products alone.

Norms, softmax, activations and losses are left out: together about a hundredth.
"""

from __future__ import annotations

from rtsam_jax.models.presets import ModelSpec


def encoder_flop(spec: ModelSpec, *, padded: bool = False) -> float:
    """One encoder forward pass of one volume.

    Args:
        spec: sizes.
        padded: as the reference computes it, windows filled up with padding; without, only real
            tokens count (the one virtual key of a window is left out).
    """
    grid, width, out = spec.grid, spec.width, spec.prompt_width
    tokens = grid**3
    total = _patches_flop(spec)
    for block in range(spec.depth):
        window = grid if block in spec.global_blocks else spec.window
        whole, rest = divmod(grid, window)
        # Along one axis: positions that enter the attention, and pairs of query and key.
        if padded:
            windows = whole + bool(rest)
            positions, pairs = windows * window, windows * window**2
        else:
            positions, pairs = grid, whole * window**2 + rest**2
        total += 2.0 * positions**3 * width * 4 * width  # qkv and proj
        total += 2.0 * 2 * pairs**3 * width  # logits and values
        total += 2.0 * 3 * positions**3 * window * width  # relative position
        total += 2.0 * tokens * width * 2 * spec.mlp_ratio * width
    return total + 2.0 * tokens * (width * out + 27 * out * out)


def encoder_grad_flop(spec: ModelSpec, *, padded: bool = False) -> float:
    """Forward, and backward at twice that: by the inputs and by the weights of each product.

    The patches are the exception, since nobody asks for the gradient by the image.
    """
    return 3 * encoder_flop(spec, padded=padded) - _patches_flop(spec)


def _patches_flop(spec: ModelSpec) -> float:
    return 2.0 * spec.grid**3 * spec.patch_size**3 * spec.width


def decoder_flop(spec: ModelSpec, prompts: int, masks: int = 1) -> float:
    """One decoder forward pass of one volume, the mask prompt's downscaling included.

    Args:
        spec: sizes.
        prompts: sparse prompt tokens, unused slots included.
        masks: whose coefficients and logits are computed; the reference computes all.
    """
    image, c = spec.grid**3, spec.prompt_width
    tokens = 1 + spec.mask_tokens + prompts
    few, many = spec.mask_channels // 4, spec.mask_channels
    # Two projections of either side at half width, logits and values.
    crossing = 2.0 * (tokens + image) * c * c + 2.0 * tokens * image * c
    block = 8.0 * tokens * c * c + 4.0 * tokens**2 * c  # the tokens among themselves
    block += 4.0 * tokens * c * spec.decoder_mlp + 2 * crossing
    upscaling = 2.0 * image * (2 * c * c + 64 * c // 4 * c // 8)
    hidden = spec.iou_hidden
    heads = masks * 2.0 * (2 * c * c + c * c // 8)
    heads += 2.0 * (c * hidden + hidden**2 + hidden * spec.mask_tokens)
    downscaling = 2.0 * image * (64 * few + 8 * few * many + many * c)
    logits = 2.0 * masks * 64 * image * c // 8
    return spec.decoder_depth * block + crossing + upscaling + heads + downscaling + logits


def upsample_flop(spec: ModelSpec) -> float:
    """Trilinear interpolation of one volume's logits, axis by axis, two voxels each."""
    small, large = spec.mask_size, spec.image_size
    return 4.0 * (large * small**2 + large**2 * small + large**3)


def refine_flop(spec: ModelSpec, prompts: int, masks: int = 1) -> float:
    """One pass of the decoder on one volume, upsampled, with its backward pass."""
    return 3 * (decoder_flop(spec, prompts, masks) + upsample_flop(spec))
