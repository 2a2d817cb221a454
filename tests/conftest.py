"""Shared fixtures: the optional data pack, and small devices for every test."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_pack() -> Path:
    """The folder `../shared/data` beside the repository: public CT, dose and MR volumes."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the data pack in ../shared/data (public CT, dose and MR volumes)")
    return folder
