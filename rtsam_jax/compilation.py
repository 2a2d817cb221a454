"""Compiled programs are kept between runs, unless the user says otherwise."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import jax

from rtsam_jax.data.user_cache import user_cache

_LIMIT = 4 * 2**30  # bytes; the least recently used go first
_SLOW = 1.0  # seconds of compilation from which a program is worth keeping


def keep_compiled_programs() -> None:
    """Turns on JAX's persistent compilation cache, in the user's cache folder.

    A resumed run and another run of the same shapes then find what was compiled. Of several
    processes the first alone writes: where hosts share no home folder, or lose it on a restart, let
    `JAX_COMPILATION_CACHE_DIR` name one that they do. Where it is set, empty for no cache, that
    holds.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", str(user_cache("compiled") / _processor()))
    jax.config.update("jax_compilation_cache_max_size", _LIMIT)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _SLOW)


def _processor() -> str:
    """Of this machine's CPU; code compiled for one with more instructions would crash another."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    what = next((line for line in lines if line.startswith("flags")), platform.processor())
    digest = hashlib.sha256(what.encode()).hexdigest()
    return f"{platform.machine()}-{digest[:8]}"
