"""What a reader should look at in a case before training on it: facts beyond plausible bounds.

A warning refuses nothing. Bounds are wide: a course of radiotherapy, a scanner or a lesion beyond
them exists, but is rarer than the mistake that looks like it.
"""

from __future__ import annotations

from collections.abc import Iterator

from rtsam_jax.report.case_facts import (
    SMALL_LESION_VOXELS,
    CaseFacts,
    DoseFacts,
    LabelFacts,
    Triple,
)

# A CT's field of view holds air around the patient or in the airways. Values that do not reach down
# to it have another offset, or are grey values.
CT_AIR_HU = -500.0
# From a single palliative fraction to the hot spots of stereotactic courses. A dose in cGy or as a
# share of the prescription lies outside.
DOSE_RANGE_GY = (5.0, 120.0)
# A lesion seen in one slice is then spread over this many voxels of an isotropic grid.
ANISOTROPY = 5.0
# The loss inside the ROI then sees less than half of what it should teach.
MOSTLY = 0.5
# Planning systems compute the dose in the body, so a rim of the image is always left out.
DOSE_RIM = 0.1


def warnings_of(facts: CaseFacts) -> tuple[str, ...]:
    """Plain sentences with their numbers; none for a case that gives no reason to look."""
    return (
        *_on_image(facts),
        *(_on_dose(facts.dose, facts.crop_mm) if facts.dose else _NO_DOSE),
        *(_on_label(facts.label, facts.model_spacing_mm) if facts.label else _NO_LABEL),
    )


_NO_DOSE = ("There is no dose, and so no dose box; what needs one leaves the case out.",)
_NO_LABEL = ("There is no label; the case cannot be trained on or scored.",)


def looks_like_hu(facts: CaseFacts) -> bool:
    """Whether a CT's values reach down to those of air."""
    return facts.modality == "CT" and facts.intensities[0] <= CT_AIR_HU


def _on_image(facts: CaseFacts) -> Iterator[str]:
    least = facts.intensities[0]
    if facts.modality == "CT" and not looks_like_hu(facts):
        yield (
            f"The smallest value is {least:.4g}, but air in a CT is near -1000 HU: check that the "
            "values are HU."
        )
    if facts.modality == "MR" and least < 0:
        yield (
            f"The smallest value is {least:.4g}, but an MR magnitude image has no negative values: "
            "check that it is not normalised already, since zero counts as background."
        )
    ratio = max(facts.spacing_mm) / min(facts.spacing_mm)
    if ratio > ANISOTROPY:
        yield (
            f"Voxels of {times(facts.spacing_mm)} mm are {ratio:.1f} times as long as wide: "
            "between slices, most of the model's image is interpolated."
        )


def _on_dose(dose: DoseFacts, crop_mm: float) -> Iterator[str]:
    low, high = DOSE_RANGE_GY
    if not low <= dose.dmax <= high:
        yield (
            f"The largest dose is {dose.dmax:.4g}, implausible in Gy ({low:g} to {high:g}): check "
            "the dose's unit and scaling."
        )
    if dose.crops > 1:
        yield (
            f"The dose box of {times(dose.box_mm)} mm is larger than the crop of {crop_mm:.4g} mm: "
            f"it takes {dose.crops} overlapping crops."
        )
    if dose.outside > DOSE_RIM:
        yield (
            f"{percent(dose.outside)} of the image lies outside the dose grid, where the dose "
            "counts as 0."
        )


def _on_label(label: LabelFacts, model_spacing_mm: float) -> Iterator[str]:
    if label.lesions == 0:
        yield "The label is empty."
        return
    if label.outside_roi is not None and label.outside_roi > MOSTLY:
        yield f"{percent(label.outside_roi)} of the label lies outside the high-dose region."
    if label.outside_crops:
        yield (
            f"{percent(label.outside_crops)} of the label lies outside every crop and will count "
            "as missed."
        )
    if label.at_border:
        yield "The label touches the image's border: a part of it may be cut off."
    voxel = f"{model_spacing_mm**3:.3g} mm³"
    if label.below_voxel:
        yield (
            f"{_lesions(label.below_voxel, label.lesions)} smaller than one model voxel ({voxel})."
        )
    if small := label.below_small - label.below_voxel:
        yield (
            f"{_lesions(small, label.lesions)} smaller than {SMALL_LESION_VOXELS} model voxels "
            f"of {voxel}."
        )


def _lesions(count: int, total: int) -> str:
    if total == 1:
        return "The lesion is"
    return f"{count} of {total} lesions {'is' if count == 1 else 'are'}"


def times(values: Triple) -> str:
    """Lengths as a reader multiplies them: "0.9 × 0.9 × 3"."""
    return " × ".join(f"{value:.3g}" for value in values)


def percent(share: float) -> str:
    """A share for reading; a trace of something is not shown as none, nor most as all."""
    if 0 < share < 0.001:
        return "Under 0.1 %"
    if 0.999 < share < 1:
        return "Over 99.9 %"
    return f"{100 * share:.3g} %"
