"""Floating point operations of the image encoder, counted by hand: two per multiply-add."""

from __future__ import annotations

from rtsam_jax.models.presets import ModelSpec


def encoder_flop(spec: ModelSpec, *, padded: bool = False) -> float:
    """Matrix products of one encoder forward pass of one volume.

    Norms, softmax and GELU are left out: together about a hundredth.

    Args:
        spec: sizes.
        padded: as the reference computes it, windows filled up with padding; without, only real
            tokens count (the one virtual key of a window is left out).
    """
    grid, width, out = spec.grid, spec.width, spec.prompt_width
    tokens = grid**3
    total = 2.0 * tokens * spec.patch_size**3 * width
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
