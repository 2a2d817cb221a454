"""An open case and what was done with it; every change makes another state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from rtsam_jax.data.nifti import Volume
from rtsam_jax.errors import ConfigError
from rtsam_jax.evaluation.click_model import ClickModel, Turn
from rtsam_jax.prediction.given import read_given_mask
from rtsam_jax.prediction.opened import Opened
from rtsam_jax.prediction.predicted import Click, Prediction, Prompts
from rtsam_jax.prediction.session import (
    BEGIN,
    CLICK,
    UNDO,
    Action,
    CaseSource,
    Session,
    mask_digest,
)
from rtsam_jax.prompts.record import Scalar


@dataclass(frozen=True, eq=False)
class State:
    """What a `Segmenter` holds of its case.

    Attributes:
        opened: the case, encoded.
        source: its files; None if image or dose came as an array.
        record: of the patient.
        lost: tokens of the case's text that the language model did not read.
        image: on its own grid.
        turns: the first one, and one per click that is not undone.
        actions: the log.
        mask: the initial one, if there is one.
        named: whether it, if there is one, came from a file.
    """

    opened: Opened
    source: CaseSource | None
    record: Mapping[str, Scalar]
    lost: int
    image: Volume
    turns: tuple[Turn, ...]
    actions: tuple[Action, ...] = ()
    mask: Volume | None = None
    named: bool = True

    @property
    def prediction(self) -> Prediction:
        """After the last turn."""
        turn = self.turns[-1]
        return Prediction(self.opened, turn, self.opened.probability(turn))

    def begun(self, model: ClickModel, prompts: Prompts) -> State:
        """With these prompts and no earlier ones.

        Raises:
            PromptOutside: a click or the mask lies where the model sees nothing of the image.
            MissingFile, UnreadableFile, VolumeError: of the mask's file.
        """
        mask, source, first = None, None, self.opened.first
        if prompts.mask is not None:
            mask, source = read_given_mask(prompts.mask)
            logits = self.opened.mask_prompt(mask, model.spec.mask_size)
            first = model.first(self.opened.crops, logits)
        # What was done upon a mask that no file has cannot be done again, and is not needed to.
        earlier = self.actions if self.named else ()
        state = dataclasses.replace(
            self,
            turns=(first,),
            actions=(*earlier, Action(BEGIN, mask=source)),
            mask=mask,
            named=prompts.mask is None or source is not None,
        )
        for click in prompts.clicks:
            state = state.clicked(model, click)
        return state

    def clicked(self, model: ClickModel, click: Click) -> State:
        """With one more click.

        Raises:
            PromptOutside: the model sees nothing of the image there.
        """
        keep = model.accumulate
        rows, at = self.opened.hold(click.at_mm)
        slot = len(self.turns) - 1 if keep else 0
        turn = self.turns[-1].with_room(slot + 1)
        asked = turn.with_click(rows, at, click.positive, slot, keep=keep)
        after = turn.updated(rows, model.answer(self.opened.crops.rows(rows), asked))
        action = Action(CLICK, click.at_mm, bool(click.positive))
        return dataclasses.replace(
            self, turns=(*self.turns, after), actions=(*self.actions, action)
        )

    def undone(self) -> State:
        """Without the last click; `ConfigError` if there is none."""
        if len(self.turns) < 2:
            raise ConfigError("there is no click to undo; an initial mask stays until predict.")
        return dataclasses.replace(
            self, turns=self.turns[:-1], actions=(*self.actions, Action(UNDO))
        )

    def session(self, weights: str) -> Session:
        """What a session file says of it.

        Args:
            weights: digest of the model's.

        Raises:
            ConfigError: a part of the case or of its prompts was given as an array.
        """
        if self.source is None or not self.named:
            raise ConfigError(
                "a part of the case was given as an array, which a session file cannot name; open "
                "image, dose and initial mask from their files to save the session."
            )
        return Session(weights, self.source, self.actions, mask_digest(self.prediction.mask()))
