"""What an open case is asked besides its fixed prompts, and what the model says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rtsam_jax.data.nifti import Volume
from rtsam_jax.errors import ConfigError
from rtsam_jax.evaluation.click_model import Turn
from rtsam_jax.evaluation.tiles import resample_window, whole_mask
from rtsam_jax.prediction.opened import Opened

VolumeOrFile = Volume | str | Path


@dataclass(frozen=True)
class Click:
    """A point that belongs to what is segmented, or does not.

    Raises:
        ConfigError: `at_mm` is not three numbers, or `positive` not True or False.
    """

    at_mm: tuple[float, float, float]  # world RAS+
    positive: bool

    def __post_init__(self) -> None:
        try:
            x, y, z = map(float, self.at_mm)
        except (TypeError, ValueError):
            raise ConfigError(
                f"a click at {self.at_mm!r} is not a point; give x, y and z in world mm."
            ) from None
        if not isinstance(self.positive, (bool, np.bool_)):  # -1, "-" and "no" are all true
            raise ConfigError(
                f"a click's positive is {self.positive!r}; give True for a point inside, False for "
                "one outside."
            )
        object.__setattr__(self, "at_mm", (x, y, z))
        object.__setattr__(self, "positive", bool(self.positive))


@dataclass(frozen=True, eq=False)
class Prompts:
    """What is asked of an open case besides its task, text and box.

    Attributes:
        clicks: given one after the other, each with what the model made of those before.
        mask: another tool's, to be refined: the file of one structure, as `predict --mask` takes
            it, or a volume of one structure, with 0 outside and one value inside.
    """

    clicks: tuple[Click, ...] = ()
    mask: VolumeOrFile | None = None

    def __post_init__(self) -> None:
        several = isinstance(self.clicks, (tuple, list))
        if not several or not all(isinstance(click, Click) for click in self.clicks):
            raise ConfigError(
                f"the clicks are {self.clicks!r:.60}; give a tuple of Click(at_mm, positive)."
            )
        object.__setattr__(self, "clicks", tuple(self.clicks))


NO_PROMPTS = Prompts()


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model says of an open case.

    Attributes:
        opened: the case.
        turn: the clicks and the decoder's answers, crop by crop.
        probability: float32, on `opened.window` of the model grid; not calibrated.
    """

    opened: Opened
    turn: Turn
    probability: np.ndarray

    def native_probability(self) -> Volume:
        """On the original image's grid: float32, 0 outside every crop."""
        native = self.opened.native
        place, part = resample_window(self.probability, self.opened.window, native)
        out = np.zeros(native.shape, np.float32)
        out[place] = part
        return Volume(out, native.affine)

    def mask(self) -> Volume:
        """Bool, on the original image's grid: where the probability there is at least one half."""
        native = self.opened.native
        cut = resample_window(self.probability, self.opened.window, native)
        return Volume(whole_mask(*cut, native.shape), native.affine)

    @property
    def volume_ml(self) -> float:
        """Of the mask."""
        mask = self.mask()
        return float(mask.array.sum()) * abs(float(np.linalg.det(mask.affine[:3, :3]))) / 1000
