"""A trained model as a tool: a case is encoded once, then every prompt costs a decoder pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rtsam_jax.data.grid import Grid
from rtsam_jax.data.nifti import Volume
from rtsam_jax.errors import ConfigError, SessionMismatch
from rtsam_jax.prediction.confidence import REPEATS, Confidence, assess, calibrated
from rtsam_jax.prediction.given import (
    prepare_given,
    read_given_box,
    read_given_record,
)
from rtsam_jax.prediction.opened import Opened, open_scan
from rtsam_jax.prediction.predicted import NO_PROMPTS, Click, Prediction, Prompts, VolumeOrFile
from rtsam_jax.prediction.remarks import doubted, doubts
from rtsam_jax.prediction.session import (
    UNDO,
    Action,
    CaseSource,
    mask_digest,
    read_session,
    write_session,
)
from rtsam_jax.prediction.state import State
from rtsam_jax.prediction.trained import Trained, load_trained
from rtsam_jax.prompts.record import Scalar


class Segmenter:
    """A model that has one case open at a time.

    Whatever the number of a case's crops, its text and its clicks, the encoder and the decoder are
    compiled once each; the decoder once more where clicks outgrow their buffer (the 17th, the 33rd
    and so on).
    """

    def __init__(self, trained: Trained):
        self.trained = trained
        self.model = trained.click_model()
        self._state: State | None = None

    @classmethod
    def from_checkpoint(cls, folder: str | Path, *, language_model: str = "") -> Segmenter:
        """The newest checkpoint of a run, from its folder or a copy of it.

        Args:
            folder: with `model.json` and `checkpoints/`.
            language_model: where the run's lies now; "" is where it lay.

        Raises:
            RTSamError: as `load_trained` and `Trained.require_language_model`.
        """
        trained = load_trained(folder, language_model=language_model)
        trained.require_language_model()
        return cls(trained)

    @property
    def opened(self) -> Opened:
        """The case that is open; `ConfigError` if none is."""
        return self._open.opened

    @property
    def _open(self) -> State:
        if self._state is None:
            raise ConfigError("no case is open; call set_case first.")
        return self._state

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on what is not as it should be with the checkpoint or the open case."""
        said, state = [*self.trained.warnings], self._state
        if state is not None and state.lost:
            said.append(
                f"the text is longer than the language model reads and loses {state.lost} tokens."
            )
        dosed = state is not None and state.opened.scan.dmax is not None
        if dosed and self.trained.cfg.dose.source == "none":
            said.append(
                "the model was trained without doses, so the dose makes no region and places no "
                "crops; it counts only for the dose in the lesion."
            )
        return tuple(said)

    def set_case(
        self,
        image: VolumeOrFile,
        dose: VolumeOrFile | None = None,
        *,
        task: str,
        record: Mapping[str, Scalar] | None = None,
        box: np.ndarray | None = None,
        name: str = "case",
    ) -> Opened:
        """Opens a case: prepares and encodes its image, once.

        Args:
            image: a NIfTI, NRRD or MetaImage file, or a volume, in HU (CT) or any unit (MR).
                Whatever the order of its axes, it is turned to the closest RAS, as training's were,
                and results are in those axes.
            dose: likewise, on any grid; None only where there is a box, or the model is told none.
                Beside a box, or with a model that was trained without doses, it makes no region and
                places no crops, and no threshold of it is needed.
            task: one of those that the model was trained for.
            record: of the patient, for a text prompt; None is an empty one.
            box: int (2, 3), inclusive voxels of the model grid, instead of the dose's; see
                `rtsam_jax.prediction.inputs.box_on_grid`. A model that was trained with boxes
                around labels needs one.
            name: of the case, for errors.

        Raises:
            ConfigError: the model was not trained for this task; image or dose is neither; the
                box is none.
            RecordError: the record says what a prompt must not say.
            MissingFile, UnreadableFile, VolumeError, ExtraMissing: of the files; see `preprocess`.
            IncompleteCase, PromptOutside: as `open_scan` and `prepare_given`.
        """
        entry, cfg = self.trained.task(task), self.trained.cfg
        record = read_given_record(record, name, free_text=cfg.prompt.free_text)
        box = None if box is None else read_given_box(box, name)
        told = self.trained.tell(task, self.trained.prompt(task, record))
        scan, volume, files = prepare_given(
            image, dose, entry.modality, record, cfg, name=name, boxed=box is not None
        )
        opened = open_scan(
            self.model,
            scan,
            name=name,
            task=entry,
            native=Grid(volume.shape, volume.affine),
            table=told.table,
            text_id=told.text_id,
            box=box,
        )
        corners = None if box is None else box.tolist()
        source = files and CaseSource(name, task, record, *files, corners)
        self._state = State(opened, source, record, told.lost, volume, (opened.first,))
        return opened

    def set_task(self, task: str) -> Opened:
        """Another task on the open case, without prompts; its image is not encoded again.

        Raises:
            ConfigError: the model was not trained for it, or its images are of another modality.
        """
        entry, state = self.trained.task(task), self._open
        opened = state.opened
        if entry.modality != opened.task.modality:
            raise ConfigError(
                f"the task {task} is on {entry.modality}, but {opened.name} was opened for "
                f"{opened.task.name} on {opened.task.modality}; open it again with set_case."
            )
        told = self.trained.tell(task, self.trained.prompt(task, state.record))
        ids = np.full_like(opened.crops.text_id, told.text_id)
        crops = opened.crops._replace(text_id=ids, table=told.table)
        first = self.model.first(crops)
        opened = dataclasses.replace(opened, task=entry, crops=crops, first=first)
        source = state.source and dataclasses.replace(state.source, task=task)
        self._state = State(opened, source, state.record, told.lost, state.image, (first,))
        return opened

    def predict(self, prompts: Prompts = NO_PROMPTS) -> Prediction:
        """The open case with these prompts and no earlier ones; nothing is encoded.

        Raises:
            ConfigError: these are no prompts.
            PromptOutside: a click or the mask lies where the model sees nothing of the image.
            MissingFile, UnreadableFile, VolumeError: of the mask's file; see
                `rtsam_jax.prediction.inputs.read_mask`.
        """
        if not isinstance(prompts, Prompts):
            raise ConfigError(
                f"the prompts are of type {type(prompts).__name__}; give Prompts(clicks=..., "
                "mask=...)."
            )
        self._state = self._open.begun(self.model, prompts)
        return self._state.prediction

    def click(self, at_mm: tuple[float, float, float], positive: bool = True) -> Prediction:
        """One more click.

        Args:
            at_mm: world RAS+ mm.
            positive: whether the point belongs to what is segmented.

        Raises:
            ConfigError: that is no point.
            PromptOutside: the model sees nothing of the image there.
        """
        self._state = self._open.clicked(self.model, Click(at_mm, positive))
        return self._state.prediction

    def undo(self) -> Prediction:
        """Takes the last click back; `ConfigError` if there is none."""
        self._state = self._open.undone()
        return self._state.prediction

    def calibrated_probability(self) -> Volume:
        """Of the open case as it stands, as `predict` writes it: float32, on the image's own grid.

        One half stays one half; without a calibration it is what the model gives.
        """
        native = self._open.prediction.native_probability()
        return Volume(calibrated(native.array, self.trained), native.affine)

    def confidence(self, *, repeats: int = REPEATS, seed: int = 0) -> Confidence:
        """What the open case's mask, as it stands, is worth, as `predict` says it.

        Args:
            repeats: augmented ones, each of which costs what opening the case did.
            seed: of the repeats.

        Raises:
            ConfigError: no case is open; repeats or seed is no whole number, or below 0.
            UnreadableFile: the calibration is damaged.
        """
        state = self._open
        found = assess(
            self.trained,
            self.model,
            state.prediction,
            repeats=repeats,
            seed=seed,
            record=state.record,
            mask=state.mask,
        )
        return doubted(found, doubts(state.opened, state.image))

    def save(self, path: str | Path) -> None:
        """Writes the session: files' paths and digests, task, record, action log, mask's digest.

        Args:
            path: of the JSON file; written whole or not at all.

        Raises:
            ConfigError: no case is open, or a part of it or of its prompts was given as an array;
                that is no path of a file.
            NotWritable: no space, no permission, no place for a file.
        """
        write_session(path, self._open.session(self.trained.weights))

    def load(self, path: str | Path) -> Prediction:
        """Opens a saved session's case and does again what was done.

        What is open now stays open if that fails.

        Raises:
            ConfigError: that is no path of a file.
            MissingFile, UnreadableFile: of the session.
            RTSamError: of its case and clicks, as `set_case` and `click`.
            SessionMismatch: model or files are not those of the session, or another mask comes of
                it, as it may on another kind of device or with another version of JAX.
        """
        former = self._state
        try:
            return self._load(path)
        except BaseException:
            self._state = former
            raise

    def _load(self, path: str | Path) -> Prediction:
        session = read_session(path)
        if session.weights != self.trained.weights:
            raise SessionMismatch(
                f"The session {path} was saved with the weights {session.weights[:12]}, but "
                f"{self.trained.folder} has {self.trained.weights[:12]}; load it with its own."
            )
        case = session.case
        case.image.check(what="image")
        if case.dose is not None:
            case.dose.check(what="dose")
        self.set_case(
            case.image.path,
            None if case.dose is None else case.dose.path,
            task=case.task,
            record=case.record,
            box=None if case.box is None else np.array(case.box),
            name=case.name,
        )
        for action in session.actions:
            self._again(action)
        prediction = self._open.prediction
        if mask_digest(prediction.mask()) != session.mask_sha256:
            raise SessionMismatch(
                f"The session {path} leads to another mask than the one it was saved with; load it "
                "on the same kind of device with the same versions, or begin a new one."
            )
        return prediction

    def _again(self, action: Action) -> None:
        if action.action == UNDO:
            self.undo()
        elif action.at_mm is not None:
            self.click(action.at_mm, bool(action.positive))
        else:
            if action.mask is not None:
                action.mask.check(what="initial mask")
            self.predict(Prompts(mask=None if action.mask is None else action.mask.path))
