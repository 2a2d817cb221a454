"""A synthetic dataset and a configuration so small that a whole run takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from rtsam_jax.config import ExperimentConfig
from rtsam_jax.data.cases import TaskInfo, write_dataset
from rtsam_jax.data.nifti import Volume, write_volume

REPOSITORY = Path(__file__).resolve().parents[1]
SHAPE = (40, 40, 40)
SPACING = 2.0  # mm
TASKS = ("orn", "ce", "crn")
# id, patient, task, split; p1_ce and p1_crn are two tasks on one scan.
CASES = (
    ("p0_orn", "p0", "orn", "train"),
    ("p1_ce", "p1", "ce", "train"),
    ("p1_crn", "p1", "crn", "train"),
    ("p2_orn", "p2", "orn", "train"),
    ("p3_orn", "p3", "orn", "test"),
    ("p4_ce", "p4", "ce", "test"),
)
RECORDS: dict[str, dict[str, str | int]] = {
    "p0": {"age": 61, "sex": "female", "side": "left"},
    "p1": {"age": 55, "prescription_gy": 60, "fractions": 30},
    "p2": {"sex": "male", "side": "right", "months_since_rt": 14},
    "p3": {"age": 47, "side": "right"},
    "p4": {},
}
TRAIN = [case[0] for case in CASES if case[3] == "train"]


def write_tiny_dataset(root: Path) -> None:
    """Blobs in noise; each under a dose that falls off from a point near its blob."""
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1).astype(np.float64)
    cases = []
    for case, patient, task, split in CASES:
        seed = int(patient[1:])
        rng = np.random.default_rng(seed)
        centre = 20 + rng.integers(-5, 6, 3)
        distance = np.linalg.norm(index - centre, axis=-1)
        lesion = np.linalg.norm(index - centre - TASKS.index(task), axis=-1) < 4
        image = rng.normal(40, 60, SHAPE)
        image[distance < 4] += 400
        dose = 70 * np.exp(-((distance / 14) ** 2))
        for kind, array in (("image", image), ("dose", dose)):
            path = root / f"{patient}_{kind}.nii.gz"
            if not path.exists():
                write_volume(path, Volume(array.astype(np.float32), affine), np.float32)
        label = Volume(lesion.astype(np.uint8), affine)
        write_volume(root / f"{case}_label.nii.gz", label, np.uint8)
        cases.append(
            {
                "id": case,
                "patient": patient,
                "task": task,
                "image": f"{patient}_image.nii.gz",
                "dose": f"{patient}_dose.nii.gz",
                "label": f"{case}_label.nii.gz",
                "record": RECORDS[patient],
                "split": split,
            }
        )
    modality = {"orn": "CT", "ce": "MR", "crn": "MR"}
    tasks = [TaskInfo(name, modality[name], name.upper()) for name in TASKS]
    about = {"name": "tiny", "kind": "synthetic", "description": "Blobs in noise, for tests."}
    write_dataset(root, **about, tasks=tasks, cases=cases)


def tiny_config(dataset: Path | str = "dataset", **fields: object) -> ExperimentConfig:
    """Preset `test`, encoder trained, one click iteration; `fields` are dotted with `__`."""
    cfg = ExperimentConfig(name="tiny", steps=4, batch_size=2, log_every=1, figures=1)
    cfg.checkpoint_every = 2
    cfg.data.dataset = str(dataset)
    cfg.data.spacing_mm = SPACING
    cfg.data.jitter = 3
    cfg.dose.tau = 0.5
    cfg.model.preset = "test"
    cfg.prompt.task = "embedding"
    cfg.model.freeze_encoder = False
    cfg.optim.lr, cfg.optim.milestones = 1e-3, ()
    cfg.click.iterations = 1
    cfg.click.per_iteration = 2
    for name, value in fields.items():
        *sections, field = name.split("__")
        place: object = cfg
        for section in sections:
            place = getattr(place, section)
        assert hasattr(place, field), name
        setattr(place, field, value)
    cfg.validate()
    return cfg


def write_config_file(path: Path, cfg: ExperimentConfig) -> Path:
    """A config file as a user would have it, which returns `cfg`."""
    path.write_text(
        "import json\n"
        "from rtsam_jax.config import ExperimentConfig\n\n\n"
        "def get_config():\n"
        f"    return ExperimentConfig.from_dict(json.loads({cfg.to_json()!r}))\n"
    )
    return path


def command_environment(**extra: str) -> dict[str, str]:
    """The environment of a command: this repository, the CPU, the session's compilation cache."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **extra}


def run_module(
    module: str, *arguments: object, cwd: Path, timeout: float = 600, **environ: str
) -> subprocess.CompletedProcess[str]:
    """`python -m rtsam_jax.<module> ...` to its end, or until `timeout` seconds have passed."""
    return subprocess.run(
        [sys.executable, "-m", f"rtsam_jax.{module}", *map(str, arguments)],
        cwd=cwd,
        env=command_environment(**environ),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
