"""Tissue intensities of the three images, and what a scanner adds to them.

CT in Hounsfield units; the MR contrasts in arbitrary units, air exactly 0. Values are typical of
the modality, chosen for the phantom; they are not measured on anyone.
"""

from __future__ import annotations

import numpy as np

from rtsam_jax.data.phantom.geometry import Frame, smooth_noise

# tissue: (CT, T2-FLAIR, T1c)
_TABLE: dict[str, tuple[float, float, float]] = {
    "air": (-1000, 0, 0),
    "skin": (15, 330, 380),
    "fat": (-95, 560, 760),
    "muscle": (55, 210, 290),
    "gland": (15, 400, 470),
    "mucosa": (45, 560, 700),
    "cartilage": (120, 200, 250),
    "disc": (85, 180, 260),
    "cortical": (1250, 30, 40),
    "diploe": (430, 300, 420),
    "marrow": (230, 330, 470),
    "jaw_cortex": (1350, 30, 40),
    "jaw_marrow": (230, 330, 470),
    "socket": (70, 380, 450),
    "tooth": (2200, 15, 20),
    "csf": (8, 55, 110),
    "grey": (40, 480, 380),
    "white": (28, 385, 485),
    "deep_grey": (40, 465, 400),
    "eye": (10, 50, 110),
    "lens": (70, 120, 200),
    "nerve": (35, 370, 440),
    "vessel": (110, 90, 860),
    "choroid": (45, 500, 830),
    "pituitary": (50, 420, 760),
    "cap": (20, 590, 440),  # periventricular cap or other bright spot that is no lesion
}
_COLUMN = {"ct": 0, "flair": 1, "t1c": 2}
NOISE = {"ct": 22.0, "flair": 17.0, "t1c": 19.0}  # standard deviation, HU or units


def tissue_values(rng: np.random.Generator, contrast: str) -> dict[str, float]:
    """Intensities of one patient: the table, each value moved a little.

    Args:
      rng: source of randomness.
      contrast: "ct", "flair" or "t1c".
    """
    column = _COLUMN[contrast]
    values: dict[str, float] = {}
    for name, row in _TABLE.items():
        if contrast == "ct":
            spread = 5.0 + 0.05 * max(row[column], 0.0)
        else:
            spread = 0.035 * row[column]
        values[name] = row[column] + spread * float(np.clip(rng.standard_normal(), -2, 2))
    values["air"] = float(_TABLE["air"][column])
    if contrast == "ct" and rng.random() < 0.5:
        values["vessel"] = float(rng.uniform(140, 220))  # half the plan CTs are given contrast
    if contrast == "ct":
        values["jaw_marrow"] = float(rng.uniform(110, 330))  # fatty to dense
    return values


def scan(
    rng: np.random.Generator, value: np.ndarray, body: np.ndarray, frame: Frame, contrast: str
) -> np.ndarray:
    """Adds texture, noise and (MR) a bias field and a gain of the scanner.

    Args:
      rng: source of randomness.
      value: painted intensities, float32 `[X, Y, Z]`.
      body: where the patient is, bool `[X, Y, Z]`; MR is 0 outside.
      frame: the grid.
      contrast: "ct", "flair" or "t1c".

    Returns:
      HU in -1000..3071 for CT; non-negative, 0 outside the body, for MR. Float32, whole numbers.
    """
    noise = rng.standard_normal(value.shape, dtype=np.float32)
    if contrast == "ct":
        # Reconstruction correlates neighbouring voxels.
        noise = 0.6 * noise + 0.8 * np.roll(noise, 1, 0)
        texture = 8.0 * smooth_noise(rng, value.shape, frame.spacing, 7.0)
        out = value + NOISE["ct"] * noise + np.where(value > -500, texture, 0.0)
        return np.rint(np.clip(out, -1000, 3071)).astype(np.float32)
    texture = 1.0 + 0.035 * smooth_noise(rng, value.shape, frame.spacing, 6.0)
    bias = np.exp(0.09 * smooth_noise(rng, value.shape, frame.spacing, 110.0))
    second = rng.standard_normal(value.shape, dtype=np.float32)
    signal = value * texture * bias + NOISE[contrast] * noise
    magnitude = np.sqrt(signal**2 + (NOISE[contrast] * second) ** 2)  # Rician, as MR magnitudes are
    gain = rng.uniform(0.6, 1.6)
    return np.rint(np.where(body, np.maximum(gain * magnitude, 1.0), 0.0)).astype(np.float32)
