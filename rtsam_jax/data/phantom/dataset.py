"""Builds the embedded data set of head phantoms: one patient per case, three tasks in turn."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rtsam_jax.data.cases import TaskInfo, write_dataset
from rtsam_jax.data.new_folder import new_folder
from rtsam_jax.data.nifti import Volume, write_volume
from rtsam_jax.data.phantom import lesions
from rtsam_jax.data.phantom.anatomy import Anatomy, paint_head
from rtsam_jax.data.phantom.contrast import scan, tissue_values
from rtsam_jax.data.phantom.dose import ORIENTATIONS, choose_target, dose_volume, reorder
from rtsam_jax.data.phantom.geometry import Canvas, Frame, make_frame
from rtsam_jax.errors import ConfigError

TASKS = (
    TaskInfo("orn", "CT", "osteoradionecrosis of the jaw (synthetic)"),
    TaskInfo("ce", "MR", "cerebral edema on T2-FLAIR (synthetic)"),
    TaskInfo("crn", "MR", "cerebral radiation necrosis on T1c (synthetic)"),
)
DESCRIPTION = (
    "Synthetic head phantoms with planted radiation injuries, made by rtsam_jax.data.phantom; "
    "no patient is behind them, and results on them say nothing about patients."
)
FIELD_MM = (188.0, 224.0, 200.0)
_TAU = 0.8  # the lesion is placed in the region above this share of Dmax
# Where the primary lay, prescription in Gy, fractions: by task, for the brain by height as well.
_SITES = {
    "orn": (("oropharynx", 70.0, 35), ("oral cavity", 66.0, 33), ("oral cavity", 60.0, 30)),
    "low": (("nasopharynx", 70.0, 33), ("nasopharynx", 70.0, 35), ("skull base", 66.0, 33)),
    "high": (("glioma", 60.0, 30), ("meningioma", 60.0, 30), ("glioma", 60.0, 33)),
}
_TEMPORAL_Z = 20.0  # mm; below lie the temporal lobes, where skull-base fields pass


@dataclass(frozen=True)
class PhantomCase:
    """One synthetic patient; image and label share a grid, the dose has its own."""

    id: str
    task: str
    image: Volume
    dose: Volume
    label: Volume
    record: dict[str, Any]


def make_case(index: int, *, seed: int = 0) -> PhantomCase:
    """Makes case `index`; the same numbers give the same voxels.

    Args:
      index: 0, 1, ...; its remainder by 3 is the task (`orn`, `ce`, `crn`).
      seed: of the data set.
    """
    rng = np.random.default_rng([seed, index])
    task = TASKS[index % len(TASKS)].name
    contrast = lesions.CONTRAST[task]
    frame = _frame(rng, task)
    canvas = Canvas(frame, tissue_values(rng, contrast))
    anatomy = paint_head(canvas, rng)
    plan = _irradiate(rng, canvas, anatomy, task)
    lesion = plan.lesion
    lesions.paint(canvas, lesion, plan.distance, task, rng)
    image = Volume(
        scan(rng, canvas.value, anatomy.body < 0.5 * canvas.soft, frame, contrast), frame.affine
    )
    label = Volume(lesion.label.astype(np.uint8), frame.affine)
    axes = "RAS" if rng.random() < 0.5 else "LPS"
    record = {
        "age": int(np.clip(round(rng.normal(58, 11)), 24, 86)),
        "sex": "female" if rng.random() < 0.4 else "male",
        "site": plan.site,
        "prescription_gy": plan.prescription_gy,
        "fractions": plan.fractions,
        "months_since_rt": int(rng.integers(4, 61)),
        "side": "right" if lesion.centre[0] > 0 else "left",
    }
    return PhantomCase(
        id=f"phantom_{index:03d}_{task}",
        task=task,
        image=reorder(image, axes),
        dose=reorder(plan.dose, str(rng.choice(ORIENTATIONS))),
        label=reorder(label, axes),
        record=record,
    )


def _frame(rng: np.random.Generator, task: str) -> Frame:
    """A grid of 1.8-2.4 mm voxels: a plan CT reaches down the neck, an MR up to the vertex."""
    in_plane = rng.uniform(1.8, 2.2)
    spacing = (in_plane, in_plane, rng.uniform(1.8, 2.4))
    if task != "orn" and rng.random() < 0.5:
        spacing = (rng.uniform(1.8, 2.4), in_plane, in_plane)  # acquired in sagittal slices
    centre = (0.0, 0.0, -22.0 if task == "orn" else 22.0)
    scale = rng.uniform(0.93, 1.04) * rng.uniform(0.97, 1.03, 3)
    return make_frame(rng, spacing=spacing, field_mm=FIELD_MM, centre=centre, scale=scale)


@dataclass(frozen=True)
class _Plan:
    lesion: lesions.Lesion
    distance: np.ndarray  # see lesions.grow
    dose: Volume
    site: str
    prescription_gy: float
    fractions: int


def _irradiate(rng: np.random.Generator, canvas: Canvas, anatomy: Anatomy, task: str) -> _Plan:
    """Draws lesion and dose until at least 90 % of the lesion receives 0.8 Dmax."""
    frame = canvas.frame
    for _ in range(60):
        grown = lesions.grow(canvas, anatomy, task, rng)
        if grown is None:
            continue
        low = grown[0].centre[2] < _TEMPORAL_Z
        sites = _SITES["orn" if task == "orn" else "low" if low else "high"]
        site, prescription, fractions = sites[int(rng.integers(len(sites)))]
        target = choose_target(rng, grown[0], frame, anatomy.cavity, task)
        dose = dose_volume(rng, target, frame, anatomy.body, prescription)
        index = np.argwhere(grown[0].label) @ frame.affine[:3, :3].T + frame.affine[:3, 3]
        inverse = np.linalg.inv(dose.affine)
        at = np.round(index @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
        inside = np.all((at >= 0) & (at < dose.array.shape), axis=1)
        gray = np.zeros(len(at))
        gray[inside] = dose.array[tuple(at[inside].T)]
        if (gray >= _TAU * dose.array.max()).mean() >= 0.9:
            return _Plan(*grown, dose, site, prescription, fractions)
    raise AssertionError("no room for a lesion in 60 draws; the phantom's geometry is broken")


def make_cases(cases: int, seed: int) -> Iterator[PhantomCase]:
    """Makes cases in order, two at a time (numpy releases the interpreter while it computes)."""
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        yield from pool.map(lambda index: make_case(index, seed=seed), range(cases))


def build(root: Path, *, cases: int = 60, seed: int = 0) -> None:
    """Writes a dataset folder of synthetic cases; it appears complete or not at all.

    Args:
      root: the folder to make; it must not exist, or be empty.
      cases: how many; tasks take turns.
      seed: another seed, other patients.

    Raises:
      OutputExists: `root` holds something.
      ConfigError: fewer than one case.
    """
    if cases < 1:
        raise ConfigError(f"The phantom was asked for {cases} cases; ask for at least 1.")
    with new_folder(root) as beside:
        entries = []
        start = time.monotonic()
        for done, case in enumerate(make_cases(cases, seed), 1):
            entries.append(_write_case(beside, case))
            if sys.stderr.isatty() or done == cases or done % 10 == 0:
                spent = time.monotonic() - start
                print(f"phantom {done}/{cases}  {spent:.0f} s", file=sys.stderr, flush=True)
        write_dataset(
            beside,
            name="phantom",
            kind="synthetic",
            description=DESCRIPTION,
            tasks=TASKS,
            cases=entries,
        )


def _write_case(root: Path, case: PhantomCase) -> dict[str, Any]:
    paths = {part: f"{case.id}/{part}.nii.gz" for part in ("image", "dose", "label")}
    write_volume(root / paths["image"], case.image, np.int16)
    write_volume(root / paths["dose"], case.dose, np.float32)
    write_volume(root / paths["label"], case.label, np.uint8)
    patient = case.id.rsplit("_", 1)[0]
    return {"id": case.id, "patient": patient, "task": case.task, **paths, "record": case.record}
