"""Typed configuration: one dataclass per concern, units and source in the comments.

Config files (`configs/NAME.py`) return an `ExperimentConfig` from `get_config()`; the command line
overrides single fields (`--config.optim.lr=1e-4`). The classes are unfrozen, use tuples and no
optional sections, because `ml_collections.config_flags` can override only such fields; for the same
reason this module does not postpone the evaluation of its annotations.
`validate()` states the ranges.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

from rtsam_jax.errors import ConfigError


@dataclass
class ModelConfig:
    """Which network, from which weights."""

    preset: str = "vit_b_ori"  # a key of rtsam_jax.models.presets.PRESETS
    compute_dtype: str = "float32"  # "float32" | "bfloat16"; parameters are always float32
    checkpoint: str = ""  # folder written by converters.sam_med3d; "" = random initialisation
    freeze_encoder: bool = True  # Sec. 3.1
    corner_init: str = "random"  # "random" | "positive_point": start of the two box corners


@dataclass
class PromptConfig:
    """What the decoder is told besides the clicks."""

    task: str = "text"  # sentences (Sec. 3.2.1) | "embedding": learned tokens per task | "none"
    task_tokens: int = 4  # tokens per text feature or per task; the paper gives no number
    box: bool = True  # Sec. 3.2.2
    language_model: str = "weights/clinical_bert"  # folder written by converters.clinical_bert
    # What the adaptation layer gets: "sentences": each sentence's mean over its tokens; "mean" or
    # "cls" of the whole text, as the paper; "tokens": each token, which becomes one prompt token.
    pooling: str = "sentences"
    adapter_width: int = 384  # between the two linear layers of the adaptation layer
    task_texts: tuple[str, ...] = ()  # "TASK=what to segment", for tasks or wordings of your own
    variants: int = 4  # wordings per training case: the whole text, and varied ones
    sentence_dropout: float = 0.2  # share of a varied text's optional sentences that is left out
    dropout: float = 0.1  # share of training crops told the task alone, as if without a record
    free_text: bool = False  # accept notes and terms outside the vocabularies in records
    feature_cache: str = ""  # folder of text features; "" = the user's cache folder


@dataclass
class DoseConfig:
    """From a dose grid to the high-dose ROI and its box (Sec. 3.2.2)."""

    tau: float = 0.8  # threshold as a share of Dmax, Dmax over the native grid's positive voxels
    component: str = "largest"  # "largest" 26-connected component | "all"
    roi: str = "dose"  # "dose": resample the dose, then threshold | "mask": the paper's order


@dataclass
class ClickConfig:
    """Simulated clicks in training (Secs. 3.2.3, 4.1, 5.3)."""

    iterations: int = 3
    per_iteration: int = 4
    sampling: str = "uniform"  # from FN union FP | "balanced": half from each
    accumulate: bool = True  # False: only the newest clicks are given, as SAM-Med3D does
    detach_mask: bool = True  # False: gradients flow through the mask that is fed back
    threshold: float = 0.5  # probability at which a prediction counts as foreground


@dataclass
class LossConfig:
    """`L_STF` inside the ROI (Eqs. 1-4) plus Dice-CE over the whole crop."""

    dice: float = 0.7  # lambda_1 of Eq. (1)
    focal_tversky: float = 0.3  # lambda_2 of Eq. (1)
    alpha: float = 0.5  # weight of FP, Eq. (3)
    beta: float = 0.5  # weight of FN, Eq. (3)
    gamma: float = 0.75  # Eq. (3)
    epsilon: float = 1.0  # Eqs. (2), (3), in voxels
    dice_ce: float = 1.0  # whole crop; 0 is the paper's literal Eq. (1)
    iou_head: float = 0.0  # squared error of the predicted IoU
    pass_weights: tuple[float, ...] = ()  # per pass, 1 + iterations of them; () = equal


@dataclass
class DataConfig:
    """Which cases, and on what grid."""

    dataset: str = ""  # folder with dataset.json
    # "phantom" | "phantom_twins" | "openkbp": makes `dataset` if it does not exist; "" = never
    builder: str = ""
    source: str = ""  # what the builder reads (OpenKBP's folder)
    builder_cases: int = 0  # cases the builder makes; 0 = its default
    spacing_mm: float = 1.0  # isotropic model grid (Sec. 4.1)
    jitter: int = 16  # voxels; random shift of the training crop, each way
    # Reversed at random; 0 is left-right, which swaps the side words of the text, and is left out
    # for cases whose prompt names a side that cannot be swapped.
    flip_axes: tuple[int, ...] = ()
    intensity_jitter: float = 0.0  # largest random scale and shift, in standard deviations
    tasks: tuple[str, ...] = ()  # subset of the dataset's tasks; () = all
    train_split: str = "train"
    eval_split: str = "test"
    split_seed: int = 0
    inner_folds: int = 0  # > 0: hold out one patient fold of train for choices ...
    inner_fold: int = -1  # ... this one; evaluation then scores it instead of eval_split


@dataclass
class OptimConfig:
    """AdamW with MultiStepLR (Sec. 4.1)."""

    lr: float = 3e-4
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.01
    milestones: tuple[float, ...] = (0.6, 0.8)  # shares of all steps
    decay: float = 0.1  # factor at each milestone
    warmup_steps: int = 0
    clip_norm: float = 0.0  # global norm of the trainables' gradient; 0 = off


@dataclass
class MeshConfig:
    """Devices. The batch is sharded over `data`."""

    data: int = -1  # -1: all devices
    cpu_devices: int = 0  # > 0: the CPU counts as so many; a small model keeps its cores busier


@dataclass
class ExperimentConfig:
    """Everything a run depends on."""

    name: str = "experiment"
    out: str = ""  # run folder; "" = runs/<name>
    seed: int = 0
    epochs: int = 100  # Sec. 4.1
    steps: int = 0  # > 0 overrides epochs
    batch_size: int = 4  # global; Sec. 4.1
    log_every: int = 10  # steps
    checkpoint_every: int = 200  # steps
    keep_checkpoints: int = 2  # latest N; the best by training loss is kept as well
    evaluate: bool = True  # score data.eval_split at the end
    figures: int = 6  # overlays drawn at the end, spread over the Dice ranking
    model: ModelConfig = field(default_factory=ModelConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    dose: DoseConfig = field(default_factory=DoseConfig)
    click: ClickConfig = field(default_factory=ClickConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    @property
    def out_dir(self) -> str:
        return self.out or f"runs/{self.name}"

    def validate(self) -> None:
        """Raises `ConfigError` naming the first field that is out of range."""

        def need(holds: bool, name: str, rule: str) -> None:
            if not holds:
                value: Any = self
                for part in name.split("."):
                    value = getattr(value, part)
                raise ConfigError(f"config.{name} is {value!r}, but it must be {rule}.")

        choices = {
            "model.compute_dtype": ("float32", "bfloat16"),
            "model.corner_init": ("random", "positive_point"),
            "prompt.task": ("text", "embedding", "none"),
            "prompt.pooling": ("mean", "cls", "sentences", "tokens"),
            "dose.component": ("largest", "all"),
            "dose.roi": ("dose", "mask"),
            "click.sampling": ("uniform", "balanced"),
            "data.builder": ("", "phantom", "phantom_twins", "openkbp"),
        }
        for name, allowed in choices.items():
            section, key = name.split(".")
            value = getattr(getattr(self, section), key)
            need(value in allowed, name, "one of " + ", ".join(map(repr, allowed)))
        for name, value in leaf_fields(self):
            numbers = value if isinstance(value, tuple) else (value,)
            finite = all(not isinstance(x, float) or math.isfinite(x) for x in numbers)
            need(finite, name, "finite")
        need(
            not self.evaluate
            or self.data.inner_folds > 0
            or self.data.eval_split != self.data.train_split,
            "data.eval_split",
            "another split than data.train_split (or set evaluate=False)",
        )
        need(self.data.builder_cases >= 0, "data.builder_cases", "0 or more")
        positive = ("batch_size", "log_every", "checkpoint_every", "keep_checkpoints")
        for name in positive:
            need(getattr(self, name) >= 1, name, "at least 1")
        need(0 <= self.seed < 2**32, "seed", "from 0 to 2**32 - 1")
        need(self.steps >= 0, "steps", "0 or more")
        need(self.steps > 0 or self.epochs > 0, "epochs", "positive where steps is 0")
        need(self.figures >= 0, "figures", "0 or more")
        need(0 < self.dose.tau < 1, "dose.tau", "between 0 and 1")
        need(0 < self.data.spacing_mm < float("inf"), "data.spacing_mm", "a positive length in mm")
        need(self.data.jitter >= 0, "data.jitter", "0 or more voxels")
        axes = set(self.data.flip_axes)
        distinct = axes <= {0, 1, 2} and len(axes) == len(self.data.flip_axes)
        need(distinct, "data.flip_axes", "distinct axes among 0, 1, 2")
        need(0 <= self.data.intensity_jitter < 1, "data.intensity_jitter", "from 0 to below 1")
        need(bool(self.data.dataset), "data.dataset", "the folder of a dataset.json")
        need(self.mesh.cpu_devices >= 0, "mesh.cpu_devices", "0 or more")
        need(self.click.iterations >= 0, "click.iterations", "0 or more")
        need(self.click.per_iteration >= 1, "click.per_iteration", "at least 1")
        need(0 < self.optim.lr < float("inf"), "optim.lr", "positive")
        for name in ("weight_decay", "decay", "warmup_steps", "clip_norm"):
            need(getattr(self.optim, name) >= 0, f"optim.{name}", "0 or more")
        for name in ("b1", "b2"):
            need(0 <= getattr(self.optim, name) < 1, f"optim.{name}", "from 0 to below 1")
        for name in ("task_tokens", "adapter_width", "variants"):
            need(getattr(self.prompt, name) >= 1, f"prompt.{name}", "at least 1")
        for name in ("sentence_dropout", "dropout"):
            need(0 <= getattr(self.prompt, name) <= 1, f"prompt.{name}", "from 0 to 1")
        need(
            self.prompt.task != "text" or bool(self.prompt.language_model),
            "prompt.language_model",
            "a folder written by converters.clinical_bert where config.prompt.task is 'text'",
        )
        need(
            list(self.optim.milestones) == sorted(set(self.optim.milestones))
            and all(0 < m < 1 for m in self.optim.milestones),
            "optim.milestones",
            "strictly increasing shares of all steps between 0 and 1",
        )
        passes = 1 + self.click.iterations
        need(
            len(self.loss.pass_weights) in (0, passes),
            "loss.pass_weights",
            f"empty or {passes} numbers (one for the first prediction, one per click iteration)",
        )
        need(
            not self.loss.pass_weights
            or (min(self.loss.pass_weights) >= 0 and sum(self.loss.pass_weights) > 0),
            "loss.pass_weights",
            "non-negative and not all zero",
        )
        for name in ("epsilon", "gamma"):
            need(getattr(self.loss, name) > 0, f"loss.{name}", "positive")
        weights = ("dice", "focal_tversky", "dice_ce", "iou_head")
        for name in ("alpha", "beta", *weights):
            need(getattr(self.loss, name) >= 0, f"loss.{name}", "0 or more")
        need(any(getattr(self.loss, n) for n in weights), "loss.dice", "positive where no other is")
        need(0 < self.click.threshold < 1, "click.threshold", "between 0 and 1")
        inner = self.data.inner_folds
        need(inner == 0 or inner >= 2, "data.inner_folds", "0 or at least 2")
        need(
            (inner == 0 and self.data.inner_fold == -1) or 0 <= self.data.inner_fold < inner,
            "data.inner_fold",
            "a fold index below data.inner_folds, or -1 where that is 0",
        )

    def to_json(self) -> str:
        """The whole configuration; `from_dict(json.loads(...))` is its inverse."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ExperimentConfig":
        """A configuration from what a run recorded.

        Raises:
            ConfigError: a field that this version does not know.
        """
        cfg = cls()
        fields = {field.name for field in dataclasses.fields(cfg)}
        for name, value in values.items():
            if name not in fields:
                raise ConfigError(f"the recorded config.{name} is unknown to this version.")
            section = getattr(cfg, name)
            if isinstance(value, dict) and dataclasses.is_dataclass(section):
                known = {field.name for field in dataclasses.fields(section)}
                if extra := set(value) - known:
                    raise ConfigError(
                        f"the recorded config.{name}.{min(extra)} is unknown to this version."
                    )
                for key, leaf in value.items():
                    setattr(section, key, tuple(leaf) if isinstance(leaf, list) else leaf)
            else:
                setattr(cfg, name, value)
        return cfg


def leaf_fields(section: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted names and values of all fields below a configuration dataclass."""
    found: list[tuple[str, Any]] = []
    for entry in dataclasses.fields(section):
        value = getattr(section, entry.name)
        if dataclasses.is_dataclass(value):
            found += leaf_fields(value, f"{prefix}{entry.name}.")
        else:
            found.append((prefix + entry.name, value))
    return found
