"""Window attention the plain way: pad the grid, attend among all positions, cut the padding off.

Written from the formulas of the reference's description, with no care for speed, as the oracle of
`rtsam_jax.models.attention`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rtsam_jax.models.attention import QKV, Tables

HIGHEST = jax.lax.Precision.HIGHEST


def padded_attention(
    tokens: QKV, bias: QKV, tables: Tables, window: int, *, mixed_axes: bool = True
) -> jax.Array:
    """Attention in zero-padded windows; a padded token's q, k, v are the projection's biases.

    Args:
        tokens: each `[B, D, H, W, X, K]`.
        bias: each `[X, K]`.
        tables: each `[2 * window - 1, K]`.
        window: side in tokens.
        mixed_axes: the reference's position terms, whose second and third index a key where the
            query belongs; False gives the standard decomposition.

    Returns:
        `[B, D, H, W, X, K]`.
    """
    b, *grid, x, k = tokens.q.shape
    counts = [-(-side // window) for side in grid]
    whole = [n * window for n in counts]

    def cut(t: jax.Array, padding: jax.Array) -> jax.Array:  # -> [N, s, s, s, X, K]
        t = jnp.broadcast_to(padding, (b, *whole, x, k)).at[:, *map(slice, grid)].set(t)
        split = [size for n in counts for size in (n, window)]
        t = t.reshape(b, *split, x, k).transpose(0, 1, 3, 5, 2, 4, 6, 7, 8)
        return t.reshape(-1, window, window, window, x, k)

    @jax.checkpoint
    def one(qkv: QKV) -> jax.Array:
        return _attend(qkv, tables, mixed_axes)

    out = jax.lax.map(one, QKV(*map(cut, tokens, bias)))
    out = out.reshape(b, *counts, window, window, window, x, k)
    out = out.transpose(0, 1, 4, 2, 5, 3, 6, 7, 8).reshape(b, *whole, x, k)
    return out[:, *map(slice, grid)]


def _attend(tokens: QKV, tables: Tables, mixed_axes: bool) -> jax.Array:
    """One window; each `[s, s, s, X, K]`. Letters: query (d, h, w), key (l, m, n)."""
    q, key, value = tokens
    s, _, _, x, k = q.shape
    difference = jnp.arange(s)[:, None] - jnp.arange(s)[None] + s - 1
    rel_d, rel_h, rel_w = (table[difference] for table in tables)  # [query, key, K]

    def dot(equation: str, *operands: jax.Array) -> jax.Array:
        return jnp.einsum(equation, *operands, precision=HIGHEST)

    logits = dot("dhwxk,lmnxk->xdhwlmn", q, key) * k**-0.5
    if mixed_axes:
        logits += dot("dhwxk,dnk->xdhwn", q, rel_d)[:, :, :, :, None, None, :]
        logits += dot("dhlxk,hnk->xdhln", q, rel_h)[:, :, :, None, :, None, :]
        logits += dot("dhmxk,mnk->xdhmn", q, rel_w)[:, :, :, None, None, :, :]
    else:
        logits += dot("dhwxk,dlk->xdhwl", q, rel_d)[..., :, None, None]
        logits += dot("dhwxk,hmk->xdhwm", q, rel_h)[..., None, :, None]
        logits += dot("dhwxk,wnk->xdhwn", q, rel_w)[..., None, None, :]
    weights = jax.nn.softmax(logits.reshape(x, s, s, s, s**3), axis=-1)
    return dot("xdhws,sxk->dhwxk", weights, value.reshape(s**3, x, k))
