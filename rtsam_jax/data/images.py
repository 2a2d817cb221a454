"""A dataset of bare images, without dose or label, to prepare and to look at.

python -m rtsam_jax.data.images SOURCE OUT --modality CT|MR

SOURCE holds NIfTI files; folders in it are not searched. Each becomes an incomplete case.
"""

from __future__ import annotations

from pathlib import Path

from rtsam_jax.data.cases import MODALITIES, TaskInfo
from rtsam_jax.data.import_folder import (
    command_line,
    ending_of,
    place,
    progress,
    unique_names,
    volumes_in,
    write_import,
)
from rtsam_jax.data.new_folder import new_folder
from rtsam_jax.errors import MissingFile, run_command

TASK = "unlabelled"


def build(
    source: Path,
    root: Path,
    *,
    modality: str,
    one_patient: str = "",
    kind: str = "surrogate",
    copy: bool = False,
) -> None:
    """Writes the dataset; it appears complete or not at all.

    Args:
      source: a folder of NIfTI files.
      root: the folder to make; it must not exist, or be empty.
      modality: of all images, "CT" or "MR".
      one_patient: whose images all of them are; "": each file is a patient of its own.
      kind: as in the schema.
      copy: copy the volumes instead of linking them.

    Raises:
      MissingFile: no folder, or no NIfTI file in it.
      UnreadableFile, DatasetSchemaError: a file of another format, or names that are not distinct.
      OutputExists: `root` holds something.
    """
    source = Path(source)
    images = volumes_in(source)
    if not images:
        raise MissingFile(f"{source} holds no NIfTI file; name the folder that holds the images.")
    names = unique_names(images, "image")
    with new_folder(root) as beside:
        cases = []
        for stem, path in progress(images.items(), len(images), "images", every=100):
            image = f"images/{names[stem]}{ending_of(path)}"
            place(path, beside / image, copy=copy)
            cases.append(
                {
                    "id": names[stem],
                    "patient": one_patient or names[stem],
                    "task": TASK,
                    "image": image,
                    "split": None,
                }
            )
        write_import(
            beside,
            source=source,
            kind=kind,
            description=f"Images of {source.resolve().name}, without dose or label.",
            tasks=(TaskInfo(TASK, modality, "unlabelled image"),),
            cases=cases,
        )
    print(f"{len(images)} {modality} images in {root}, without dose or label")


def main() -> None:
    """Parses the command line and runs it."""
    parser = command_line(
        "images", "Makes a dataset of images without dose or label.", "folder of NIfTI files"
    )
    parser.add_argument("--modality", choices=MODALITIES, required=True, help="of all images")
    parser.add_argument(
        "--one-patient",
        default="",
        metavar="NAME",
        help="all images are of this patient (default: a patient per file)",
    )
    arguments = vars(parser.parse_args())
    build(arguments.pop("source"), arguments.pop("out"), **arguments)


if __name__ == "__main__":
    run_command(main)
