from __future__ import annotations

from pathlib import Path

import pytest

from rtsam_jax.training.time_taken import add_seconds, training_seconds


def test_the_time_of_all_starts_adds_up(tmp_path: Path) -> None:
    assert training_seconds(tmp_path) is None
    add_seconds(tmp_path, 1.5, step=10)
    add_seconds(tmp_path, 2.0, step=20)
    assert training_seconds(tmp_path) == 3.5


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", '{"seconds": null}', '{"seconds": "long"}', '{"seconds": NaN}'),
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_damaged_note_of_the_time_stops_no_run(tmp_path: Path, content: str) -> None:
    (tmp_path / "time.json").write_text(content)
    assert training_seconds(tmp_path) is None
    add_seconds(tmp_path, 2.0, step=20)
    assert training_seconds(tmp_path) == 2.0
