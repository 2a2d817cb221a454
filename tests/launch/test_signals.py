"""SIGTERM and SIGINT really sent to a training command: it saves, ends, and resumes exactly."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from rtsam_jax.training.stopping import RunStopped, leave_on_sigterm, stop_request
from tests.launch.runs import TRAIN, Command, assert_same, losses, saved, saving
from tests.tiny import tiny_config, write_config_file

STEPS, EVERY = 32, 10


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """A folder with a config, and a run of it in `whole` that nothing disturbed."""
    folder = tmp_path_factory.mktemp("signals")
    cfg = tiny_config(
        tiny_dataset,
        steps=STEPS,
        checkpoint_every=EVERY,
        evaluate=False,
        augment__flip_axes=(0, 1),
        augment__noise=0.5,
    )
    write_config_file(folder / "config.py", cfg)
    whole = train(folder, "whole")
    assert whole.wait() == 0, whole.output[-3000:]
    return folder


def train(place: Path, run: str, *more: str) -> Command:
    return Command(place, [*TRAIN, f"--config.out={run}", *more])


def stopped_at(command: Command, name: str) -> int:
    """The step that a command says it ended at, in its only line about it."""
    (line,) = [line for line in command.output.splitlines() if line.startswith(name)]
    assert line.endswith("; the same command resumes")
    return int(line.split("step ")[1].split(";")[0])


@pytest.mark.slow
def test_a_run_that_is_stopped_again_and_again_ends_as_one_that_is_not(place: Path) -> None:
    run = place / "stopped"

    command = train(place, "stopped")
    command.when(lambda: len(losses(run)) >= 3)
    command.process.terminate()
    command.process.terminate()  # a second one changes nothing
    assert command.wait() == 0, command.output[-3000:]
    first = stopped_at(command, "SIGTERM")
    assert 3 <= first < EVERY and first == saved(run) == len(losses(run)) and not saving(run)
    assert "Traceback" not in command.output

    command = train(place, "stopped", "--preempted-status=75")
    command.when(lambda: saving(run))
    command.process.terminate()
    assert command.wait() == 75, command.output[-3000:]
    assert f"resuming at step {first}\n" in command.output
    second = stopped_at(command, "SIGTERM")
    assert EVERY < second < STEPS and second == saved(run) and not saving(run)

    command = train(place, "stopped")
    command.when(lambda: len(losses(run)) > second + 1)
    command.process.send_signal(signal.SIGINT)
    assert command.wait() == 130, command.output[-3000:]
    assert second < stopped_at(command, "SIGINT") == saved(run) < STEPS

    command = train(place, "stopped")
    assert command.wait() == 0, command.output[-3000:]
    assert_same(run, place / "whole")


@pytest.mark.slow
def test_a_run_that_is_stopped_while_it_is_scored_is_scored_again(place: Path) -> None:
    run, score = place / "scored", "--config.evaluate=True"
    command = train(place, "scored", score, "--preempted-status=75")
    command.when(lambda: "evaluated 1/2 cases" in command.output)
    command.process.terminate()
    assert command.wait() == 75, command.output[-3000:]
    assert saved(run) == STEPS and not list(run.rglob("cases.csv"))

    command = train(place, "scored", score)
    assert command.wait() == 0, command.output[-3000:]
    assert f"resuming at step {STEPS}" in command.output
    assert list(run.rglob("cases.csv"))
    assert_same(run, place / "whole")


def test_signals_wait_while_steps_are_taken() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(RunStopped) as caught, stop_request() as stop:
        stop.agree(7)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        stop.agree(8)
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
        signal.raise_signal(number)  # ignored: the exit status is decided
        signal.signal(number, handler)
    assert (caught.value.asked, caught.value.step) == (signal.SIGINT, 8)


def test_a_signal_that_nobody_asked_about_is_not_lost() -> None:
    # What a shell starts in the background ignores SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), stop_request():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_steps_sigterm_leaves_with_the_status_asked_for() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        leave_on_sigterm(75)
        with pytest.raises(RunStopped), stop_request() as stop:
            signal.raise_signal(signal.SIGTERM)
            stop.agree(3)
        leave_on_sigterm(75)
        with pytest.raises(KeyError), stop_request():
            raise KeyError
        with pytest.raises(SystemExit) as caught:
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.code == 75
        signal.raise_signal(signal.SIGTERM)  # a second one changes nothing
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("step", "where"), [(0, "before the first"), (7, "and saved at step 7")])
def test_a_run_without_a_step_does_not_claim_to_be_saved(step: int, where: str) -> None:
    assert str(RunStopped(signal.SIGTERM, step)).startswith(f"SIGTERM: stopped {where}")


def test_an_error_gives_the_signals_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyError), stop_request():
        raise KeyError
    assert signal.getsignal(signal.SIGINT) is before
