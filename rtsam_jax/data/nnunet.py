"""A dataset from a raw folder of nnU-Net (Isensee et al., Nat. Methods 18:203, 2021), v1 or v2.

python -m rtsam_jax.data.nnunet SOURCE OUT [--channel N] [--dose FOLDER] [--patient REGEX] ...

One case per image and structure. A structure with one value shares its map (`label_value`), which
is linked, not rewritten. A region of several values becomes a file of its own, since regions
overlap and a case names one value. The maps are read, to know which structures each one holds.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rtsam_jax.data.cases import MODALITIES, TaskInfo
from rtsam_jax.data.import_folder import (
    SIDES,
    command_line,
    ending_of,
    labelled_sides,
    name_of,
    patient_rule,
    place,
    progress,
    some,
    unique_names,
    volumes_in,
    write_import,
)
from rtsam_jax.data.new_folder import new_folder
from rtsam_jax.data.nifti import Volume, read_volume, write_volume
from rtsam_jax.data.nnunet_source import (
    DOSES,
    Description,
    Scan,
    find_scans,
    read_description,
)
from rtsam_jax.errors import (
    ConfigError,
    DatasetSchemaError,
    RTSamError,
    VolumeError,
    run_command,
)

_THREADS = 4  # inflating leaves Python's lock
# Of MR sequences, as channels are called: "T1w", "t2-FLAIR", "MRI", "ADC".
_MR = re.compile(r"(mri?|t[12](w|n|c|ce|f|gd|star)?|flair|adc|dwi|swi|pdw?)([ _-].*)?", re.I)


@dataclass(frozen=True)
class _Found:
    """What a scan's map holds: structure -> the map's path in the dataset and the value in it."""

    labels: dict[str, tuple[str, int | None]]
    ignored: bool  # voxels that nobody labelled


def build(
    source: Path,
    root: Path,
    *,
    channel: int | None = None,
    modality: str = "",
    dose: str = "",
    patient: str = "",
    kind: str = "surrogate",
    copy: bool = False,
) -> None:
    """Writes the dataset; it appears complete or not at all. Prints what was left out and why.

    Args:
      source: nnU-Net's folder, with `imagesTr`, `labelsTr` and `dataset.json`.
      root: the folder to make; it must not exist, or be empty.
      channel: which one becomes the image; None where there is only one.
      modality: "CT" or "MR"; "": as the channel's name says.
      dose: folder in `source` with the dose maps of `imagesTr`; where its name ends in Tr, those of
        `imagesTs` are in the one that ends in Ts. "": `dosesTr`, if it is there.
      patient: regular expression for the patient in a case's name; "": the whole name.
      kind: as in the schema.
      copy: copy the volumes instead of linking them.

    Raises:
      MissingFile: a folder, an image of a label, or a label of an image.
      UnreadableFile, VolumeError: maps that cannot be read or hold values that `dataset.json` does
        not declare; the first few are named.
      DatasetSchemaError: what `dataset.json` leaves in doubt, or names that are not distinct.
      ConfigError: an argument is missing or does not fit the folder.
      OutputExists: `root` holds something.
    """
    source = Path(source)
    described = read_description(source)
    channel = _channel(described, channel)
    modality = modality or _modality(described, channel)
    patient_of = patient_rule(patient)
    sides = labelled_sides(source)
    scans, spare = find_scans(source, sides, described, channel, dose)
    names = unique_names([scan.name for scan in scans], "case")
    tasks = unique_names(described.structures, "structure")
    with new_folder(root) as beside:
        found = _read_maps(scans, described, names, tasks, beside)
        cases: list[dict[str, Any]] = []
        for scan, maps in zip(scans, found, strict=True):
            files = _place(scan, names[scan.name], maps, beside, copy)
            for title, (label, value) in maps.labels.items():
                cases.append(
                    {
                        "id": name_of(f"{names[scan.name]}_{tasks[title]}", "case"),
                        "patient": patient_of(scan.name),
                        "task": tasks[title],
                        **files,
                        "label": label,
                        "label_value": value,
                        "split": SIDES[scan.side] if "Ts" in sides else None,
                    }
                )
        if not cases:
            raise DatasetSchemaError(
                f"No map in {source} holds a structure that its dataset.json declares (maps with "
                "voxels to ignore are left out); name another folder."
            )
        used = {case["task"] for case in cases}
        write_import(
            beside,
            source=source,
            kind=kind,
            description=f"nnU-Net folder {source.resolve().name}. {described.text}".strip(),
            tasks=[
                TaskInfo(name, modality, title.replace("_", " ").strip())
                for title, name in tasks.items()
                if name in used
            ],
            cases=cases,
        )
    _summary(described, scans, found)
    if spare:
        print(f"  doses of no labelled case, left out: {len(spare)} ({some(spare)})")
    if "Ts" not in sides and (source / "imagesTs").is_dir():
        print(f"  imagesTs has no labelsTs, left out: {len(volumes_in(source / 'imagesTs'))} files")


def _channel(described: Description, channel: int | None) -> int:
    listed = ", ".join(f"{at} ({name})" for at, name in described.channels.items())
    if channel is None and len(described.channels) == 1:
        return next(iter(described.channels))
    if channel is None:
        raise ConfigError(
            f"{described.path} declares the channels {listed}; choose one with --channel N."
        )
    if channel not in described.channels:
        raise ConfigError(
            f"--channel {channel} is not in {described.path}, which declares {listed}; choose "
            "one of them."
        )
    return channel


def _modality(described: Description, channel: int) -> str:
    name = described.channels[channel].strip()
    if name.casefold() == "ct":
        return "CT"
    if _MR.fullmatch(name):
        return "MR"
    raise ConfigError(
        f"{described.path} calls channel {channel} {name!r}, which tells neither CT nor MR; "
        "say --modality CT or --modality MR."
    )


def _read_maps(
    scans: list[Scan],
    described: Description,
    names: dict[str, str],
    tasks: dict[str, str],
    root: Path,
) -> list[_Found]:
    """Reads all maps, in the order of `scans`, and writes the regions' files."""

    def read(scan: Scan) -> _Found | RTSamError:
        try:
            return _read_map(scan, described, names[scan.name], tasks, root)
        except RTSamError as error:
            return error

    found: list[_Found] = []
    failures: list[RTSamError] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for result in progress(pool.map(read, scans), len(scans), "nnunet", every=20):
            if isinstance(result, RTSamError):
                failures.append(result)
            else:
                found.append(result)
    if failures:
        raise type(failures[0])(
            f"{len(failures)} of {len(scans)} label maps cannot be used, so nothing was written: "
            + some([str(error) for error in failures], " | ")
        )
    return found


def _read_map(
    scan: Scan, described: Description, name: str, tasks: dict[str, str], root: Path
) -> _Found:
    volume = read_volume(scan.label, what="label")
    values = _distinct(volume.array)
    if unknown := sorted(values - described.declared):
        raise VolumeError(
            f"The label {scan.label} holds {some([f'{value:g}' for value in unknown])}, which "
            f"{described.path} does not declare; declare each value or mend the map."
        )
    if described.ignore in values:
        return _Found({}, ignored=True)
    labels: dict[str, tuple[str, int | None]] = {}
    for title, inside in described.structures.items():
        if values.isdisjoint(inside):
            continue
        if len(inside) == 1:
            labels[title] = (f"labels{scan.side}/{name}{ending_of(scan.label)}", inside[0])
        else:
            path = f"regions{scan.side}/{name}_{tasks[title]}.nii.gz"
            mask = np.isin(volume.array, inside).astype(np.uint8)
            write_volume(root / path, Volume(mask, volume.affine), np.uint8)
            labels[title] = (path, None)
    return _Found(labels, ignored=False)


def _distinct(array: np.ndarray) -> set[float]:
    # Maps are constant along runs: only the last voxel of each is sorted.
    flat = array.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), flat.size - 1)
    return set(np.unique(flat[ends]).tolist())


def _place(scan: Scan, name: str, maps: _Found, root: Path, copy: bool) -> dict[str, str]:
    """Puts the scan's files into the dataset; returns the fields that all its cases share."""
    if not maps.labels:
        return {}
    files = {"image": f"images{scan.side}/{name}{ending_of(scan.image)}"}
    place(scan.image, root / files["image"], copy=copy)
    if scan.dose is not None:
        files["dose"] = f"doses{scan.side}/{name}{ending_of(scan.dose)}"
        place(scan.dose, root / files["dose"], copy=copy)
    for label in {label for label, value in maps.labels.values() if value is not None}:
        place(scan.label, root / label, copy=copy)
    return files


def _summary(described: Description, scans: list[Scan], found: list[_Found]) -> None:
    count = sum(len(maps.labels) for maps in found)
    doses = sum(scan.dose is not None for scan in scans)
    print(f"nnU-Net {described.path.parent}: {len(scans)} images, {doses} doses, {count} cases")
    for title in described.structures:
        absent = [
            scan.name
            for scan, maps in zip(scans, found, strict=True)
            if not maps.ignored and title not in maps.labels
        ]
        present = sum(title in maps.labels for maps in found)
        beside = f"; not in {len(absent)} maps ({some(absent)})" if absent else ""
        print(f"  {title}: {present} cases{beside}")
    ignored = [scan.name for scan, maps in zip(scans, found, strict=True) if maps.ignored]
    if ignored:
        print(f"  maps with voxels to ignore, left out: {len(ignored)} ({some(ignored)})")


def main() -> None:
    """Parses the command line and runs it."""
    parser = command_line(
        "nnunet", "Makes a dataset from a raw folder of nnU-Net.", "folder with imagesTr, labelsTr"
    )
    parser.add_argument("--channel", type=int, metavar="N", help="the one to take of several")
    parser.add_argument("--modality", choices=MODALITIES, default="", help="of that channel")
    parser.add_argument(
        "--dose",
        default="",
        metavar="FOLDER",
        help=f"folder in SOURCE with CASE.nii.gz in Gy (default: {DOSES}, if it is there)",
    )
    parser.add_argument(
        "--patient",
        default="",
        metavar="REGEX",
        help="what in a case's name is the patient: the match or its first group (default: all)",
    )
    arguments = vars(parser.parse_args())
    build(arguments.pop("source"), arguments.pop("out"), **arguments)


if __name__ == "__main__":
    run_command(main)
