"""The loop: metrics once per step, a NaN that stops it, and saves of finite states only."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtsam_jax.data.pipeline import batches_from
from rtsam_jax.errors import TrainingDiverged
from rtsam_jax.training import loop
from rtsam_jax.training.checkpoint import RunCheckpoints
from rtsam_jax.training.loop import MetricsLog, prefetch, timed, train
from rtsam_jax.training.state import Built, TrainState
from rtsam_jax.training.step import StepMetrics, make_train_step
from tests.training.conftest import Training


def run_loop(training: Training, out: Path, *, steps: int, every: int, cases=None) -> Built:
    cfg = dataclasses.replace(training.cfg, out=str(out), checkpoint_every=every, log_every=1)
    checkpoints = RunCheckpoints(out, keep=10)
    try:
        return train(
            training.build(),
            training.step,
            partial(batches_from, training.batches(cases)),
            cfg,
            steps=steps,
            mesh=training.mesh,
            case_names=[case.id for case in training.data.train],
            schedule=lambda step: 0.5 + step,
            checkpoints=checkpoints,
        )
    finally:
        checkpoints.close()


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def saved(run: Path) -> list[int]:
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir())


def test_every_step_is_logged_once(
    training: Training, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = run_loop(training, tmp_path, steps=5, every=2)
    assert int(built.state.step) == 5
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5]
    assert [line["lr"] for line in found] == [0.5, 1.5, 2.5, 3.5, 4.5]  # that the step was taken at
    for line in found:
        assert {"loss", "dice", "dice_clicked", "grad_norm", "loss_dice_ce"} < line.keys()
        assert np.isfinite(list(line.values())).all()
    assert saved(tmp_path) == [2, 4, 5]  # the last one, whatever checkpoint_every says
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5
    for i, line in enumerate(printed, start=1):
        assert line.startswith(f"step {i}/5  loss {found[i - 1]['loss']:.4f}")
        assert "volumes/s" in line and line.endswith("left")


def test_the_step_compiles_exactly_once(training: Training, tmp_path: Path) -> None:
    step = make_train_step(training.build().graphdef, training.optimizer, training.cfg)
    run_loop(dataclasses.replace(training, step=step), tmp_path, steps=5, every=2)
    assert step._cache_size() == 1


def test_a_nan_stops_the_run_and_names_the_case(training: Training, tmp_path: Path) -> None:
    order = [training.batches()[i].case_id.tolist() for i in range(12)]
    late = max(
        range(len(training.cases)), key=lambda c: [c in batch for batch in order].index(True)
    )
    at = [late in batch for batch in order].index(True) + 1
    assert at > 1  # or nothing could have been saved before
    cases = list(training.cases)
    image = np.full_like(cases[late].image, np.nan)
    cases[late] = dataclasses.replace(cases[late], image=image)
    with pytest.raises(TrainingDiverged) as caught:
        run_loop(training, tmp_path, steps=12, every=1, cases=cases)
    ids = [case.id for case in training.data.train]
    assert f"step {at} is not finite for case(s) {ids[late]};" in str(caught.value)
    assert saved(tmp_path) == list(range(1, at))  # none at or after it
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, at))


def test_a_huge_learning_rate_stops_the_run_too(training: Training, tmp_path: Path) -> None:
    """Parameters overflow: every case of the batch is named."""
    burst = dataclasses.replace(training, step=_bursting(training.step))
    with pytest.raises(
        TrainingDiverged, match="lower config.optim.lr .* from the start .* --config.out="
    ):
        run_loop(burst, tmp_path, steps=6, every=1)
    assert saved(tmp_path)[-1] < 6


def _bursting(step: Any) -> Any:
    def run(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, StepMetrics]:
        state, metrics = step(state, frozen, batch)
        with jax.transfer_guard("allow"):
            trained = jax.tree.map(lambda x: x * jnp.float32(3e38), state.trained)
        return TrainState(state.step, state.seed, trained, state.opt_state), metrics

    return run


def test_a_gradient_that_is_not_finite_stops_it(training: Training, tmp_path: Path) -> None:
    def step(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, StepMetrics]:
        state, metrics = training.step(state, frozen, batch)
        return state, metrics._replace(grad_norm=np.float32(np.inf))

    with pytest.raises(TrainingDiverged, match="the gradient of step 1 is not finite"):
        run_loop(dataclasses.replace(training, step=step), tmp_path, steps=3, every=1)
    assert saved(tmp_path) == []


def test_no_silent_transfer_in_a_step(training: Training, tmp_path: Path) -> None:
    """The guard is on around the step: a NumPy argument that slipped in is an error."""

    def step(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, StepMetrics]:
        return state, jax.jit(lambda x: x + 1)(np.zeros(2, np.int32))

    with pytest.raises(Exception, match="[Dd]isallowed host-to-device transfer"):
        run_loop(dataclasses.replace(training, step=step), tmp_path, steps=1, every=1)


def test_a_killed_runs_lines_are_dropped(tmp_path: Path) -> None:
    whole = "".join(json.dumps({"step": i, "loss": 1.0}) + "\n" for i in range(1, 6))
    (tmp_path / "metrics.jsonl").write_text(whole + '{"step": 6, "lo')
    log = MetricsLog(tmp_path, resume_from=4)
    log.write(5, {"loss": 2.0})
    log.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        *((i, 1.0) for i in range(1, 5)),
        (5, 2.0),
    ]


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"5\n", b"{}\n", b'{"step": "x"}\n'])
def test_a_damaged_line_does_not_stop_a_resume(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + damage + b'{"step": 2}\n')
    MetricsLog(tmp_path, resume_from=2).close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # as if not installed
    log = MetricsLog(tmp_path, resume_from=0)
    log.write(1, {"loss": 2.0})
    log.close()
    assert lines(tmp_path) == [{"step": 1, "loss": 2.0}]
    assert not (tmp_path / "tensorboard").exists()


def test_with_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in: scalars arrive, and a resumed run's later events are purged."""
    calls: list[Any] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int):
            calls.append((Path(folder).name, purge_step))

        def add_scalar(self, *arguments: Any) -> None:
            calls.append(arguments)

        def close(self) -> None:
            calls.append("closed")

    module = types.ModuleType("tensorboardX")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    log = MetricsLog(tmp_path, resume_from=4)
    log.write(5, {"loss": 2.0})
    log.close()
    assert calls == [("tensorboard", 5), ("loss", 2.0, 5), "closed"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (61, "0:01:01"), (7322, "2:02:02")]
)
def test_time_left(seconds: float, text: str) -> None:
    assert loop._clock(seconds) == text


def test_two_batches_lie_on_the_device_ahead_of_the_one_in_use(training: Training) -> None:
    dataset, taken = training.batches(), []

    def host():
        for at in range(5):
            taken.append(at)
            yield dataset[at]

    found = []
    waits: list[float] = []
    for at, batch in enumerate(timed(prefetch(host(), training.mesh), waits)):
        assert len(taken) == min(at + 3, 5) and len(waits) == at + 1
        assert isinstance(batch.image, jax.Array)
        np.testing.assert_array_equal(batch.case_id, dataset[at].case_id)
        np.testing.assert_array_equal(batch.image, dataset[at].image)
        found.append(at)
    assert found == [0, 1, 2, 3, 4]
