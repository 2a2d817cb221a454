"""Typed configuration: one dataclass per concern, units and source in the comments.

Config files (`configs/NAME.py`) return an `ExperimentConfig` from `get_config()`; the command line
overrides single fields (`--config.optim.lr=1e-4`). The classes are unfrozen, use tuples and no
optional sections, because `ml_collections.config_flags` can override only such fields; for the same
reason this module does not postpone the evaluation of its annotations.
`rtsam_jax.config_ranges` states the ranges.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from rtsam_jax.config_ranges import check_ranges
from rtsam_jax.errors import ConfigError


@dataclass
class ModelConfig:
    """Which network, from which weights."""

    preset: str = "vit_b_ori"  # a key of rtsam_jax.models.presets.PRESETS
    compute_dtype: str = "float32"  # "float32" | "bfloat16"; parameters are always float32
    checkpoint: str = ""  # to start from: of converters.sam_med3d, or a run; "" = drawn at random
    freeze_encoder: bool = True  # Sec. 3.1
    # What a backward pass computes again instead of keeping it: "none" | "blocks", of a trained
    # encoder all but the blocks' inputs.
    remat: str = "none"
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

    # What the threshold is a share of: "dmax", the largest dose of the native grid | "d2", the dose
    # that 2 % of its irradiated voxels reach | "prescription", the record's prescription_gy |
    # "absolute", of nothing: it is `gy`. The last two need a dose in Gy.
    threshold: str = "dmax"
    tau: float = 0.8  # the share
    gy: float = 0.0  # Gy, with threshold="absolute"
    component: str = "largest"  # "largest" 26-connected component | "all"
    roi: str = "dose"  # "dose": resample the dose, then threshold | "mask": the paper's order
    margin_mm: float = 0.0  # by which the ROI, and so the box, is grown
    # Where the box comes from: "dose" | "label", for training without dose; the ROI is then the
    # label's box | "none": no box, and the whole crop is the ROI.
    source: str = "dose"
    box_jitter: int = 0  # voxels; random shift of each of the box's six sides in training


@dataclass
class ClickConfig:
    """Simulated clicks in training (Secs. 3.2.3, 4.1, 5.3)."""

    iterations: int = 3
    per_iteration: int = 4
    sampling: str = "uniform"  # from FN union FP | "balanced": half from each
    accumulate: bool = True  # False: only the newest clicks are given, as SAM-Med3D does
    detach_mask: bool = True  # False: gradients flow through the mask that is fed back
    threshold: float = 0.5  # probability at which a prediction counts as foreground
    # What a backward pass computes again: "all" of a pass | "elementwise": all but the decoder's
    # matrix products, 50 MB per pass and 128^3 crop | "none"
    remat: str = "elementwise"


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
    # "phantom" | "phantom_twins" | "openkbp" | "images_ct" | "images_mr" (bare images): makes
    # `dataset` if it does not exist; "" = never
    builder: str = ""
    source: str = ""  # what the builder reads (OpenKBP's folder, the images')
    builder_cases: int = 0  # cases the builder makes; 0 = its default
    spacing_mm: float = 1.0  # isotropic model grid (Sec. 4.1)
    interpolation: str = "linear"  # of the image | "bspline": cubic
    # Where crops lie: "dose": centred on the dose box, or tiling it where it is larger | "image":
    # tiling the body, whatever the dose; half of the training crops then hold some of the label.
    crop: str = "dose"
    jitter: int = 16  # voxels; random shift of the training crop, each way
    balance: str = "none"  # every case once per epoch | "task": every task equally often
    cache: str = ""  # folder or URL of the prepared cases; "" = prepared/ in the dataset
    cache_dtype: str = "float32"  # of its images | "float16": half the space, 3 digits
    prepare_workers: int = 0  # processes that prepare; 0 = one per core
    read_threads: int = 2  # that read prepared cases while the model trains
    tasks: tuple[str, ...] = ()  # subset of the dataset's tasks; () = all
    train_split: str = "train"
    eval_split: str = "test"
    split_seed: int = 0
    inner_folds: int = 0  # > 0: hold out one patient fold of train for choices ...
    inner_fold: int = -1  # ... this one; evaluation then scores it instead of eval_split


@dataclass
class AugmentConfig:
    """Random changes of a training crop, on the device (Sec. 4.1).

    The paper names the kinds, not the strengths. A probability of 0 leaves a change out.
    """

    # Reversed, each with probability `flip`; 0 is left-right, which swaps the side words of the
    # text, and is left out for cases whose prompt names a side that cannot be swapped.
    flip_axes: tuple[int, ...] = ()
    flip: float = 0.5
    affine: float = 0.0  # probability; rotation, scale and shear about the crop's centre
    rotation_deg: float = 15.0  # largest angle, about each axis
    scale: float = 0.1  # of the anatomy, from 1 / (1 + scale) to 1 + scale
    shear: float = 0.0  # largest, voxels per voxel
    noise: float = 0.0  # probability
    noise_std: float = 0.1  # largest; intensities have standard deviation 1
    blur: float = 0.0  # probability
    blur_sigma: float = 1.0  # largest, voxels
    gamma: float = 0.0  # probability
    gamma_range: float = 0.3  # exponents from 1 / (1 + gamma_range) to 1 + gamma_range
    intensity: float = 1.0  # probability of the next two
    intensity_scale: float = 0.0  # largest change of scale, as a share
    intensity_shift: float = 0.0  # largest shift, in standard deviations


@dataclass
class ViewsConfig:
    """Fixed views: crops drawn, augmented and encoded once (docs/embedding_cache.md)."""

    # Views of a case that training draws from in turn; 0: every draw is augmented afresh.
    per_case: int = 0
    # What is kept of them: "none", they are made again whenever they are drawn | "bfloat16" or
    # "float32": label, ROI, prompts and the frozen encoder's embedding, in this type, on disk.
    cache: str = "none"
    folder: str = ""  # folder or URL; "" = views/ in the folder of the prepared cases


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
    """Devices, as data x fsdp x tensor of them; the batch is divided over data x fsdp."""

    data: int = -1  # copies of the parameters; -1: all devices that remain
    fsdp: int = 1  # parts of the parameters and of the optimiser's state
    tensor: int = 1  # parts of the heads and of the hidden channels
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
    accumulate: int = 1  # parts of a batch that a step takes one after the other, to save memory
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
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    @property
    def out_dir(self) -> str:
        return self.out or f"runs/{self.name}"

    def validate(self) -> None:
        """Raises `ConfigError` naming the first field that is out of range."""
        check_ranges(self)

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
