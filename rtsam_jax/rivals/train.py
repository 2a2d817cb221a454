"""Trains a rival on our model's batches, with its schedule and number of steps, in PyTorch.

Whatever a step draws derives from (seed, step), and a checkpoint holds the rest: on a CPU a run
that was killed goes on bit by bit as if it had not been.
"""

from __future__ import annotations

import datetime
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from numpy.random import SeedSequence

from rtsam_jax.config import ExperimentConfig, LossConfig, OptimConfig
from rtsam_jax.data.pipeline import batches_from
from rtsam_jax.data.sample import View
from rtsam_jax.errors import CheckpointIncomplete
from rtsam_jax.optim import learning_rate
from rtsam_jax.report.files import written_whole
from rtsam_jax.rivals.crops import make_draw
from rtsam_jax.rivals.losses import segmentation_loss
from rtsam_jax.rivals.networks import Rival
from rtsam_jax.training.loop import MetricsLog, require_finite
from rtsam_jax.training.stopping import RunStopped, StopRequest

CHECKPOINT = "checkpoint.pt"


class StepResult(NamedTuple):
    """What a step found, on the host."""

    loss: float  # mean over the rows
    case_loss: np.ndarray  # [B]
    dice: float  # of the thresholded prediction, mean over the rows
    grad_norm: float  # before it is clipped


class Trainer:
    """A rival, its optimiser, and how far both are.

    Args:
        loss: of `rtsam_jax.rivals.losses.recipe`.
        folder: of the run; a checkpoint in it is gone on from.

    Raises:
        CheckpointIncomplete: the checkpoint is damaged.
    """

    def __init__(self, rival: Rival, optim: OptimConfig, loss: LossConfig, folder: Path):
        self.rival, self.loss, self.clip_norm = rival, loss, optim.clip_norm
        self.optimizer = rival.torch.optim.AdamW(
            rival.module.parameters(),
            lr=optim.lr,
            betas=(optim.b1, optim.b2),
            weight_decay=optim.weight_decay,
        )
        self.step, self.seconds = 0, 0.0  # seconds of training, of all starts together
        self._checkpoint = folder / CHECKPOINT
        if self._checkpoint.exists():
            self._restore()

    def save(self) -> None:
        """Writes the checkpoint, whole or not at all."""
        content = {
            "step": self.step,
            "seconds": self.seconds,
            "module": self.rival.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with written_whole(self._checkpoint) as beside:
            self.rival.torch.save(content, beside)

    def _restore(self) -> None:
        try:
            content = self.rival.torch.load(
                self._checkpoint, map_location=self.rival.device, weights_only=True
            )
            self.rival.module.load_state_dict(content["module"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.step, self.seconds = int(content["step"]), float(content["seconds"])
        except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as cause:
            reason = " ".join(str(cause).split())
            raise CheckpointIncomplete(
                f"{self._checkpoint} cannot be read ({reason[:200]}); delete its folder to train "
                f"this rival again."
            ) from cause

    def gradients(self, image: Any, view: View, parts: int = 1) -> StepResult:
        """Leaves the mean loss's gradient in the parameters.

        Args:
            image: [B, S, S, S, 1], of `rtsam_jax.rivals.crops.make_draw`.
            view: its view; rows of weight 0 are left out.
            parts: that the rows are taken in, one after the other, to save memory.
        """
        torch, rival = self.rival.torch, self.rival
        counted = np.flatnonzero(np.asarray(view.weight))
        rows = [np.asarray(x)[counted] for x in (image[..., 0], view.label, view.roi)]
        tasks = np.asarray(view.text_id)[counted].astype(np.int64)
        rival.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        case_loss, dice = np.empty(len(counted)), np.empty(len(counted))
        for part in range(min(parts, len(counted))):
            own = slice(part, None, parts)
            x, label, roi, task = (rival.tensor(array[own]) for array in (*rows, tasks))
            logits = rival.logits(x, roi, task)
            loss = segmentation_loss(logits, label, roi, self.loss)
            (loss.sum() / len(counted)).backward()
            case_loss[own] = loss.detach().cpu().numpy()
            dice[own] = _dice(logits.detach() >= 0, label != 0).cpu().numpy()
        gradients = [p.grad for p in rival.module.parameters() if p.grad is not None]
        norm = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
        return StepResult(float(case_loss.mean()), case_loss, float(dice.mean()), norm)

    def update(self, lr: float, grad_norm: float) -> None:
        """Takes the step that the gradients ask for."""
        if self.clip_norm and grad_norm > self.clip_norm:
            for parameter in self.rival.module.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(self.clip_norm / grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.step += 1


def train(
    trainer: Trainer,
    batches: grain.MapDataset,
    cfg: ExperimentConfig,
    *,
    steps: int,
    case_names: Sequence[str],
    stop: StopRequest,
) -> None:
    """Takes the steps that are left, logs each, and saves as often as the config says.

    Args:
        batches: of `rtsam_jax.rivals.crops.crop_batches`.
        cfg: `cfg.out_dir` is the run's folder.
        case_names: by `Sample.case_id`, for error messages.

    Raises:
        RunStopped: a signal came; the step is saved.
        TrainingDiverged: at the first loss or gradient that is not finite; its step is not taken.
    """
    rival, start = trainer.rival, trainer.step
    schedule, draw = learning_rate(cfg.optim, steps), make_draw(cfg)
    log = MetricsLog(Path(cfg.out_dir), resume_from=start)
    began, before, recent = time.monotonic(), trainer.seconds, []
    try:
        for batch in batches_from(batches, start, steps, threads=cfg.data.read_threads):
            step = trainer.step + 1
            drawn = SeedSequence([cfg.seed, step]).generate_state(1)
            rival.torch.manual_seed(int(drawn[0]))  # dropout
            image, view = draw(batch, trainer.step)
            found = trainer.gradients(image, view, cfg.accumulate)
            require_finite(
                found.case_loss,
                found.grad_norm,
                np.asarray(view.case_id)[np.asarray(view.weight) != 0],
                step=step,
                names=case_names,
                option="--out FOLDER",
            )
            lr = float(schedule(trainer.step))
            trainer.update(lr, found.grad_norm)
            trainer.seconds = before + time.monotonic() - began
            values = {"loss": found.loss, "dice": found.dice, "lr": lr}
            log.write(step, {**values, "grad_norm": found.grad_norm})
            recent.append(found)
            if step % cfg.log_every == 0 or step == steps:
                rate = (step - start) / max(time.monotonic() - began, 1e-9)
                _report(rival.title, step, steps, recent, rate, cfg.batch_size)
                recent.clear()
            if stop.asked or step % cfg.checkpoint_every == 0 or step == steps:
                trainer.save()
            if stop.asked:
                raise RunStopped(stop.asked, step)
    finally:
        log.close()


def _dice(predicted: Any, truth: Any) -> Any:
    """Dice by row, 1 where both masks are empty."""
    voxels = (1, 2, 3)
    total = predicted.sum(voxels) + truth.sum(voxels)
    return (2 * (predicted & truth).sum(voxels)).where(total > 0, 1) / total.clamp(min=1)


def _report(
    title: str, step: int, steps: int, recent: Sequence[StepResult], rate: float, rows: int
) -> None:
    loss, dice = (float(np.mean([getattr(r, name) for r in recent])) for name in ("loss", "dice"))
    left = datetime.timedelta(seconds=int((steps - step) / rate))
    print(
        f"{title}  step {step}/{steps}  loss {loss:.4f}  Dice {dice:.3f}  "
        f"{rate * rows:.2f} volumes/s  {left} left",
        flush=True,
    )
