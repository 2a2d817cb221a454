"""A trained model from its folder alone: what it is, its parameters, what it may be told."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from rtsam_jax.config import ExperimentConfig, MeshConfig
from rtsam_jax.data.preprocess import PreprocessSpec
from rtsam_jax.errors import CheckpointError, CheckpointIncomplete, ConfigError, MissingFile
from rtsam_jax.evaluation.click_model import ClickModel
from rtsam_jax.models.presets import get_spec
from rtsam_jax.models.sam3d import SAM3D
from rtsam_jax.models.text_adapter import TextTable
from rtsam_jax.prediction.calibration import Calibration
from rtsam_jax.prediction.distance import Reference
from rtsam_jax.prompts.record import Scalar
from rtsam_jax.prompts.text import Text, write_prompt
from rtsam_jax.text.language_model import describe
from rtsam_jax.text.prompt_set import encode_texts, make_table
from rtsam_jax.training.model_file import ModelFile, TaskEntry, read_model_file
from rtsam_jax.training.sharding import make_mesh
from rtsam_jax.training.state import abstract_model
from rtsam_jax.training.stored import restore_params
from rtsam_jax.weights import flatten

# By pooling, what a table's length is a multiple of, so that texts of other lengths compile
# nothing. A prompt has the task's sentence and at most 23 of its record.
_LENGTHS = {"mean": 1, "cls": 1, "sentences": 24, "tokens": 128}


class Told(NamedTuple):
    """A text prompt as the model takes it."""

    table: TextTable | None  # of one row, on the host; None where the model takes no text
    text_id: int  # its row, or the index of the task
    lost: int  # tokens beyond the longest text that the language model reads


@dataclass(frozen=True, eq=False)
class Trained:
    """A run's newest checkpoint, ready to predict.

    Attributes:
        folder: of the run, or of a copy of its `model.json` and `checkpoints/`.
        about: what its `model.json` says.
        cfg: `about.config`, its language model where that lies now.
        graphdef: with `params` the model, by `nnx.merge`.
        params: on one device.
        step: of the checkpoint.
        weights: SHA-256 over the parameters' names and bytes, hex.
        calibration: of `about`, where it was fitted on these weights.
        warnings: sentences on what is not as it should be.
    """

    folder: Path
    about: ModelFile
    cfg: ExperimentConfig
    graphdef: nnx.GraphDef[SAM3D]
    params: nnx.State
    step: int
    weights: str
    calibration: dict[str, Any] | None
    warnings: tuple[str, ...]

    @functools.cached_property
    def known(self) -> Calibration | None:
        """`calibration` as what it says; `UnreadableFile` if it is damaged."""
        return None if self.calibration is None else Calibration.from_dict(self.calibration)

    @functools.cached_property
    def reference(self) -> Reference | None:
        """The training cases that distances are measured from; None where there are none.

        Raises:
            UnreadableFile: the calibration is damaged, or the file that it names not there or
                another one.
        """
        arrays = None if self.known is None else self.known.arrays
        return None if arrays is None else Reference.read(self.folder, arrays)

    @property
    def spec(self) -> PreprocessSpec:
        """How images are prepared."""
        return PreprocessSpec.from_config(self.cfg)

    @property
    def size(self) -> int:
        """Edge of a crop in voxels of the model grid."""
        return get_spec(self.cfg.model.preset).image_size

    def task(self, name: str) -> TaskEntry:
        """The task of that name; `ConfigError` lists the tasks if there is none such."""
        for task in self.about.tasks:
            if task.name == name:
                return task
        known = ", ".join(task.name for task in self.about.tasks)
        raise ConfigError(
            f"{self.folder} was not trained for the task {name!r}; name one of {known}."
        )

    def prompt(self, task: str, record: Mapping[str, Scalar]) -> Text:
        """The sentences that a case is told, as `rtsam_jax.prompts.text` writes them.

        Args:
            task: its name.
            record: that `check_record` accepts; {} tells the task alone.
        """
        return write_prompt(self.task(task).sentence, record)

    def tell(self, task: str, text: Text) -> Told:
        """A text as the model takes it; where it takes none, the task's index.

        Args:
            task: its name.
            text: of `prompt`, or another of its kind.

        Raises:
            MissingFile, CheckpointError: as `require_language_model`.
            ExtraMissing: see `rtsam_jax.text.language_model.load_language_model`.
        """
        if self.cfg.prompt.task != "text":
            return Told(None, self.about.tasks.index(self.task(task)), 0)
        self.require_language_model()
        [feature] = encode_texts([text], self.cfg.prompt)
        table = make_table([feature], multiple=_LENGTHS[self.cfg.prompt.pooling])
        return Told(table, 0, feature.lost)

    def text(self, task: str, record: Mapping[str, Scalar]) -> tuple[TextTable | None, int]:
        """`tell` what `prompt` says: the table and the row, or None and the task's index."""
        told = self.tell(task, self.prompt(task, record))
        return told.table, told.text_id

    def require_language_model(self) -> None:
        """Sees that the language model is there that the texts' features came from, if any did.

        Raises:
            MissingFile: it is not where the configuration says.
            CheckpointError: that is another one.
        """
        if self.cfg.prompt.task != "text":
            return
        place, wanted = Path(self.cfg.prompt.language_model), str(self.about.language_model)
        if not place.is_dir():
            raise MissingFile(
                f"{self.folder} was trained on texts that the language model {wanted[:12]} reads, "
                f"which is not in {place}; name its folder with --language-model."
            )
        if (found := describe(place).digest) != wanted:
            raise CheckpointError(
                f"{self.folder} was trained on texts that the language model {wanted[:12]} reads, "
                f"but {place} holds {found[:12]}; name the right folder with --language-model."
            )

    def click_model(self, *, clicks: int = 16, batch: int = 1) -> ClickModel:
        """The model as a tool that takes clicks.

        Args:
            clicks: slots of the buffer at first.
            batch: rows per call of the decoder; 1 is one program for all cases, whatever the number
                of their crops.
        """
        return ClickModel(self.graphdef, self.params, self.cfg, clicks=clicks, batch=batch)


def load_trained(folder: str | Path, *, language_model: str = "") -> Trained:
    """The newest checkpoint of a run, from the run's folder or a copy.

    Args:
        folder: with `model.json` and `checkpoints/`; it is only read.
        language_model: where the run's lies now; "" is where it lay.

    Raises:
        ConfigError: folder or language model is no path.
        MissingFile, UnreadableFile, CheckpointError, PresetMismatch: of `model.json`; see
            `read_model_file`; the checkpoint is of another model than it.
        CheckpointIncomplete: there is no finished checkpoint, or it is damaged.
    """
    for what, given in (("folder", folder), ("language model", language_model or "")):
        if not isinstance(given, str | Path):
            raise ConfigError(f"the {what} of a run is given as {given!r}; give a path.")
    folder = Path(folder)
    about = read_model_file(folder)
    cfg = about.config
    if language_model:
        cfg.prompt.language_model = language_model
    mesh = make_mesh(MeshConfig(data=1), 1)
    graphdef, params = abstract_model(cfg, len(about.tasks), mesh, text_width=about.text_width)
    step, weights = restore_params(folder, params)
    _require_finite(folder, step, params)
    calibration, warnings = about.calibration, []
    if calibration is not None and calibration.get("weights") != weights:
        calibration = None
        warnings.append(
            f"the calibration in {folder} was fitted on other weights and is not used; run "
            "`python -m rtsam_jax.evaluate --calibrate` again."
        )
    return Trained(
        folder, about, cfg, graphdef, params, step, weights, calibration, tuple(warnings)
    )


def _require_finite(folder: Path, step: int, params: nnx.State) -> None:
    """Raises `CheckpointIncomplete` where a parameter is NaN or infinite: all masks would be."""
    for name, leaf in sorted(flatten(nnx.to_pure_dict(params)).items()):
        if not np.isfinite(jax.device_get(leaf)).all():
            raise CheckpointIncomplete(
                f"checkpoint {step} in {folder} is damaged: {name} holds values that are NaN or "
                "infinite; bring it back from a copy."
            )
