"""The ranges of the configuration: what a value may be, and the sentence where it is not."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from rtsam_jax.errors import ConfigError

if TYPE_CHECKING:  # config imports this module
    from rtsam_jax.config import ExperimentConfig


def check_ranges(cfg: ExperimentConfig) -> None:
    """Raises `ConfigError` naming the first field that is out of range."""

    def need(holds: bool, name: str, rule: str) -> None:
        if not holds:
            value: Any = cfg
            for part in name.split("."):
                value = getattr(value, part)
            raise ConfigError(f"config.{name} is {value!r}, but it must be {rule}.")

    choices = {
        "model.compute_dtype": ("float32", "bfloat16"),
        "model.remat": ("none", "blocks"),
        "model.corner_init": ("random", "positive_point"),
        "prompt.task": ("text", "embedding", "none"),
        "prompt.pooling": ("mean", "cls", "sentences", "tokens"),
        "dose.component": ("largest", "all"),
        "dose.roi": ("dose", "mask"),
        "click.sampling": ("uniform", "balanced"),
        "click.remat": ("all", "elementwise", "none"),
        "dose.threshold": ("dmax", "d2", "prescription", "absolute"),
        "dose.source": ("dose", "label", "none"),
        "data.builder": ("", "phantom", "phantom_twins", "openkbp", "images_ct", "images_mr"),
        "data.interpolation": ("linear", "bspline"),
        "data.crop": ("dose", "image"),
        "data.balance": ("none", "task"),
        "data.cache_dtype": ("float32", "float16"),
        "views.cache": ("none", "bfloat16", "float32"),
    }
    for name, allowed in choices.items():
        section, key = name.split(".")
        value = getattr(getattr(cfg, section), key)
        need(value in allowed, name, "one of " + ", ".join(map(repr, allowed)))
    for name, value in leaf_fields(cfg):
        numbers = value if isinstance(value, tuple) else (value,)
        finite = all(not isinstance(x, float) or math.isfinite(x) for x in numbers)
        need(finite, name, "finite")
    need(
        not cfg.evaluate or cfg.data.inner_folds > 0 or cfg.data.eval_split != cfg.data.train_split,
        "data.eval_split",
        "another split than data.train_split (or set evaluate=False)",
    )
    need(cfg.data.builder_cases >= 0, "data.builder_cases", "0 or more")
    positive = ("batch_size", "accumulate", "log_every", "checkpoint_every", "keep_checkpoints")
    for name in positive:
        need(getattr(cfg, name) >= 1, name, "at least 1")
    need(0 <= cfg.seed < 2**32, "seed", "from 0 to 2**32 - 1")
    need(cfg.steps >= 0, "steps", "0 or more")
    need(cfg.steps > 0 or cfg.epochs > 0, "epochs", "positive where steps is 0")
    need(cfg.figures >= 0, "figures", "0 or more")
    # Of Dmax, 1 would leave a voxel; of a prescription, plans deliver up to a fifth more.
    most_tau = 1.0 if cfg.dose.threshold == "dmax" else 1.2
    need(0 < cfg.dose.tau < most_tau, "dose.tau", f"between 0 and {most_tau:g}")
    need(0 < cfg.data.spacing_mm < float("inf"), "data.spacing_mm", "a positive length in mm")
    need(cfg.data.jitter >= 0, "data.jitter", "0 or more voxels")
    axes = set(cfg.augment.flip_axes)
    distinct = axes <= {0, 1, 2} and len(axes) == len(cfg.augment.flip_axes)
    need(distinct, "augment.flip_axes", "distinct axes among 0, 1, 2")
    for name in ("flip", "affine", "noise", "blur", "gamma", "intensity"):
        need(0 <= getattr(cfg.augment, name) <= 1, f"augment.{name}", "a probability, 0 to 1")
    largest = {
        "rotation_deg": 180,
        "scale": 1,
        "shear": 1,
        "noise_std": 10,
        "blur_sigma": 3,
        "gamma_range": 9,
        "intensity_scale": 0.99,
        "intensity_shift": 10,
    }
    for name, most in largest.items():
        need(0 <= getattr(cfg.augment, name) <= most, f"augment.{name}", f"from 0 to {most}")
    need(0 <= cfg.views.per_case <= 10_000, "views.per_case", "from 0 to 10000")
    need(
        cfg.views.per_case == 0 or cfg.model.freeze_encoder,
        "views.per_case",
        "0 where the image encoder is trained (or set model.freeze_encoder=True)",
    )
    need(
        cfg.views.cache == "none" or cfg.views.per_case > 0,
        "views.cache",
        "'none' where views.per_case is 0, for what is augmented afresh is never met again",
    )
    need(cfg.dose.threshold != "absolute" or cfg.dose.gy > 0, "dose.gy", "positive, in Gy")
    need(0 <= cfg.dose.margin_mm <= 100, "dose.margin_mm", "from 0 to 100 mm")
    need(cfg.dose.box_jitter >= 0, "dose.box_jitter", "0 or more voxels")
    need(
        cfg.dose.source == "dose" or not cfg.evaluate,
        "dose.source",
        "'dose' where runs are scored, since a box from the label gives the answer away (or set "
        "evaluate=False)",
    )
    need(
        cfg.dose.source != "none" or not cfg.prompt.box,
        "dose.source",
        "'dose' or 'label' where prompt.box is True",
    )
    need(
        cfg.data.crop == "dose" or cfg.dose.source == "dose",
        "data.crop",
        "'dose' where dose.source is another than 'dose': crops then lie around the label",
    )
    need(cfg.data.prepare_workers >= 0, "data.prepare_workers", "0 or more")
    need(cfg.data.read_threads >= 1, "data.read_threads", "at least 1")
    need(bool(cfg.data.dataset), "data.dataset", "the folder of a dataset.json")
    need(cfg.mesh.cpu_devices >= 0, "mesh.cpu_devices", "0 or more")
    need(cfg.mesh.data == -1 or cfg.mesh.data >= 1, "mesh.data", "at least 1, or -1 for the rest")
    for name in ("fsdp", "tensor"):
        need(getattr(cfg.mesh, name) >= 1, f"mesh.{name}", "at least 1")
    need(cfg.click.iterations >= 0, "click.iterations", "0 or more")
    need(cfg.click.per_iteration >= 1, "click.per_iteration", "at least 1")
    need(0 < cfg.optim.lr < float("inf"), "optim.lr", "positive")
    for name in ("weight_decay", "decay", "warmup_steps", "clip_norm"):
        need(getattr(cfg.optim, name) >= 0, f"optim.{name}", "0 or more")
    for name in ("b1", "b2"):
        need(0 <= getattr(cfg.optim, name) < 1, f"optim.{name}", "from 0 to below 1")
    for name in ("task_tokens", "adapter_width", "variants"):
        need(getattr(cfg.prompt, name) >= 1, f"prompt.{name}", "at least 1")
    for name in ("sentence_dropout", "dropout"):
        need(0 <= getattr(cfg.prompt, name) <= 1, f"prompt.{name}", "from 0 to 1")
    need(
        cfg.prompt.task != "text" or bool(cfg.prompt.language_model),
        "prompt.language_model",
        "a folder written by converters.clinical_bert where config.prompt.task is 'text'",
    )
    need(
        list(cfg.optim.milestones) == sorted(set(cfg.optim.milestones))
        and all(0 < m < 1 for m in cfg.optim.milestones),
        "optim.milestones",
        "strictly increasing shares of all steps between 0 and 1",
    )
    passes = 1 + cfg.click.iterations
    need(
        len(cfg.loss.pass_weights) in (0, passes),
        "loss.pass_weights",
        f"empty or {passes} numbers (one for the first prediction, one per click iteration)",
    )
    need(
        not cfg.loss.pass_weights
        or (min(cfg.loss.pass_weights) >= 0 and sum(cfg.loss.pass_weights) > 0),
        "loss.pass_weights",
        "non-negative and not all zero",
    )
    for name in ("epsilon", "gamma"):
        need(getattr(cfg.loss, name) > 0, f"loss.{name}", "positive")
    weights = ("dice", "focal_tversky", "dice_ce", "iou_head")
    for name in ("alpha", "beta", *weights):
        need(getattr(cfg.loss, name) >= 0, f"loss.{name}", "0 or more")
    need(any(getattr(cfg.loss, n) for n in weights), "loss.dice", "positive where no other is")
    need(0 < cfg.click.threshold < 1, "click.threshold", "between 0 and 1")
    inner = cfg.data.inner_folds
    need(inner == 0 or inner >= 2, "data.inner_folds", "0 or at least 2")
    need(
        (inner == 0 and cfg.data.inner_fold == -1) or 0 <= cfg.data.inner_fold < inner,
        "data.inner_fold",
        "a fold index below data.inner_folds, or -1 where that is 0",
    )


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
