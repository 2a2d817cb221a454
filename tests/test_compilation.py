"""Compiled programs are kept, in a process of its own: jax opens its cache once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import command_environment

PROGRAM = """
import jax
from rtsam_jax.compilation import keep_compiled_programs

keep_compiled_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event.rpartition("/")[2]))
jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((8, 8))).block_until_ready()
print("cache_hits" in found)
"""


def found_compiled(home: Path, **environment: str) -> bool:
    env = command_environment(XDG_CACHE_HOME=str(home), **environment)
    if not environment:
        env.pop("JAX_COMPILATION_CACHE_DIR", None)
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True
    )
    return ran.stdout.split() == ["True"]


def test_the_next_process_finds_what_one_compiled(tmp_path: Path) -> None:
    assert [found_compiled(tmp_path), found_compiled(tmp_path)] == [False, True]
    assert any((tmp_path / "rtsam_jax" / "compiled").rglob("*"))


@pytest.mark.parametrize("chosen", ["", "own"])
def test_a_cache_of_the_users_own_is_left_alone(tmp_path: Path, chosen: str) -> None:
    own = str(tmp_path / chosen) if chosen else ""
    assert not found_compiled(tmp_path, JAX_COMPILATION_CACHE_DIR=own)
    assert not (tmp_path / "rtsam_jax").exists()
    assert bool(chosen) == (bool(own) and any(os.scandir(own)))
