"""Our model's runs beside the rivals': their measures, and whether they were trained alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import jax
from flax import nnx

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.config_ranges import leaf_fields
from rtsam_jax.data.import_folder import some
from rtsam_jax.data.selection import RunData
from rtsam_jax.errors import ConfigError, MissingFile
from rtsam_jax.evaluation.scored_cases import ScoredCases
from rtsam_jax.metrics.case import CaseMetrics
from rtsam_jax.report.tables import read_cases
from rtsam_jax.text.language_model import describe
from rtsam_jax.training.model_file import is_run
from rtsam_jax.training.restored import load_run_config
from rtsam_jax.training.rules import trained_filter
from rtsam_jax.training.run import changed_settings, read_record
from rtsam_jax.training.state import make_model
from rtsam_jax.training.stored import newest_step
from rtsam_jax.training.time_taken import training_seconds

# What decides which crops a model trains on, and for how long.
_SHARED = re.compile(
    r"steps|epochs|batch_size|views\.per_case|(dose|augment|optim)\..*|model\.preset"
    r"|data\.(spacing_mm|interpolation|crop|jitter|balance|tasks|train_split|split_seed"
    r"|inner_folds?)"
)
# In what runs of one model may differ from seed to seed. The dataset's place may be another where
# they were trained on several machines; their cases are compared.
_BY_SEED = {"seed", "name", "model.checkpoint", "data.dataset"}


@dataclass(frozen=True)
class Start:
    """What a run's parameters come from: the `config.model.checkpoint` of it or of an ancestor.

    Attributes:
        folder: of a run, or of weights from elsewhere.
        steps: of the run; None of other weights.
        seconds: that it was trained for; None where that is not known.
        same_cases: whether it was trained on the same cases; None where that is not known, as of
            other weights and of runs of earlier versions.
    """

    folder: Path
    steps: int | None
    seconds: float | None
    same_cases: bool | None


@dataclass(frozen=True)
class OurRun:
    """One run of our model, scored."""

    folder: Path
    cfg: ExperimentConfig
    cases: Sequence[CaseMetrics]

    @property
    def seconds(self) -> float | None:
        """Of training; None where it was trained by a version that did not note it."""
        return training_seconds(self.folder)

    @cached_property
    def starts(self) -> list[Start]:
        """Where its parameters come from, the first start first; none if from random ones."""
        own, found, cfg = read_record(self.folder).get("train_cases"), list[Start](), self.cfg
        while cfg.model.checkpoint:
            folder = Path(cfg.model.checkpoint)
            if not is_run(folder):
                return [Start(folder, None, None, None), *found]
            theirs = read_record(folder).get("train_cases")
            same = theirs == own if own and theirs else None
            found.insert(0, Start(folder, newest_step(folder), training_seconds(folder), same))
            cfg = load_run_config(folder)
        return found

    @property
    def device(self) -> str:
        """What it was trained on."""
        return ", ".join(read_record(self.folder).get("devices", ())) or "-"

    @property
    def sees(self) -> str:
        """What it is given besides the image."""
        prompt = self.cfg.prompt
        task = {"text": "record and task as text", "embedding": "task", "none": ""}[prompt.task]
        return ", ".join(filter(None, ["image", task, "dose box" if prompt.box else ""]))

    def parameters(self, tasks: int) -> int | None:
        """How many numbers the network holds, a frozen encoder's among them.

        Returns:
            None where the language model, which a width depends on, is not where it was.
        """
        width, prompt = 0, self.cfg.prompt
        if prompt.task == "text":
            try:
                width = describe(Path(prompt.language_model)).spec.width
            except MissingFile:
                return None
        model = nnx.eval_shape(lambda: make_model(self.cfg, tasks, width))
        held = nnx.state(model, trained_filter(freeze_encoder=False))
        return sum(leaf.size for leaf in jax.tree.leaves(held))

    def trained_otherwise(self, cfg: ExperimentConfig) -> list[str]:
        """What differs from the rivals' config of all that they should share.

        Steps of the runs that it starts from count as its own.
        """
        here, before = dict(leaf_fields(cfg)), [start.steps for start in self.starts if start.steps]
        differs = []
        for name, value in leaf_fields(self.cfg):
            if not _SHARED.fullmatch(name):
                continue
            if name == "steps" and value and before:
                if sum(before) + value != here[name]:
                    said = " + ".join(map(str, (*before, value)))
                    differs.append(f"steps ({said}, rivals {here[name]})")
            elif value != here[name]:
                differs.append(f"{name} ({value!r}, rivals {here[name]!r})")
        return differs


def read_ours(
    folders: Sequence[Path], data: RunData, seeds: Sequence[int], held_out: ScoredCases
) -> list[OurRun]:
    """The runs in the order of `seeds`.

    Raises:
        MissingFile, UnreadableFile: a folder is no run's, or the run is not scored on the split.
        ConfigError: other seeds than the rivals, or one twice; runs of several models; a run on
            another dataset, or scored on other cases or files.
    """
    runs: dict[int, OurRun] = {}
    for folder in folders:
        cfg = load_run_config(folder)
        run = OurRun(folder, cfg, _read_scored(folder, cfg, data, held_out))
        if twin := runs.get(cfg.seed):
            raise ConfigError(
                f"--ours has two runs of config.seed {cfg.seed}, {twin.folder} and {folder}; give "
                f"one run for each seed."
            )
        for other in [*runs.values()][:1]:
            changed = set(changed_settings(asdict(other.cfg), asdict(cfg))) - _BY_SEED
            if changed:
                raise ConfigError(
                    f"{folder} was trained with other settings than {other.folder} "
                    f"({', '.join(sorted(changed)[:4])}), so they are not one model; give --ours "
                    f"runs that differ in their seed alone."
                )
        runs[cfg.seed] = run
    if folders and sorted(runs) != sorted(seeds):
        raise ConfigError(
            f"--ours has runs of config.seed {sorted(runs)}, but --seeds is {sorted(seeds)}; give "
            f"one run for each seed."
        )
    return [runs[seed] for seed in seeds if runs]


def _read_scored(
    folder: Path, cfg: ExperimentConfig, data: RunData, held_out: ScoredCases
) -> list[CaseMetrics]:
    """A run's measures of the cases that the rivals are scored on."""
    results = folder / "evaluation" / data.held_out_name
    elsewhere = Path(cfg.data.dataset).resolve() != data.dataset.root.resolve()
    changed: list[str] = []
    if (results / "cases.csv").is_file() or not elsewhere:
        cases = read_cases(results / "cases.csv")
        if not (changed := held_out.changed_since(results, cases)):
            return cases
    if elsewhere:
        raise ConfigError(
            f"{folder} is a run on {cfg.data.dataset}, not scored on the split "
            f"{data.held_out_name!r} of {data.dataset.root} as the rivals are; give --ours runs on "
            f"that dataset."
        )
    raise ConfigError(
        f"{folder} is scored on other cases than the split {data.held_out_name!r} of "
        f"{data.dataset.root} now has, or on other files of theirs ({some(changed)}); evaluate it "
        f"again on the dataset as it is."
    )
