"""A sound dataset of two cases, ways to break it, and what a refusal must say."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np

from rtsam_jax.data.cases import TaskInfo, write_dataset
from rtsam_jax.data.nifti import Volume, read_volume, write_volume
from rtsam_jax.errors import RTSamError

SHAPE = (8, 9, 10)

Damage = Callable[[Path], object]


@dataclass(frozen=True)
class BadInput:
    """One thing wrong with the dataset of `make_dataset`, and how it is refused."""

    damage: Damage
    error: type[RTSamError]
    code: str
    exit_status: int
    # "dataset": nothing of it can be used; "case": only beta cannot; "splits": only the file of
    # stored splits, for whoever reads it.
    strikes: str
    # {root}: the dataset's folder; {reason}: whatever a library says.
    sentence: str
    dose: Mapping[str, object] = field(default_factory=dict)  # of config.dose, where it matters
    needs: Path | None = None  # a file of the system, without which the damage cannot be done

    def says(self, message: str, root: Path) -> bool:
        """Whether a message is the sentence, for a dataset at `root`."""
        pattern = re.escape(self.sentence.replace("{root}", str(root)))
        return re.fullmatch(pattern.replace(re.escape("{reason}"), ".+"), message) is not None


def make_dataset(root: Path) -> None:
    """Cases `alpha` and `beta`: image, dose, label and record, each in files of its own."""
    rng = np.random.default_rng(0)
    cases = []
    for name in ("alpha", "beta"):
        image = rng.normal(0, 300, SHAPE).astype(np.float32)
        dose = np.zeros(SHAPE, np.float32)
        dose[3:6, 3:6, 3:6] = 60
        arrays = {"image": image, "dose": dose, "label": (dose > 0).astype(np.float32)}
        for kind, array in arrays.items():
            write_volume(root / f"{name}_{kind}.nii.gz", Volume(array, np.eye(4)), np.float32)
        paths = {kind: f"{name}_{kind}.nii.gz" for kind in arrays}
        record = {"prescription_gy": 70}
        cases.append({"id": name, "patient": name, "task": "orn", "record": record, **paths})
    about = {"name": "demo", "kind": "synthetic", "description": ""}
    write_dataset(root, **about, tasks=[TaskInfo("orn", "CT", "ORN")], cases=cases)


def with_array(kind: str, change: Callable[[np.ndarray], np.ndarray | None]) -> Damage:
    """`change` returns the new array, or changes the one it is given."""

    def build(root: Path) -> None:
        path = root / f"beta_{kind}.nii.gz"
        image = nibabel.load(path)
        array = np.array(np.asarray(image.dataobj))
        changed = change(array)
        array = array if changed is None else changed
        nibabel.save(nibabel.Nifti1Image(array, image.affine), path)

    return build


def with_bytes(kind: str, change: Callable[[bytes], bytes]) -> Damage:
    def build(root: Path) -> None:
        path = root / f"beta_{kind}.nii.gz"
        path.write_bytes(change(path.read_bytes()))

    return build


def with_header(kind: str, change: Callable[[bytearray], object]) -> Damage:
    def edit(content: bytes) -> bytes:
        plain = bytearray(gzip.decompress(content))
        change(plain)
        return gzip.compress(bytes(plain))

    return with_bytes(kind, edit)


def with_dataset(change: Callable[[dict], object]) -> Damage:
    def build(root: Path) -> None:
        document = json.loads((root / "dataset.json").read_text())
        change(document)
        (root / "dataset.json").write_text(json.dumps(document))

    return build


def with_beta(**fields: object) -> Damage:
    """Fields of case `beta` in `dataset.json`; None takes one away."""

    def change(document: dict) -> None:
        case = document["cases"][1]
        case.update(fields)
        for name in [name for name, value in fields.items() if value is None]:
            del case[name]

    return with_dataset(change)


def with_splits(splits: dict[str, str], *others: Damage) -> Damage:
    """A file of stored splits beside the dataset, after `others`."""

    def build(root: Path) -> None:
        for damage in others:
            damage(root)
        document = {"schema": 1, "dataset": "demo", "seed": 0, "splits": splits}
        (root / "splits.json").write_text(json.dumps(document))

    return build


def with_text(text: str) -> Damage:
    return lambda root: (root / "dataset.json").write_text(text)


def in_place_of(kind: str, make: Callable[[Path], object]) -> Damage:
    def build(root: Path) -> None:
        path = root / f"beta_{kind}.nii.gz"
        path.unlink()
        make(path)

    return build


def shifted(kind: str, mm: float) -> Damage:
    """Along x."""

    def build(root: Path) -> None:
        volume = read_volume(root / f"beta_{kind}.nii.gz")
        volume.affine[0, 3] = mm
        write_volume(root / f"beta_{kind}.nii.gz", volume, np.float32)

    return build


def put(index: tuple[int, int, int], value: float) -> Callable[[np.ndarray], None]:
    def change(array: np.ndarray) -> None:
        array[index] = value

    return change


def header_field(offset: int, dtype: str, *values: float) -> Callable[[bytearray], None]:
    """Sets consecutive fields of a NIfTI-1 header."""

    def change(plain: bytearray) -> None:
        content = np.array(values, dtype).tobytes()
        plain[offset : offset + len(content)] = content

    return change


def sform_edges(length: float) -> Callable[[bytearray], None]:
    """Cubic voxels of another size, by the sform alone."""

    def change(plain: bytearray) -> None:
        header_field(252, "<i2", 0)(plain)  # qform_code
        for place in (280, 300, 320):  # the diagonal of srow_x, srow_y, srow_z
            header_field(place, "<f4", length)(plain)

    return change
