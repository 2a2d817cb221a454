"""PyTorch for a test file, which is skipped where the rivals' extra is not installed."""

from __future__ import annotations

from typing import Any

import pytest


def torch() -> Any:
    """The module `torch`, with MONAI and einops there too, on one thread.

    Small convolutions gain nothing by a second, and wait for it where others need the cores.
    """
    for name in ("monai", "einops"):
        pytest.importorskip(name, reason="needs the extra `baselines`")
    module = pytest.importorskip("torch", reason="needs the extra `baselines`")
    module.set_num_threads(1)
    return module
