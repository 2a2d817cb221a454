"""The padding-free attention of `rtsam_jax.models.attention` in PyTorch, for medim's encoder.

It tells algorithm from framework: the same products as ours, run by PyTorch. All padded keys of a
window share one key vector, the projection's bias, so they act as one virtual key whose logit
gathers them with a log-sum-exp. Fused attention takes that logit, and the relative position, as a
mask. The mixed axes of the position terms are the reference's (trap 1).

Shape suffixes: B batch, X heads, D H W query position, T/S key position, K channels of a head.
"""

from __future__ import annotations

from typing import Any

from rtsam_jax.errors import ConfigError
from rtsam_jax.models.presets import ModelSpec


def require_one_window(spec: ModelSpec) -> None:
    """Raises `ConfigError` where the token grid does not fit into one window."""
    if spec.grid > spec.window:
        raise ConfigError(
            f"medim-packed holds one window, but {spec.grid} tokens a side need several of "
            f"{spec.window}; use --rival medim, or a smaller volume."
        )


def encode(torch: Any, encoder: Any, image: Any) -> Any:
    """What medim's `ImageEncoderViT3D` gives: `[B, 1, S, S, S] -> [B, C, g, g, g]`."""
    x = encoder.patch_embed(image)
    x = x + encoder.pos_embed
    for block in encoder.blocks:
        x = x + _attention(torch, block.attn, block.norm1(x), block.window_size or x.shape[1])
        x = x + block.mlp(block.norm2(x))
    return encoder.neck(x.permute(0, 4, 1, 2, 3))


def _attention(torch: Any, module: Any, x: Any, window: int) -> Any:
    """medim's `Attention` on the tokens `[B, D, H, W, C]` of the corner of one padded window."""
    b, side, _, _, c = x.shape
    heads, tokens = module.num_heads, side**3
    qkv = module.qkv(x).reshape(b, side, side, side, 3, heads, -1)
    q, k, v = qkv.permute(4, 0, 5, 1, 2, 3, 6).unbind(0)  # [B, X, D, H, W, K]
    bias_q, bias_k, bias_v = module.qkv.bias.reshape(3, heads, -1)
    rows, columns, depths = _position_terms(torch, module, q, bias_q, window)
    mask = rows[..., None, None, :side] + (
        depths[..., :side, None, :side] + columns[..., None, :side, :side]
    ).unsqueeze(4)
    mask = mask.reshape(b, heads, tokens, tokens)
    k, v = (t.reshape(b, heads, tokens, -1) for t in (k, v))
    if side < window:
        padding = _padding_logit(torch, rows, depths, columns, side)
        padding = padding + module.scale * torch.einsum("bxdhwk,xk->bxdhw", q, bias_k)
        mask = torch.cat([mask, padding.reshape(b, heads, tokens, 1)], dim=-1)
        # The virtual key's whole logit is in the mask.
        k = torch.cat([k, k.new_zeros(b, heads, 1, k.shape[-1])], dim=2)
        v = torch.cat([v, bias_v[None, :, None].expand(b, -1, -1, -1).to(v.dtype)], dim=2)
    out = torch.nn.functional.scaled_dot_product_attention(
        q.reshape(b, heads, tokens, -1), k, v, attn_mask=mask.to(k.dtype), scale=module.scale
    )
    return module.proj(out.transpose(1, 2).reshape(b, side, side, side, c))


def _position_terms(
    torch: Any, module: Any, q: Any, bias_q: Any, window: int
) -> tuple[Any, Any, Any]:
    """The reference's three terms; a query beyond the filled width is padding, the bias.

    Returns:
        By key width `[B, X, D, H, W, window]`, by key height and width, and by key depth and width
        `[B, X, D, H, window, window]`.
    """
    b, heads, side = q.shape[:3]
    steps = torch.arange(window, device=q.device)
    offset = steps[:, None] - steps[None] + window - 1
    rel_d, rel_h, rel_w = (
        table[offset] for table in (module.rel_pos_d, module.rel_pos_h, module.rel_pos_w)
    )
    rows = torch.einsum("bxdhwk,dsk->bxdhws", q, rel_d[:side])
    depths = torch.einsum("bxdhtk,hsk->bxdhts", q, rel_h[:side])
    columns = torch.einsum("bxdhtk,tsk->bxdhts", q, rel_w[:side])
    if side < window:
        tail = b, heads, side, side, window - side, window
        more = torch.einsum("xk,hsk->xhs", bias_q, rel_h[:side])[:, None, :, None]
        depths = torch.cat([depths, more.expand(tail)], dim=-2)
        more = torch.einsum("xk,tsk->xts", bias_q, rel_w[side:])[:, None, None]
        columns = torch.cat([columns, more.expand(tail)], dim=-2)
    return rows, columns, depths


def _padding_logit(torch: Any, rows: Any, depths: Any, columns: Any, side: int) -> Any:
    """log-sum-exp of the three terms over all padded keys, `[B, X, D, H, W]`.

    For a fixed key width the sum over depth and height separates into two factors. Inside the
    filled width only pairs with a padded member count: (padded, any) or (filled, padded).
    """
    lse = torch.logsumexp
    all_depths, all_columns = lse(depths, -2), lse(columns, -2)
    inside = torch.logaddexp(
        lse(depths[..., side:, :side], -2) + all_columns[..., :side],
        lse(depths[..., :side, :side], -2) + lse(columns[..., side:, :side], -2),
    )
    outside = (all_depths + all_columns)[..., side:]
    return lse(rows + torch.cat([inside, outside], -1)[..., None, :], -1)
