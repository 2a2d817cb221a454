"""Every kind of bad input that is known, with the error it must give, word for word."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from rtsam_jax import errors
from tests.data import damage as d
from tests.data.bad_datasets import DATASETS
from tests.data.damage import BadInput, Damage, make_dataset

__all__ = ["CORPUS", "BadInput", "make_dataset"]

SELF = Path("/proc/self/mem")  # a file that exists, and whose first byte gives EIO
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
GZIP_MEMBER = gzip.compress(bytes(2**22))  # 4 MiB in a few kB


def _unreadable(damage: Damage, sentence: str, needs: Path | None = None) -> BadInput:
    return BadInput(
        damage, errors.UnreadableFile, "unreadable_file", 3, "case", sentence, needs=needs
    )


def _volume(damage: Damage, sentence: str) -> BadInput:
    return BadInput(damage, errors.VolumeError, "volume_invalid", 5, "case", sentence)


FILES: dict[str, BadInput] = {
    "truncated gzip": _unreadable(
        d.with_bytes("image", lambda content: content[: len(content) // 2]),
        "The image {root}/beta_image.nii.gz cannot be read as NIfTI ({reason}); it is "
        "truncated, corrupt or of another format: copy or convert it again.",
    ),
    "gzip without its checksum": _unreadable(
        d.with_bytes("image", lambda content: content[:-8]),
        "The image {root}/beta_image.nii.gz cannot be read as NIfTI ({reason}); it is "
        "truncated, corrupt or of another format: copy or convert it again.",
    ),
    "a flipped bit": _unreadable(
        d.with_bytes("image", lambda c: c[:2000] + bytes([c[2000] ^ 16]) + c[2001:]),
        "The image {root}/beta_image.nii.gz cannot be read as NIfTI ({reason}); it is "
        "truncated, corrupt or of another format: copy or convert it again.",
    ),
    "truncated before compression": _unreadable(
        d.with_bytes("dose", lambda content: gzip.compress(gzip.decompress(content)[:-100])),
        "The dose {root}/beta_dose.nii.gz cannot be read as NIfTI (it ends before its last voxel); "
        "it is truncated, corrupt or of another format: copy or convert it again.",
    ),
    "an empty file": _unreadable(
        d.with_bytes("label", lambda content: b""),
        "The label {root}/beta_label.nii.gz cannot be read as NIfTI ({reason}); it is "
        "truncated, corrupt or of another format: copy or convert it again.",
    ),
    "another format": _unreadable(
        d.with_bytes("image", lambda content: b"NRRD0004\n" * 100),
        "The image {root}/beta_image.nii.gz cannot be read as NIfTI ({reason}); it is "
        "truncated, corrupt or of another format: copy or convert it again.",
    ),
    "a file that the system cannot read": _unreadable(
        d.in_place_of("image", lambda path: path.symlink_to(SELF)),
        "The image {root}/beta_image.nii.gz cannot be read (Input/output error); mend its "
        "permissions or its disk, or copy it again.",
        needs=SELF,
    ),
    "a gzip bomb": _unreadable(
        d.with_bytes("image", lambda content: content + GZIP_MEMBER),
        "The image {root}/beta_image.nii.gz cannot be read as NIfTI (it goes on after the "
        "voxels that its header declares); it is truncated, corrupt or of another format: "
        "copy or convert it again.",
    ),
    "voxels at an infinite offset": _unreadable(
        d.with_header("image", d.header_field(108, "<f4", np.inf)),  # vox_offset
        "The image {root}/beta_image.nii.gz cannot be read as NIfTI (its voxels start at byte"
        " inf); it is truncated, corrupt or of another format: copy or convert it again.",
    ),
    "voxels at a distant offset": _unreadable(
        d.with_header("label", d.header_field(108, "<f4", 1e9)),
        "The label {root}/beta_label.nii.gz cannot be read as NIfTI (its voxels start at byte"
        " 1e+09); it is truncated, corrupt or of another format: copy or convert it again.",
    ),
    "too many voxels along an axis": _volume(
        d.with_header("image", d.header_field(42, "<i2", 2049, 4, 4)),  # dim[1:4]
        "The image {root}/beta_image.nii.gz has shape (2049, 4, 4), but at most 2048 voxels "
        "along an axis and 1073741824 in all are read; crop or resample it.",
    ),
    "too many voxels in all": _volume(
        d.with_header("dose", d.header_field(42, "<i2", 2048, 2048, 257)),
        "The dose {root}/beta_dose.nii.gz has shape (2048, 2048, 257), but at most 2048 "
        "voxels along an axis and 1073741824 in all are read; crop or resample it.",
    ),
    "several frames": _volume(
        d.with_array("image", lambda array: np.stack([array, array], -1)),
        "The image {root}/beta_image.nii.gz has shape (8, 9, 10, 2), but one 3-D frame is "
        "needed; extract the frame to use into its own file.",
    ),
    "a flat picture": _volume(
        d.with_array("image", lambda array: array[..., 0]),
        "The image {root}/beta_image.nii.gz has shape (8, 9), but one 3-D frame is needed; "
        "extract the frame to use into its own file.",
    ),
    "no voxels": _volume(
        d.with_array("label", lambda array: array[:0]),
        "The label {root}/beta_label.nii.gz has shape (0, 9, 10), no voxels; export it again.",
    ),
    "complex voxels": _volume(
        d.with_array("image", lambda array: array.astype(np.complex64)),
        "The image {root}/beta_image.nii.gz stores complex64 voxels, but real numbers are "
        "needed; convert it to a scalar type.",
    ),
    "colours": _volume(
        d.with_array("image", lambda array: np.zeros(d.SHAPE, RGB)),
        "The image {root}/beta_image.nii.gz stores [('R', 'u1'), ('G', 'u1'), ('B', 'u1')] "
        "voxels, but real numbers are needed; convert it to a scalar type.",
    ),
    "a singular affine": _volume(
        d.with_header("image", d.header_field(312, "<f4", 0, 0, 0, 0)),  # srow_z
        "The image {root}/beta_image.nii.gz has a singular or non-finite affine, so its "
        "voxels have no place in the patient; write a valid sform or qform.",
    ),
    "an affine with NaN": _volume(
        d.with_header("dose", d.header_field(292, "<f4", np.nan)),  # srow_x[3]
        "The dose {root}/beta_dose.nii.gz has a singular or non-finite affine, so its voxels "
        "have no place in the patient; write a valid sform or qform.",
    ),
    "no place in the patient": _volume(
        d.with_header("image", d.header_field(252, "<i2", 0, 0)),  # qform_code, sform_code
        "The image {root}/beta_image.nii.gz has neither an sform nor a qform, so left and "
        "right are unknown; convert it again from its source.",
    ),
    "two places in the patient": _volume(
        d.with_header("image", d.header_field(268, "<f4", 30)),  # qoffset_x
        "The image {root}/beta_image.nii.gz has a qform and an sform that place its corners "
        "30 mm apart; keep the right one and set the code of the other to 0.",
    ),
    "a qform that is no rotation": _volume(
        d.with_header("dose", d.header_field(256, "<f4", 3, 3, 3)),  # quatern_b, c, d
        "The dose {root}/beta_dose.nii.gz has a qform that is no rotation beside its sform; "
        "set qform_code to 0 if the sform is right.",
    ),
    "an unknown unit of length": _volume(
        d.with_header("dose", d.header_field(123, "u1", 6)),  # xyzt_units
        "The dose {root}/beta_dose.nii.gz gives its lengths in unit 6, which NIfTI does not "
        "have; set its xyzt_units to 2 (mm) if that is what they are.",
    ),
    "metres for millimetres": _volume(
        d.with_header("image", d.header_field(123, "u1", 1)),
        "The image of beta extends over 8000 x 9000 x 10000 mm, which is too large for a "
        "model grid of 1 mm; check its file's affine and unit of length, or set "
        "config.data.spacing_mm to suit.",
    ),
    "an endless image": _volume(
        d.with_header("image", d.sform_edges(1e30)),
        "The image of beta extends over 8e+30 x 9e+30 x 1e+31 mm, which is too large for a "
        "model grid of 1 mm; check its file's affine and unit of length, or set "
        "config.data.spacing_mm to suit.",
    ),
    "a vanishing image": _volume(
        d.with_header("image", d.sform_edges(1e-30)),
        "The image of beta extends over 8e-30 x 9e-30 x 1e-29 mm, which is too small for a "
        "model grid of 1 mm; check its file's affine and unit of length, or set "
        "config.data.spacing_mm to suit.",
    ),
    "an image of air": _volume(
        d.with_array("image", lambda array: np.full_like(array, -1000)),
        "The image of beta has no voxel above -900 HU; check its scaling and its task's "
        "modality.",
    ),
    "a constant image": _volume(
        d.with_array("image", np.zeros_like),
        "The image of beta has one and the same value in all voxels above -900 HU, so it "
        "cannot be normalised; check that the right file was exported.",
    ),
    "a label of several structures": _volume(
        d.with_array("label", lambda array: np.arange(array.size).reshape(array.shape) % 8.0),
        "The label {root}/beta_label.nii.gz holds the values 1, 2, 3, 4, 5 and 2 more; name "
        "the one that is inside as the case's label_value, or store a mask of one structure.",
    ),
    "a label of probabilities": _volume(
        d.with_array("label", lambda array: np.linspace(0, 1, array.size).reshape(array.shape)),
        "The label {root}/beta_label.nii.gz holds 0.00139082, but values in a map are whole "
        "numbers; store it as integers (a probability cut at one half).",
    ),
    "NaN voxels": BadInput(
        d.with_array("image", d.put((1, 2, 3), np.nan)),
        errors.NonFiniteVoxels, "non_finite_voxels", 5, "case",
        "The image {root}/beta_image.nii.gz has 1 NaN or infinite voxels; replace them with "
        "real values (such as the background's) before using it.",
    ),
    "infinite dose": BadInput(
        d.with_array("dose", d.put((1, 2, 3), np.inf)),
        errors.NonFiniteVoxels, "non_finite_voxels", 5, "case",
        "The dose {root}/beta_dose.nii.gz has 1 NaN or infinite voxels; replace them with "
        "real values (such as the background's) before using it.",
    ),
    "a label elsewhere": BadInput(
        d.shifted("label", 400.0),
        errors.NoOverlap, "no_overlap", 5, "case",
        "The label of beta covers no voxel of its image; check that both belong together, or "
        "register the label to the image.",
    ),
    "a label of a part": BadInput(
        d.with_array("label", lambda array: array[:, :, :6]),
        errors.LabelNotCovering, "label_not_covering", 5, "case",
        "The label of beta ends 4 mm inside its image's field of view, and beyond its end "
        "nothing is known; pad it with zeros if nothing is there, or crop the image to it.",
    ),
    "dose and image far apart": BadInput(
        d.shifted("dose", 400.0),
        errors.NoOverlap, "no_overlap", 5, "case",
        "The dose of beta covers no voxel of its image; check that both belong together, or "
        "register the dose to the image.",
    ),
    "no dose at all": BadInput(
        d.with_array("dose", np.zeros_like),
        errors.ZeroDose, "zero_dose", 5, "case",
        "The dose of beta has no positive voxel; check its scaling or export the plan again.",
    ),
    "a dose with a negative voxel": BadInput(
        d.with_array("dose", d.put((0, 0, 0), -1.0)),
        errors.NegativeDose, "negative_dose", 5, "case",
        "The dose of beta falls to -1 while its largest value is 60; a dose is not negative, "
        "so check its scaling or export the plan again.",
    ),
    "a dose below zero": BadInput(
        d.with_array("dose", np.negative),
        errors.NegativeDose, "negative_dose", 5, "case",
        "The dose of beta falls to -60 while its largest value is 0; a dose is not negative, "
        "so check its scaling or export the plan again.",
    ),
    "hot spot beside the image": BadInput(
        d.shifted("dose", 5.5),
        errors.EmptyROI, "empty_roi", 5, "case",
        "No voxel of beta's image reaches 0.8 of its largest dose, 60; check that the dose "
        "belongs to this image; to train, lower the dose's threshold or data.spacing_mm, and to "
        "predict, give a box.",
    ),
    "hot spot beside the image, by D2%": BadInput(
        d.shifted("dose", 5.5),
        errors.EmptyROI, "empty_roi", 5, "case",
        "No voxel of beta's image reaches 0.8 of its near-maximum dose D2%, 60; check that "
        "the dose belongs to this image; to train, lower the dose's threshold or "
        "data.spacing_mm, and to predict, give a box.",
        dose={"threshold": "d2"},
    ),
    "a dose below the absolute threshold": BadInput(
        d.with_array("dose", lambda array: array / 2),
        errors.EmptyROI, "empty_roi", 5, "case",
        "No voxel of beta's image reaches 45 Gy; check that the dose belongs to this image; "
        "to train, lower the dose's threshold or data.spacing_mm, and to predict, give a box.",
        dose={"threshold": "absolute", "gy": 45.0},
    ),
    "a dose below the prescription": BadInput(
        d.with_array("dose", lambda array: array / 2),
        errors.EmptyROI, "empty_roi", 5, "case",
        "No voxel of beta's image reaches 0.8 of the prescription, 70 Gy; check that the "
        "dose belongs to this image; to train, lower the dose's threshold or data.spacing_mm, "
        "and to predict, give a box.",
        dose={"threshold": "prescription"},
    ),
    "a dose in centigray for a threshold in gray": BadInput(
        d.with_array("dose", lambda array: array * 100),
        errors.DoseUnit, "dose_unit", 5, "case",
        "The dose of beta reaches 6000, which none in Gy does (200 at most), but "
        "dose.threshold='absolute' needs Gy; rescale its file (by 0.01 from cGy), or set "
        "dose.threshold to 'dmax' or 'd2'.",
        dose={"threshold": "absolute", "gy": 45.0},
    ),
    "a dose in centigray for a prescription": BadInput(
        d.with_array("dose", lambda array: array * 100),
        errors.DoseUnit, "dose_unit", 5, "case",
        "The dose of beta reaches 6000, which none in Gy does (200 at most), but "
        "dose.threshold='prescription' needs Gy; rescale its file (by 0.01 from cGy), or set "
        "dose.threshold to 'dmax' or 'd2'.",
        dose={"threshold": "prescription"},
    ),
    "no prescription": BadInput(
        d.with_beta(record={"age": 61}),
        errors.IncompleteCase, "incomplete_case", 4, "case",
        "The record of beta has no prescription_gy, which dose.threshold='prescription' "
        "needs; add it, or set another threshold.",
        dose={"threshold": "prescription"},
    ),
}  # fmt: skip

CORPUS = DATASETS | FILES
