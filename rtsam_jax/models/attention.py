"""Windowed attention with SAM-Med3D's decomposed relative position, without the padding.

The reference pads the token grid with zeros to whole windows and lets the padding take part as
keys (traps 1 and 2). All padded keys of a window share one key vector, the projection's bias, so
for a given query they act as *one* virtual key whose logit gathers them with a log-sum-exp. That is
exact and leaves only real tokens to multiply.

Shape suffixes: N windows (batch included), X heads, D H W query position, T/S key position,
K channels of a head.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rtsam_jax.models.layers import Array, Precision


class QKV(NamedTuple):
    """Queries, keys and values, or the projection's biases of the three."""

    q: Array
    k: Array
    v: Array


class Tables(NamedTuple):
    """Relative-position tables of the three axes, each `[2 * side - 1, K]`."""

    d: Array
    h: Array
    w: Array


def windowed_attention(
    tokens: QKV, bias: QKV, tables: Tables, window: int, precision: Precision
) -> Array:
    """Attention inside windows of `window`^3 tokens over a grid of any size.

    Args:
        tokens: each `[B, D, H, W, X, K]`, the real tokens only.
        bias: each `[X, K]`, what the projection gives for a padded (zero) token.
        tables: relative position for a side of `window`.
        window: side of a window in tokens. A window that spans the grid is global attention.
        precision: the dtype policy.

    Returns:
        `[B, D, H, W, X, K]`.
    """
    grid = tokens.q.shape[1:4]
    groups = list(itertools.product(*(_segments(side, window) for side in grid)))
    if len(groups) == 1:
        return _attend_group(tokens, bias, tables, groups[0], window, precision)
    out = jnp.zeros_like(tokens.v)
    for group in groups:
        index = (slice(None), *(slice(s.start, s.start + s.windows * s.fill) for s in group))
        part = QKV(*(t[index] for t in tokens))
        out = out.at[index].set(_attend_group(part, bias, tables, group, window, precision))
    return out


class _Segment(NamedTuple):
    """Windows along one axis that hold the same number of real tokens."""

    start: int
    windows: int
    fill: int


def _segments(side: int, window: int) -> list[_Segment]:
    whole, rest = divmod(side, window)
    segments = [_Segment(0, whole, window)] if whole else []
    return segments + ([_Segment(whole * window, 1, rest)] if rest else [])


def _attend_group(
    tokens: QKV,
    bias: QKV,
    tables: Tables,
    group: tuple[_Segment, ...],
    window: int,
    precision: Precision,
) -> Array:
    """Cuts equally filled windows out of their slab, attends in each, and puts them back."""
    b, *_, x, k = tokens.q.shape
    (_, nd, fd), (_, nh, fh), (_, nw, fw) = group

    def cut(t: Array) -> Array:  # -> [N, fd, fh, fw, X, K]
        t = t.reshape(b, nd, fd, nh, fh, nw, fw, x, k)
        return t.transpose(0, 1, 3, 5, 2, 4, 6, 7, 8).reshape(-1, fd, fh, fw, x, k)

    out = attend(QKV(*map(cut, tokens)), bias, tables, window, precision)
    out = out.reshape(b, nd, nh, nw, fd, fh, fw, x, k).transpose(0, 1, 4, 2, 5, 3, 6, 7, 8)
    return out.reshape(b, nd * fd, nh * fh, nw * fw, x, k)


def attend(tokens: QKV, bias: QKV, tables: Tables, window: int, precision: Precision) -> Array:
    """Attention among the real tokens of a window plus one virtual key for its padding.

    Args:
        tokens: each `[N, fd, fh, fw, X, K]`, the filled corner of a window of `window`^3.

    Returns:
        `[N, fd, fh, fw, X, K]` in the compute dtype.
    """
    n, fd, fh, fw, x, k = tokens.q.shape
    scale = k**-0.5

    def product(equation: str, a: Array, b: Array) -> Array:
        return jnp.einsum(
            equation, a, b, precision=precision.matmul, preferred_element_type=precision.softmax
        )

    a_NXDHWS, b_NXDHTS, c_NXDHTS = _position_logits(tokens.q, bias.q, tables, window, product)
    between = b_NXDHTS[..., :fd, None, :fw] + c_NXDHTS[..., None, :fh, :fw]
    logits = product("ndhwxk,nabcxk->nxdhwabc", tokens.q * scale, tokens.k)
    logits += a_NXDHWS[..., None, None, :fw] + between[:, :, :, :, None]
    logits = logits.reshape(n, x, fd, fh, fw, -1)

    padded = (fd, fh, fw) != (window,) * 3
    peak = logits.max(-1, keepdims=True)
    if padded:
        own = product("ndhwxk,xk->nxdhw", tokens.q * scale, bias.k)
        pad = own + _padding_logit(a_NXDHWS, b_NXDHTS, c_NXDHTS, (fd, fh, fw))
        peak = jnp.maximum(peak, pad[..., None])
    peak = jax.lax.stop_gradient(peak)
    weights = jnp.exp(logits - peak)
    total = weights.sum(-1, keepdims=True)
    values = tokens.v.reshape(n, -1, x, k)
    if not padded:
        out = product("nxdhws,nsxk->nxdhwk", weights.astype(precision.compute), values) / total
    else:
        pad_weight = jnp.exp(pad[..., None] - peak)
        out = product("nxdhws,nsxk->nxdhwk", weights.astype(precision.compute), values)
        out = out + pad_weight * bias.v[:, None, None, None]
        out = out / (total + pad_weight)
    return out.transpose(0, 2, 3, 4, 1, 5).astype(precision.compute)


def _position_logits(
    q: Array, bias_q: Array, tables: Tables, window: int, product: Callable[..., Array]
) -> tuple[Array, Array, Array]:
    """The three terms A, B, C of the reference, which mix query and key axes (trap 1).

    The reference means to index its second and third term by the query's `w` but lands on a *key*
    axis, which the broadcast allows because all sides are equal. Published weights were trained so:

        A[d, h, w, kw] = q[d, h, w]  . Rd[d, kw]
        B[d, h, kd, kw] = q[d, h, kd] . Rh[h, kw]
        C[d, h, kh, kw] = q[d, h, kh] . Rw[kh, kw]

    A query position beyond the filled width is padding, and its query is the bias (trap 2).

    Returns:
        A `[N, X, fd, fh, fw, window]`, B and C `[N, X, fd, fh, window, window]`, float32.
    """
    n, fd, fh, fw, x, k = q.shape
    offset = jnp.arange(window)[:, None] - jnp.arange(window)[None] + window - 1
    rel_d, rel_h, rel_w = (table.astype(q.dtype)[offset] for table in tables)
    whole = q
    if fw < window:
        tail = jnp.broadcast_to(bias_q, (n, fd, fh, window - fw, x, k))
        whole = jnp.concatenate([q, tail], axis=3)
    a = product("ndhwxk,dsk->nxdhws", q, rel_d[:fd])
    b = product("ndhtxk,hsk->nxdhts", whole, rel_h[:fh])
    c = product("ndhtxk,tsk->nxdhts", whole, rel_w)
    return a, b, c


def _padding_logit(a: Array, b: Array, c: Array, fill: tuple[int, int, int]) -> Array:
    """log-sum-exp of A + B + C over a window's padded keys. `[N, X, fd, fh, fw]`, float32.

    For a fixed `kw` the sum over `(kd, kh)` separates into a factor of `kd` and one of `kh`. Inside
    the filled width only pairs with a padded member count: (pad, any) or (filled, pad), a sum of
    two positive terms, so nothing is subtracted and nothing cancels.
    """
    fd, fh, fw = fill
    window = a.shape[-1]
    lse = jax.nn.logsumexp
    b_all, c_all = lse(b, axis=-2), lse(c, axis=-2)  # [N, X, fd, fh, window]
    terms = []
    if fd < window:
        terms.append(lse(b[..., fd:, :fw], axis=-2) + c_all[..., :fw])
    if fh < window:
        terms.append(lse(b[..., :fd, :fw], axis=-2) + lse(c[..., fh:, :fw], axis=-2))
    outside = (b_all + c_all)[..., fw:]
    if not terms:  # only the width is padded
        return lse(a[..., fw:] + outside[..., None, :], axis=-1)
    inside = jnp.logaddexp(*terms) if len(terms) == 2 else terms[0]
    return lse(a + jnp.concatenate([inside, outside], axis=-1)[..., None, :], axis=-1)
