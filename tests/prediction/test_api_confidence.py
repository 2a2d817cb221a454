"""Python says of a mask what the command says of it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from rtsam_jax.data.nifti import read_volume
from rtsam_jax.prediction.segmenter import Prompts, Segmenter
from rtsam_jax.prediction.trained import load_trained
from rtsam_jax.training.model_file import write_calibration
from tests.prediction.commanding import command_of, document
from tests.prediction.test_calibration import calibration


@pytest.mark.parametrize("masked", [False, True])
def test_confidence_and_probability_are_the_commands(
    run: Path, tiny_dataset: Path, tmp_path: Path, masked: bool
) -> None:
    own = shutil.copytree(run, tmp_path / "run")
    write_calibration(
        own, {"step": 7, "weights": load_trained(run).weights, **calibration().to_dict()}
    )
    image, dose, mask = (
        tiny_dataset / f"p3_{part}.nii.gz" for part in ("image", "dose", "orn_label")
    )
    options = ["--image", image, "--dose", dose, "--task", "orn", *["--mask", mask] * masked]
    out = command_of(own, tmp_path / "out")(*options, repeats=1)
    told = document(out)["confidence"]

    segmenter = Segmenter.from_checkpoint(own)
    segmenter.set_case(image, dose, task="orn", name="p3_image")
    plain = segmenter.predict(Prompts(mask=mask if masked else None)).native_probability().array
    found = dataclasses.asdict(segmenter.confidence(repeats=1))
    assert found["agreement"] is not None and found["reasons"]
    for name, value in found.items():
        assert told[name] == (
            pytest.approx(value)
            if isinstance(value, float)
            else list(value)
            if isinstance(value, tuple)
            else value
        ), name
    stored = read_volume(out / "p3_image" / "orn" / "probability.nii.gz").array
    calibrated = segmenter.calibrated_probability().array
    np.testing.assert_allclose(calibrated, stored, atol=1e-6)
    assert np.abs(calibrated - plain).max() > 0.01
