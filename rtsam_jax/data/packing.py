"""An array and what goes with it as one record, from which the array is seen without a copy.

A record: the header's length, the header, zeros up to a multiple of the alignment, the array.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import serialization

_LENGTH, _ALIGNMENT = 8, 64  # bytes


def pack(array: np.ndarray, about: dict[str, Any]) -> bytes:
    """One record.

    Args:
        about: what msgpack can write, small arrays included.
    """
    what = {"shape": list(array.shape), "dtype": array.dtype.name, **about}
    header = serialization.msgpack_serialize(what)
    start = len(header).to_bytes(_LENGTH, "little") + header
    return start + bytes(-len(start) % _ALIGNMENT) + array.tobytes()


def unpack(content: bytes) -> tuple[np.ndarray, dict[str, Any]]:
    """The array, read-only and in place, and what goes with it."""
    end = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    about = serialization.msgpack_restore(content[_LENGTH:end])
    # jnp's, because numpy alone has no bfloat16.
    array = np.frombuffer(content, jnp.dtype(about["dtype"]), offset=end + -end % _ALIGNMENT)
    return array.reshape(about["shape"]), about


def pack_mask(mask: np.ndarray) -> bytes:
    """A bit per voxel, compressed."""
    return zlib.compress(np.packbits(mask != 0).tobytes(), 1)


def unpack_mask(content: bytes, shape: Sequence[int]) -> np.ndarray:
    """uint8 of 0 and 1."""
    bits = np.frombuffer(zlib.decompress(content), np.uint8)
    return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape)
