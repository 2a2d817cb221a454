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
from rtsam_jax.data.phantom.anatomy import paint_head
from rtsam_jax.data.phantom.contrast import scan, tissue_values
from rtsam_jax.data.phantom.dose import ORIENTATIONS, reorder
from rtsam_jax.data.phantom.geometry import Canvas, Frame, make_frame
from rtsam_jax.data.phantom.plan import plan_one
from rtsam_jax.data.phantom.twins import plan_twins
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
TWINS_DESCRIPTION = (
    "Synthetic head phantoms with twin radiation injuries, made by rtsam_jax.data.phantom: two "
    "look-alike lesions, one per side, both in the high-dose region; the label is the one on the "
    "record's side, and nothing else tells which of them is asked for. No patient is behind them, "
    "and results on them say nothing about patients."
)
FIELD_MM = (188.0, 224.0, 200.0)


@dataclass(frozen=True)
class PhantomCase:
    """One synthetic patient; image, label and airway share a grid, the dose has its own.

    `airway` is the air inside the skin, sinuses included: no place for an injury. `twin` is the
    look-alike that is not asked for; no file holds it.
    """

    id: str
    task: str
    image: Volume
    dose: Volume
    label: Volume
    airway: Volume
    record: dict[str, Any]
    twin: Volume | None = None


def make_case(index: int, *, seed: int = 0, twins: bool = False) -> PhantomCase:
    """Makes case `index`; the same numbers give the same voxels.

    Args:
      index: 0, 1, ...; its remainder by 3 is the task (`orn`, `ce`, `crn`).
      seed: of the data set.
      twins: plant a look-alike on the other side; other heads than without.
    """
    rng = np.random.default_rng([seed, index, 1] if twins else [seed, index])
    task = TASKS[index % len(TASKS)].name
    contrast = lesions.CONTRAST[task]
    frame = _frame(rng, task)
    canvas = Canvas(frame, tissue_values(rng, contrast))
    anatomy = paint_head(canvas, rng)
    plan = (plan_twins if twins else plan_one)(rng, canvas, anatomy, task)
    airway = canvas.mask("air") & (anatomy.body < 0)  # before a lesion brings gas of its own
    painted = np.logical_or.reduce([lesion.label for lesion in plan.lesions])
    lesions.paint(canvas, painted, plan.distance, task, rng)
    image = Volume(
        scan(rng, canvas.value, anatomy.body < 0.5 * canvas.soft, frame, contrast), frame.affine
    )
    axes = "RAS" if rng.random() < 0.5 else "LPS"
    record = {
        "age": int(np.clip(round(rng.normal(58, 11)), 24, 86)),
        "sex": "female" if rng.random() < 0.4 else "male",
        "site": plan.site,
        "prescription_gy": plan.prescription_gy,
        "fractions": plan.fractions,
        "months_since_rt": int(rng.integers(4, 61)),
    }
    dose = reorder(plan.dose, str(rng.choice(ORIENTATIONS)))
    asked = _choose(rng, len(plan.lesions))  # last, so that nothing above can depend on it
    record["side"] = "right" if plan.lesions[asked].centre[0] > 0 else "left"
    labels = [
        reorder(Volume(lesion.label.astype(np.uint8), frame.affine), axes)
        for lesion in plan.lesions
    ]
    return PhantomCase(
        id=f"{'twins' if twins else 'phantom'}_{index:03d}_{task}",
        task=task,
        image=reorder(image, axes),
        dose=dose,
        label=labels[asked],
        airway=reorder(Volume(airway.astype(np.uint8), frame.affine), axes),
        record=record,
        twin=labels[1 - asked] if twins else None,
    )


def _choose(rng: np.random.Generator, count: int) -> int:
    """Which of the planted lesions is asked for."""
    return int(rng.integers(count))


def _frame(rng: np.random.Generator, task: str) -> Frame:
    """A grid of 1.8-2.4 mm voxels: a plan CT reaches down the neck, an MR up to the vertex."""
    in_plane = rng.uniform(1.8, 2.2)
    spacing = (in_plane, in_plane, rng.uniform(1.8, 2.4))
    if task != "orn" and rng.random() < 0.5:
        spacing = (rng.uniform(1.8, 2.4), in_plane, in_plane)  # acquired in sagittal slices
    centre = (0.0, 0.0, -22.0 if task == "orn" else 22.0)
    scale = rng.uniform(0.93, 1.04) * rng.uniform(0.97, 1.03, 3)
    return make_frame(rng, spacing=spacing, field_mm=FIELD_MM, centre=centre, scale=scale)


def make_cases(cases: int, seed: int, twins: bool = False) -> Iterator[PhantomCase]:
    """Makes cases in order, two at a time (numpy releases the interpreter while it computes)."""
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        yield from pool.map(lambda index: make_case(index, seed=seed, twins=twins), range(cases))


def build(root: Path, *, cases: int = 60, seed: int = 0, twins: bool = False) -> None:
    """Writes a dataset folder of synthetic cases; it appears complete or not at all.

    Args:
      root: the folder to make; it must not exist, or be empty.
      cases: how many; tasks take turns.
      seed: another seed, other patients.
      twins: plant look-alikes that only the record tells apart.

    Raises:
      OutputExists: `root` holds something.
      ConfigError: fewer than one case.
    """
    if cases < 1:
        raise ConfigError(f"The phantom was asked for {cases} cases; ask for at least 1.")
    with new_folder(root) as beside:
        entries = []
        start = time.monotonic()
        for done, case in enumerate(make_cases(cases, seed, twins), 1):
            entries.append(_write_case(beside, case))
            if sys.stderr.isatty() or done == cases or done % 10 == 0:
                spent = time.monotonic() - start
                print(f"phantom {done}/{cases}  {spent:.0f} s", file=sys.stderr, flush=True)
        write_dataset(
            beside,
            name="phantom_twins" if twins else "phantom",
            kind="synthetic",
            description=TWINS_DESCRIPTION if twins else DESCRIPTION,
            tasks=TASKS,
            cases=entries,
        )


def _write_case(root: Path, case: PhantomCase) -> dict[str, Any]:
    paths = {part: f"{case.id}/{part}.nii.gz" for part in ("image", "dose", "label")}
    airway = f"{case.id}/airway.nii.gz"
    write_volume(root / paths["image"], case.image, np.int16)
    write_volume(root / paths["dose"], case.dose, np.float32)
    write_volume(root / paths["label"], case.label, np.uint8)
    write_volume(root / airway, case.airway, np.uint8)
    return {
        "id": case.id,
        "patient": case.id.rsplit("_", 1)[0],
        "task": case.task,
        **paths,
        "structures": {"airway": airway},
        "record": case.record,
    }
