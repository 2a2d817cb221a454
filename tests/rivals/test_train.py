"""A rival's training: exact resume, stops, and what a checkpoint that cannot be used says."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.selection import RunData, load_run_data
from rtsam_jax.errors import CheckpointIncomplete, TrainingDiverged
from rtsam_jax.models.presets import get_spec
from rtsam_jax.optim import learning_rate
from rtsam_jax.rivals.crops import crop_batches, make_draw
from rtsam_jax.rivals.losses import recipe
from rtsam_jax.rivals.networks import Rival
from rtsam_jax.rivals.train import CHECKPOINT, Trainer, train
from rtsam_jax.training.run import prepare_training
from rtsam_jax.training.stopping import RunStopped, StopRequest
from tests.rivals import needs
from tests.tiny import tiny_config

torch = needs.torch()
grain.config.update("py_debug_mode", False)

STEPS = 4
QUICKEST = "dynunet"


@dataclass
class Run:
    """What the command puts together, for as many starts as a test asks for."""

    cfg: ExperimentConfig
    data: RunData
    cases: Any

    def trainer(self, folder: Path, name: str = "segresnet") -> Trainer:
        size = get_spec(self.cfg.model.preset).image_size
        rival = Rival(name, size=size, tasks=len(self.data.tasks), width=0.01, seed=self.cfg.seed)
        return Trainer(rival, self.cfg.optim, recipe("dice_ce", self.cfg.loss), folder)

    def train(
        self,
        folder: Path,
        *,
        stop: StopRequest | None = None,
        cases: Sequence[Any] | None = None,
        name: str = "segresnet",
    ) -> Trainer:
        """A start: from the newest checkpoint in `folder` to the last step."""
        cfg = dataclasses.replace(self.cfg, out=str(folder))
        trainer = self.trainer(folder, name)
        train(
            trainer,
            crop_batches(cfg, self.data, cases if cases is not None else self.cases),
            cfg,
            steps=STEPS,
            case_names=[case.id for case in self.data.train],
            stop=stop or StopRequest(),
        )
        return trainer


@pytest.fixture(scope="module")
def run(tiny_dataset: Path) -> Run:
    cfg = tiny_config(
        tiny_dataset,
        steps=STEPS,
        checkpoint_every=2,
        log_every=3,
        augment__flip_axes=(0,),
        optim__milestones=(0.5,),
        optim__clip_norm=0.1,
    )
    data = load_run_data(cfg)
    return Run(cfg, data, prepare_training(cfg, data))


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer]:
    """An uninterrupted run; `printed.txt` is what it said."""
    folder = tmp_path_factory.mktemp("whole")
    with (folder / "printed.txt").open("w") as file, redirect_stdout(file):
        trainer = run.train(folder)
    return folder, trainer


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(trainer: Trainer) -> Any:
    return torch.cat([x.flatten().double() for x in trainer.rival.module.state_dict().values()])


class Killed(Exception):
    """Stands for the end of the process in the middle of a step."""


def test_a_killed_run_goes_on_bit_by_bit(
    run: Run, whole: tuple[Path, Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer.update

    def update(self: Trainer, *arguments: float) -> None:
        if self.step == 3:
            raise Killed
        real(self, *arguments)

    monkeypatch.setattr(Trainer, "update", update)
    with pytest.raises(Killed):
        run.train(tmp_path)
    monkeypatch.undo()
    assert run.trainer(tmp_path).step == 2
    resumed, (folder, uninterrupted) = run.train(tmp_path), whole
    assert resumed.step == uninterrupted.step == STEPS
    assert torch.equal(weights(resumed), weights(uninterrupted))
    assert lines(tmp_path) == lines(folder)
    assert resumed.seconds > 0
    assert [path.name for path in tmp_path.glob(".*part*")] == []


def test_a_finished_run_takes_no_step_again(run: Run, whole: tuple[Path, Trainer]) -> None:
    folder, trainer = whole
    before = lines(folder)
    again = run.train(folder)
    assert torch.equal(weights(again), weights(trainer)) and lines(folder) == before


def test_what_is_logged(run: Run, whole: tuple[Path, Trainer]) -> None:
    folder, _ = whole
    found = lines(folder)
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    schedule = learning_rate(run.cfg.optim, STEPS)
    assert [line["lr"] for line in found] == [float(schedule(step)) for step in range(STEPS)]
    assert len({line["lr"] for line in found}) == 2  # the milestone was met
    for line in found:
        assert {"loss", "dice", "grad_norm"} < line.keys() and 0 <= line["dice"] <= 1
        assert np.isfinite(list(line.values())).all()
    printed = (folder / "printed.txt").read_text().splitlines()
    assert [line.split()[2] for line in printed] == ["3/4", "4/4"]
    assert all(line.startswith("SegResNet  step") and line.endswith("left") for line in printed)


def test_a_signal_saves_the_step_and_stops(run: Run, tmp_path: Path) -> None:
    stop = StopRequest()
    stop.asked = signal.SIGTERM
    with pytest.raises(RunStopped, match="saved at step 1"):
        run.train(tmp_path, stop=stop, name=QUICKEST)
    assert run.trainer(tmp_path, QUICKEST).step == 1


def test_a_nan_stops_the_run_before_its_step_and_names_the_case(run: Run, tmp_path: Path) -> None:
    order = [crop_batches(run.cfg, run.data, run.cases)[i].case_id for i in range(STEPS)]
    late = max(range(len(run.cases)), key=lambda c: [c in ids for ids in order].index(True))
    at = [late in ids for ids in order].index(True) + 1

    class Spoilt(list):
        task_ids = run.cases.task_ids

    cases = Spoilt(run.cases)
    image = np.full_like(cases[late].image, np.nan)
    cases[late] = dataclasses.replace(cases[late], image=image)
    with pytest.raises(TrainingDiverged) as caught:
        run.train(tmp_path, cases=cases, name=QUICKEST)
    name = run.data.train[late].id
    assert f"step {at} is not finite for case(s) {name};" in str(caught.value)
    assert "--out FOLDER" in str(caught.value)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, at))
    assert weights(run.trainer(tmp_path, QUICKEST)).isfinite().all()


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_checkpoint_is_named(
    run: Run, whole: tuple[Path, Trainer], tmp_path: Path, damage: str
) -> None:
    content = (whole[0] / CHECKPOINT).read_bytes()
    if damage == "cut":
        content = content[: len(content) // 2]
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(CheckpointIncomplete, match=r"checkpoint\.pt cannot be read .*delete"):
        run.trainer(tmp_path, "segresnet" if damage == "cut" else "dynunet")


def test_parts_of_a_batch_sum_to_its_gradient(run: Run, tmp_path: Path) -> None:
    trainer = run.trainer(tmp_path, QUICKEST)  # neither dropout nor statistics of the batch
    cfg = dataclasses.replace(run.cfg, batch_size=3)
    image, view = make_draw(cfg)(crop_batches(cfg, run.data, run.cases)[0], 0)

    def gradient(parts: int) -> tuple[Any, Any]:
        found = trainer.gradients(image, view, parts)
        return found, torch.cat([p.grad.flatten() for p in trainer.rival.module.parameters()])

    (whole, expected), (halves, found) = gradient(1), gradient(2)
    np.testing.assert_allclose(halves.case_loss, whole.case_loss, rtol=1e-5)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    assert whole.grad_norm == pytest.approx(float(expected.norm()), rel=1e-4)


def test_rows_that_only_fill_a_batch_up_count_for_nothing(run: Run, tmp_path: Path) -> None:
    trainer = run.trainer(tmp_path, QUICKEST)
    image, view = make_draw(run.cfg)(crop_batches(run.cfg, run.data, run.cases)[0], 0)
    one = view._replace(weight=np.array([0.0, 1.0], np.float32))
    found, both = trainer.gradients(image, one), trainer.gradients(image, view)
    assert found.case_loss.tolist() == [pytest.approx(both.case_loss[1], rel=1e-5)]
    assert found.loss == found.case_loss[0] != both.loss


def test_clipping_bounds_the_steps_gradient(run: Run, tmp_path: Path) -> None:
    trainer = run.trainer(tmp_path, QUICKEST)
    image, view = make_draw(run.cfg)(crop_batches(run.cfg, run.data, run.cases)[0], 0)
    trainer.clip_norm = 1e-3
    norm = trainer.gradients(image, view).grad_norm
    assert norm > trainer.clip_norm
    trainer.update(0.0, norm)
    clipped = torch.cat([p.grad.flatten() for p in trainer.rival.module.parameters()])
    assert float(clipped.norm()) == pytest.approx(trainer.clip_norm, rel=1e-3)
