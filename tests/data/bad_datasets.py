"""What can be wrong with `dataset.json` and the files it names, before a voxel is read."""

from __future__ import annotations

from pathlib import Path

from rtsam_jax import errors
from tests.data import damage as d
from tests.data.damage import BadInput, Damage


def _schema(damage: Damage, sentence: str) -> BadInput:
    return BadInput(damage, errors.DatasetSchemaError, "dataset_schema", 4, "dataset", sentence)


def _missing(damage: Damage, sentence: str) -> BadInput:
    return BadInput(damage, errors.MissingFile, "missing_file", 3, "dataset", sentence)


def _record(damage: Damage, sentence: str) -> BadInput:
    return BadInput(damage, errors.RecordError, "record_invalid", 4, "dataset", sentence)


def _split(damage: Damage, strikes: str, sentence: str) -> BadInput:
    return BadInput(damage, errors.SplitError, "split_invalid", 4, strikes, sentence)


DATASETS: dict[str, BadInput] = {
    "no dataset.json": _missing(
        lambda root: (root / "dataset.json").unlink(),
        "There is no {root}/dataset.json; name the folder of a dataset or build one there.",
    ),
    "a case's file is missing": _missing(
        lambda root: (root / "beta_dose.nii.gz").unlink(),
        "{root}/dataset.json: case 'beta': field 'dose' names beta_dose.nii.gz, but there is "
        "no such file in {root}; add the file or mend the path.",
    ),
    "a folder in place of a file": _missing(
        d.in_place_of("image", Path.mkdir),
        "{root}/dataset.json: case 'beta': field 'image' names beta_image.nii.gz, but there "
        "is no such file in {root}; add the file or mend the path.",
    ),
    "a loop of symbolic links": _missing(
        d.in_place_of("label", lambda path: path.symlink_to(path)),
        "{root}/dataset.json: case 'beta': field 'label' names beta_label.nii.gz, but there "
        "is no such file in {root}; add the file or mend the path.",
    ),
    "not JSON": _schema(
        d.with_text("schema: 1"),
        "{root}/dataset.json is not valid JSON ({reason}); mend the file.",
    ),
    "not text": _schema(
        lambda root: (root / "dataset.json").write_bytes(b"\xff\xfe{}"),
        "{root}/dataset.json is not valid JSON ({reason}); mend the file.",
    ),
    "a number that JSON does not have": _schema(
        d.with_text('{"schema": NaN}'),
        "{root}/dataset.json is not valid JSON (it contains NaN where a number must be); "
        "mend the file.",
    ),
    "a field given twice": _schema(
        d.with_text('{"schema": 1, "schema": 1}'),
        "{root}/dataset.json is not valid JSON (it has the field 'schema' twice in one object); "
        "mend the file.",
    ),
    "a list in place of the object": _schema(
        d.with_text("[]"),
        "{root}/dataset.json must hold one JSON object; see docs/dataset.md.",
    ),
    "another schema version": _schema(
        d.with_dataset(lambda document: document.update(schema=99)),
        "{root}/dataset.json: field 'schema' is 99, but this version reads 1; convert the "
        "dataset as docs/dataset.md says.",
    ),
    "an unknown field": _schema(
        d.with_beta(lable="beta_label.nii.gz"),
        "{root}/dataset.json: case 'beta': field 'lable' is unknown; remove it or use one of "
        "id, patient, task, image, dose, label, label_value, structures, record, split.",
    ),
    "a case without an image": _schema(
        d.with_beta(image=None),
        "{root}/dataset.json: case 'beta': field 'image' is missing; add it.",
    ),
    "no cases": _schema(
        d.with_dataset(lambda document: document.update(cases=[])),
        "{root}/dataset.json: field 'cases' must be a list of at least one case.",
    ),
    "a modality that is not read": _schema(
        d.with_dataset(lambda document: document["tasks"]["orn"].update(modality="PET")),
        "{root}/dataset.json: task 'orn': field 'modality' is 'PET', but it must be one of "
        "'CT', 'MR'.",
    ),
    "an unknown task": _schema(
        d.with_beta(task="necrosis"),
        "{root}/dataset.json: case 'beta': field 'task' is 'necrosis', but it must be one of "
        "'orn'.",
    ),
    "one id for two cases": _schema(
        d.with_beta(id="alpha"),
        "{root}/dataset.json: case 'alpha': field 'id' is used twice.",
    ),
    "an id that is a path": _schema(
        d.with_beta(id="../beta"),
        "{root}/dataset.json: case '../beta': field 'id' is '../beta', but it must be "
        "letters, digits, '.', '_' and '-' only, 100 at most, a letter or digit first.",
    ),
    "a patient with a space at its end": _schema(
        d.with_beta(patient="alpha "),
        "{root}/dataset.json: case 'beta': field 'patient' is 'alpha ', but it must be a text"
        " without spaces around it.",
    ),
    "a path that leaves the folder": _schema(
        d.with_beta(image="../beta_image.nii.gz"),
        "{root}/dataset.json: case 'beta': field 'image' must be a path relative to the "
        "dataset's folder that stays inside it.",
    ),
    "a path that leaves the folder on its way": _schema(
        d.with_beta(image="ct/../../beta_image.nii.gz"),
        "{root}/dataset.json: case 'beta': field 'image' must be a path relative to the "
        "dataset's folder that stays inside it.",
    ),
    "an absolute path": _schema(
        d.with_beta(dose="/beta_dose.nii.gz"),
        "{root}/dataset.json: case 'beta': field 'dose' must be a path relative to the "
        "dataset's folder that stays inside it.",
    ),
    "a path on a drive": _schema(
        d.with_beta(label="C:\\beta_label.nii.gz"),
        "{root}/dataset.json: case 'beta': field 'label' must be a path relative to the "
        "dataset's folder that stays inside it.",
    ),
    "a path on a server": _schema(
        d.with_beta(label="\\\\server\\share\\beta_label.nii.gz"),
        "{root}/dataset.json: case 'beta': field 'label' must be a path relative to the "
        "dataset's folder that stays inside it.",
    ),
    "a path with a zero byte": _schema(
        d.with_beta(image="beta_image.nii.gz\0"),
        "{root}/dataset.json: case 'beta': field 'image' must be a path relative to the "
        "dataset's folder that stays inside it.",
    ),
    "a label value of zero": _schema(
        d.with_beta(label_value=0),
        "{root}/dataset.json: case 'beta': field 'label_value' is 0, but it must be a whole "
        "number other than 0, beside a label.",
    ),
    "a label value that is no whole number": _schema(
        d.with_beta(label_value=1.5),
        "{root}/dataset.json: case 'beta': field 'label_value' is 1.5, but it must be a whole"
        " number other than 0, beside a label.",
    ),
    "a label value without a label": _schema(
        d.with_beta(label=None, label_value=2),
        "{root}/dataset.json: case 'beta': field 'label_value' is 2, but it must be a whole "
        "number other than 0, beside a label.",
    ),
    "structures that are a list": _schema(
        d.with_beta(structures=["beta_label.nii.gz"]),
        "{root}/dataset.json: case 'beta': field 'structures' must be an object of a path, or of "
        "path and value, for each name.",
    ),
    "a structure with a space in its name": _schema(
        d.with_beta(structures={"spinal cord": "beta_label.nii.gz"}),
        "{root}/dataset.json: case 'beta': field 'structures.spinal cord' must be called by "
        "another name: letters, digits, '.', '_' and '-' only, 100 at most, a letter or digit "
        "first.",
    ),
    "a structure that is a number": _schema(
        d.with_beta(structures={"cord": 2}),
        "{root}/dataset.json: case 'beta': field 'structures.cord' is 2, but it must be a path, "
        "or an object of path and value.",
    ),
    "a structure with another field": _schema(
        d.with_beta(structures={"cord": {"path": "beta_label.nii.gz", "label": 2}}),
        "{root}/dataset.json: case 'beta': structure 'cord': field 'label' is unknown; remove it "
        "or use one of path, value.",
    ),
    "a structure without a path": _schema(
        d.with_beta(structures={"cord": {"value": 2}}),
        "{root}/dataset.json: case 'beta': structure 'cord': field 'path' is missing; add it.",
    ),
    "a structure's value of zero": _schema(
        d.with_beta(structures={"cord": {"path": "beta_label.nii.gz", "value": 0}}),
        "{root}/dataset.json: case 'beta': field 'structures.cord.value' is 0, but it must be a "
        "whole number other than 0.",
    ),
    "a structure outside the folder": _schema(
        d.with_beta(structures={"cord": "../cord.nii.gz"}),
        "{root}/dataset.json: case 'beta': field 'structures.cord' must be a path relative to the "
        "dataset's folder that stays inside it.",
    ),
    "a structure's file is missing": _missing(
        d.with_beta(structures={"cord": "cord.nii.gz"}),
        "{root}/dataset.json: case 'beta': field 'structures.cord' names cord.nii.gz, but there "
        "is no such file in {root}; add the file or mend the path.",
    ),
    "a record that names a person": _record(
        d.with_beta(record={"patient_name": "Roe"}),
        "{root}/dataset.json: case 'beta': record field 'patient_name' identifies a person; "
        "remove it.",
    ),
    "a record that carries the answer": _record(
        d.with_beta(record={"lesion_volume_ml": 3}),
        "{root}/dataset.json: case 'beta': record field 'lesion_volume_ml' describes the "
        "delineation, but a prompt must not carry the answer; remove it ('side' may state the"
        " injury's side where the clinical record does).",
    ),
    "a prescription in centigray": _record(
        d.with_beta(record={"prescription_gy": 7000}),
        "{root}/dataset.json: case 'beta': record field 'prescription_gy' must be a number "
        "from 1 to 120 (Gy); mend or remove it.",
    ),
    "a split for some": _split(
        d.with_beta(split="test"),
        "dataset",
        "{root}/dataset.json: case 'alpha' has no field 'split', though others have; give it "
        "to all cases or to none.",
    ),
    "a patient in two splits": _split(
        d.with_dataset(
            lambda document: [
                case.update(patient="alpha", split=split)
                for case, split in zip(document["cases"], ("train", "test"), strict=True)
            ]
        ),
        "dataset",
        "{root}/dataset.json: patient alpha is in split 'train' (case alpha) and in 'test' "
        "(case beta); keep all cases of a patient on one side.",
    ),
    "stale stored splits": _split(
        d.with_splits({"alpha": "test"}),
        "splits",
        "{root}/splits.json lacks case 'beta'; delete it to split anew, or name another file.",
    ),
    "a patient in two stored splits": _split(
        d.with_splits({"alpha": "train", "beta": "test"}, d.with_beta(patient="alpha")),
        "splits",
        "{root}/splits.json: patient alpha is in split 'train' (case alpha) and in 'test' "
        "(case beta); keep all cases of a patient on one side.",
    ),
}
