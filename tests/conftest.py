"""Shared fixtures: the data pack, a tiny dataset, one compilation cache for the session."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.compiling import QUICK

REPOSITORY = Path(__file__).resolve().parents[1]

# Before jax is imported, and inherited by the commands that tests start. Flags and a cache of the
# user's own are left alone.
os.environ.setdefault("XLA_FLAGS", QUICK)
# What one process compiled, the next one reads.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="rtsam_jax_test_cache_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
else:
    _cache = ""


def pytest_unconfigure() -> None:
    if _cache:
        shutil.rmtree(_cache, ignore_errors=True)


@pytest.fixture(scope="session")
def data_pack() -> Path:
    """The folder `../shared/data` beside the repository: public CT, dose and MR volumes."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the data pack in ../shared/data (public CT, dose and MR volumes)")
    return folder


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic dataset of six cases in three tasks; shared, so copy it to change it."""
    from tests.tiny import write_tiny_dataset

    root = tmp_path_factory.mktemp("tiny") / "dataset"
    write_tiny_dataset(root)
    return root
