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

# On a CPU, logits of more bytes than this are computed slab by slab, each as large as it may be: a
# whole block's (12.6 MB in ViT-B) leave the cache, and the allocator gives them back to the system
# after each use; products over small slabs keep only one core busy. In ViT-B two slabs take
# 9.5 ms, eight 14 ms, the whole 23 ms (two cores).
_WHOLE_ON_CPU = 8 * 2**20


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


class _Queries(NamedTuple):
    """Queries and what their logits need beside the keys; the axes N, X, D, H, W come first."""

    q: Array
    a: Array  # the three terms of `_position_logits`, cut to the filled keys
    b: Array
    c: Array
    pad: Array | None  # the virtual key's logit; None where nothing is padded


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

    q, key, value = (t.transpose(0, 4, 1, 2, 3, 5) for t in tokens)  # [N, X, D, H, W, K]
    key, value = (key * scale).reshape(n, x, -1, k), value.reshape(n, x, -1, k)
    a, b, c = _position_logits(q, bias.q, tables, window, product)
    pad = None
    if (fd, fh, fw) != (window,) * 3:
        own = product("nxdhwk,xk->nxdhw", q, bias.k * scale)
        pad = own + _padding_logit(a, b, c, (fd, fh, fw))
    queries = _Queries(q, a[..., :fw], b[..., :fd, :fw], c[..., :fh, :fw], pad)

    def attended(part: _Queries) -> Array:
        """Every query of `part` attends to all keys. Shaped like `part.q`."""
        between = part.b[..., None, :] + part.c[..., None, :, :]
        position = part.a[..., None, None, :] + between[:, :, :, :, None]
        logits = product("nxqk,nxsk->nxqs", part.q.reshape(n, x, -1, k), key)
        logits += position.reshape(logits.shape)
        peak = logits.max(-1, keepdims=True)
        if part.pad is not None:
            pad = part.pad.reshape(peak.shape)
            peak = jnp.maximum(peak, pad)
        peak = jax.lax.stop_gradient(peak)
        weights = jnp.exp(logits - peak)
        total = weights.sum(-1, keepdims=True)
        out = product("nxqs,nxsk->nxqk", weights.astype(precision.compute), value)
        if part.pad is not None:
            pad_weight = jnp.exp(pad - peak)
            out += pad_weight * bias.v[:, None]
            total += pad_weight
        return (out / total).astype(precision.compute).reshape(part.q.shape)

    slabs = 1
    if jax.default_backend() == "cpu":
        logits_bytes = 4 * n * x * (fd * fh * fw) ** 2
        slabs = next((s for s in _divisors(fd) if logits_bytes <= s * _WHOLE_ON_CPU), fd)
    out = _slab_by_slab(attended, queries, slabs) if slabs > 1 else attended(queries)
    return out.transpose(0, 2, 3, 4, 1, 5)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _slab_by_slab(attended: Callable[[_Queries], Array], queries: _Queries, slabs: int) -> Array:
    """`attended(queries)`, an equal part of the axis D after the other."""

    def cut(t: Array) -> Array:  # [N, X, D, ...] -> [slabs, N, X, D / slabs, ...]
        n, x, d, *rest = t.shape
        return jnp.moveaxis(t.reshape(n, x, slabs, d // slabs, *rest), 2, 0)

    # The output takes the queries' place. XLA would set up buffers of their own, which depend on
    # nothing, for all blocks at once.
    def replace(out: Array, step: tuple[Array, _Queries]) -> tuple[Array, None]:
        i, slab = step
        return jax.lax.dynamic_update_index_in_dim(out, attended(slab), i, axis=0), None

    parts = jax.tree.map(cut, queries)
    out, _ = jax.lax.scan(replace, parts.q, (jnp.arange(slabs), parts))
    return jnp.moveaxis(out, 0, 2).reshape(queries.q.shape)


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

    Args:
        q: `[N, X, fd, fh, fw, K]`.
        bias_q: `[X, K]`.

    Returns:
        A `[N, X, fd, fh, fw, window]`, B and C `[N, X, fd, fh, window, window]`, float32.
    """
    n, x, fd, fh, fw, _ = q.shape
    offset = jnp.arange(window)[:, None] - jnp.arange(window)[None] + window - 1
    rel_d, rel_h, rel_w = (table.astype(q.dtype)[offset] for table in tables)
    # Outputs ordered as the product leaves them (batch, left, right): any other order makes XLA
    # swap the operands and copy the larger one against its grain.
    a = product("nxdhwk,dsk->dnxhws", q, rel_d[:fd]).transpose(1, 2, 0, 3, 4, 5)
    b = product("nxdhtk,hsk->hnxdts", q, rel_h[:fh]).transpose(1, 2, 3, 0, 4, 5)
    c = product("nxdhtk,tsk->tnxdhs", q, rel_w[:fw]).transpose(1, 2, 3, 4, 0, 5)
    if fw < window:
        shape = (n, x, fd, fh, window - fw, window)
        tail_b = product("xk,hsk->xhs", bias_q, rel_h[:fh])[:, None, :, None]
        tail_c = product("xk,tsk->xts", bias_q, rel_w[fw:])[:, None, None]
        b = jnp.concatenate([b, jnp.broadcast_to(tail_b, shape)], axis=-2)
        c = jnp.concatenate([c, jnp.broadcast_to(tail_c, shape)], axis=-2)
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
