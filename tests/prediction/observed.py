"""Cases with made-up predictions, whose Dice is known and whose signals tell more or less of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy import special

from rtsam_jax.prediction.calibration import Observed, Signals
from rtsam_jax.prediction.temperature import Spectrum, Voxels


def signals(sharpness: float = 2.0, **fields: Any) -> Signals:
    """Of a mask of 200 voxels in 2000; the sharper, the higher its expected Dice."""
    logits = np.concatenate([np.linspace(0.1, 3, 200), np.linspace(-3, -0.1, 1800)])
    probability = special.expit(sharpness * logits).astype(np.float32)
    known: dict[str, Any] = {
        "spectrum": Spectrum.of(probability),
        "largest": float(probability.max()),
        "empty": False,
        "agreement": 0.8,
        "predicted_iou": None,
        "distance": 3.0,
        "percentile": 50.0,
        "repeats": 8,
    }
    return Signals(**(known | fields))


def empty(largest: float = 0.1, **fields: Any) -> Signals:
    """Of an empty mask."""
    spectrum = Spectrum.of(np.full(100, largest, np.float32))
    return dataclasses.replace(
        signals(), spectrum=spectrum, largest=largest, empty=True, **({"agreement": 1.0} | fields)
    )


def observed(
    number: int, dice: float, of: Signals, *, patient: str = "", temperature: float = 2.0
) -> Observed:
    """A case whose voxels ask for a temperature."""
    rng = np.random.default_rng(number)
    logits = rng.normal(0, 4, 300)
    truth = rng.random(300) < special.expit(logits / temperature)
    return Observed(
        case=f"c{number}",
        patient=patient or f"p{number}",
        task="orn",
        dice=dice,
        absent=False,
        signals=of,
        voxels=Voxels.of(special.expit(logits), truth),
    )


def cohort(count: int, *, noise: float = 0.05, seed: int = 0) -> list[Observed]:
    """Cases, two of a patient, whose agreement is their Dice but for noise."""
    rng = np.random.default_rng(seed)
    dices = rng.uniform(0.1, 0.9, count)
    return [
        observed(
            at,
            float(dice),
            signals(agreement=float(np.clip(dice + rng.normal(0, noise), 0, 1))),
            patient=f"p{at // 2}",
        )
        for at, dice in enumerate(dices)
    ]
