"""What a case's record may say: an allow-list of fields, each with its type, unit and vocabulary.

The record becomes the clinical and demographic sentences of the text prompt (Sec. 3.2.1). It must
not identify a person, and it must not carry the answer: nothing in it describes the delineation,
except the injury's side where the clinical record states it. docs/dataset.md lists the fields.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from rtsam_jax.errors import RecordError
from rtsam_jax.prompts.phrases import SITES, TECHNIQUES

Scalar = str | int | float | bool


@dataclass(frozen=True)
class Number:
    """A number from `low` to `high`, both included."""

    low: float
    high: float
    unit: str
    whole: bool = False


@dataclass(frozen=True)
class Flag:
    """true or false."""


@dataclass(frozen=True)
class Term:
    """A word of a vocabulary."""

    terms: tuple[str, ...]
    open: bool = False  # other words are accepted where free text is
    several: bool = False  # a list in one text, separated by commas
    flag: bool = False  # true and false are accepted as well


@dataclass(frozen=True)
class Note:
    """Free text, accepted only where free text is."""


@dataclass(frozen=True)
class Field:
    """One field of a record."""

    group: str  # of its sentence: "clinical" | "demographic"
    kind: Number | Flag | Term | Note


def _clinical(kind: Number | Flag | Term | Note) -> Field:
    return Field("clinical", kind)


_SIDES = Term(("left", "right", "bilateral", "midline"))
_HABIT = Term(("never", "former", "current"), flag=True)

FIELDS: dict[str, Field] = {
    "age": Field("demographic", Number(0, 120, "years", whole=True)),
    "sex": Field("demographic", Term(("female", "male", "other"))),
    "site": _clinical(Term(tuple(SITES), open=True)),
    "tumour_side": _clinical(_SIDES),
    "histology": _clinical(
        Term(
            (
                *("squamous cell carcinoma", "adenocarcinoma", "undifferentiated carcinoma"),
                *("adenoid cystic carcinoma", "mucoepidermoid carcinoma", "lymphoma", "melanoma"),
                *("sarcoma", "chordoma", "chondrosarcoma", "glioblastoma", "astrocytoma"),
                *("oligodendroglioma", "ependymoma", "medulloblastoma", "meningioma"),
                *("craniopharyngioma", "pituitary adenoma", "schwannoma"),
            ),
            open=True,
        )
    ),
    "who_grade": _clinical(Number(1, 4, "WHO grade", whole=True)),
    "t_stage": _clinical(
        Term(("TX", "T0", "Tis", "T1", "T1a", "T1b", "T2", "T2a", "T2b", "T3", "T4", "T4a", "T4b"))
    ),
    "n_stage": _clinical(Term(("NX", "N0", "N1", "N2", "N2a", "N2b", "N2c", "N3", "N3a", "N3b"))),
    "m_stage": _clinical(Term(("MX", "M0", "M1"))),
    "stage": _clinical(Term(("0", "I", "II", "III", "IV", "IVA", "IVB", "IVC"))),
    "hpv": _clinical(Term(("positive", "negative"))),
    "prescription_gy": _clinical(Number(1, 120, "Gy")),
    "fractions": _clinical(Number(1, 100, "fractions", whole=True)),
    "dose_per_fraction_gy": _clinical(Number(0.5, 90, "Gy")),
    "technique": _clinical(Term(tuple(TECHNIQUES), open=True)),
    "concurrent_chemotherapy": _clinical(Flag()),
    "surgery": _clinical(Flag()),
    "dental_extraction": _clinical(Flag()),
    "smoking": _clinical(_HABIT),
    "alcohol": _clinical(_HABIT),
    "diabetes": _clinical(Flag()),
    "hypertension": _clinical(Flag()),
    "bevacizumab": _clinical(Flag()),
    "steroids": _clinical(Flag()),
    "months_since_rt": _clinical(Number(0, 600, "months")),
    "side": _clinical(_SIDES),
    "symptoms": _clinical(
        Term(
            (
                *("none", "pain", "swelling", "exposed bone", "trismus", "fistula", "infection"),
                *("pathological fracture", "numbness", "headache", "nausea", "vomiting"),
                *("dizziness", "seizure", "weakness", "gait disturbance", "speech disturbance"),
                *("visual disturbance", "memory loss", "confusion", "personality change"),
            ),
            open=True,
            several=True,
        )
    ),
    "note": _clinical(Note()),
}

# Words of a field's name (`patient_name`, `StudyDate`) that say whom or what it describes.
_IDENTIFYING = frozenset(
    "name names surname initials patient person mrn id ids identifier birth birthday born dob date "
    "datetime time timestamp day address street city town zip zipcode postcode postal phone "
    "telephone mobile fax email mail ssn nhs passport licence license insurance insurer policy "
    "hospital clinic institution physician doctor surgeon oncologist radiologist nurse operator "
    "relative contact accession uid url ip photo patientname patientid firstname lastname "
    "fullname birthdate dateofbirth studydate scandate".split()
)
_DELINEATING = frozenset(
    "lesion lesions injury injuries volume volumes diameter centroid center centre bbox box boxes "
    "location position coordinate coordinates extent slice slices count size area radius shape "
    "mask contour contours segmentation delineation annotation label roi voxel voxels bounds "
    "corner corners lobe quadrant mm mm3 cm cm3 ml cc".split()
)

# "may" and "march" are verbs unless capitalised.
_MONTHS = (
    r"(?:(?i:jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|january|february|april|june|july|august"
    r"|september|october|november|december)|May|MAY|March|MARCH)"
)
_LONGEST = 500  # characters
# What free text must not hold. It finds the usual forms; a bare name it cannot know.
_SUSPECT = {
    "a date or a year": re.compile(
        r"\d{1,4}\s*[-/.]\s*\d{1,2}\s*[-/.]\s*\d{1,4}|\b\d{1,2}[-/]\d{4}\b"
        r"|\b(?:0\d[-/]\d\d?|\d\d?[-/]0\d)\b"
        r"|(?<!\d)(?:19|20)\d\d(?!\d|\s*(?:c?Gy|mg)\b)"
        rf"|\b{_MONTHS}\b\W{{0,2}}\d|\d(?:st|nd|rd|th)?\W{{0,2}}(?:of )?{_MONTHS}\b"
        r"|\d(?:st|nd|rd|th)\W{0,2}(?:of )?(?:may|march)\b|\d\W{0,2}march\b"
    ),
    "a number of 5 digits or more": re.compile(r"\d{5}"),
    "a telephone number": re.compile(r"\d(?:[\s()./+-]*\d){6}"),
    "an e-mail or web address": re.compile(r"@|https?:|www\.", re.IGNORECASE),
    "the name of an identifier": re.compile(
        r"(?<![a-z])(?:mrn|dob|ssn|nhs)(?![a-z])", re.IGNORECASE
    ),
    "an age of 90 or more": re.compile(
        r"\b(?:9\d|1[01]\d)[\s-]*(?:years?|yrs?|y\.?\s*/?o\b)|\baged?\s*(?:of\s*)?(?:9\d|1[01]\d)\b",
        re.IGNORECASE,
    ),
    "a person's name": re.compile(
        r"\b(?i:mr|mrs|ms|miss|mx|dr|doctor|prof|professor|sir|nurse)(?:\.\s*|\s+)[^\W\d_a-z]"
    ),
    "a size or a slice": re.compile(
        r"\d[\s-]*(?:mm|cm|ml|cc|millimet\w*|centimet\w*|millilit\w*)(?:[23²³]|\b)"
        r"|\b(?:slices?|voxels?)\D{0,6}\d",
        re.IGNORECASE,
    ),
}


def check_record(record: Mapping[str, Scalar], where: str, *, free_text: bool = False) -> None:
    """Raises `RecordError`, naming the field, where a record holds what a prompt must not say.

    Args:
      record: field -> value, unknown fields left out.
      where: whose it is, for the message: "datasets/x/dataset.json: case 'p1'".
      free_text: accept `note`, and terms outside the vocabularies of `site`, `histology`,
        `technique` and `symptoms`. Dates, years, long numbers, addresses, titles before a name and
        sizes are refused even then.
    """
    check_names(record, where)
    for name, value in record.items():
        _check_value(name, FIELDS[name].kind, value, where, free_text)


def check_names(names: Iterable[str], where: str) -> None:
    """Raises `RecordError` for a field that is not in the allow-list; see `check_record`."""
    for name in names:
        if name not in FIELDS:
            _refuse_name(str(name), where)  # a caller's may be a number


def _refuse_name(name: str, where: str) -> NoReturn:
    what = f"{where}: record field {name!r}"
    words = re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())
    words.append("".join(words))
    if _IDENTIFYING.intersection(words):
        raise RecordError(f"{what} identifies a person; remove it.")
    if _DELINEATING.intersection(words):
        raise RecordError(
            f"{what} describes the delineation, but a prompt must not carry the answer; remove it "
            "('side' may state the injury's side where the clinical record does)."
        )
    near = difflib.get_close_matches(name.lower(), FIELDS, n=1)
    hint = f"did you mean {near[0]!r}, or " if near else ""
    raise RecordError(
        f"{what} is unknown ({hint}another field of docs/dataset.md?); rename or remove it."
    )


def _check_value(
    name: str, kind: Number | Flag | Term | Note, value: Scalar, where: str, free_text: bool
) -> None:
    # No message repeats a value: messages go to logs, and a misplaced value may name a person.
    def need(holds: bool, rule: str) -> None:
        if not holds:
            raise RecordError(f"{where}: record field {name!r} must be {rule}; mend or remove it.")

    match kind:
        case Flag():
            need(isinstance(value, bool), "true or false, without quotes")
        case Number():
            what = f"a {'whole ' if kind.whole else ''}number"
            # true and "70" are no numbers, nor are None and lists, which tables and JSON may hold
            if isinstance(value, bool) or not isinstance(value, int | float):
                need(False, f"{what} ({kind.unit}), without quotes")
            elif not kind.low <= value <= kind.high or (kind.whole and value % 1):  # nan as well
                need(False, f"{what} from {kind.low:g} to {kind.high:g} ({kind.unit})")
        case Note():
            need(isinstance(value, str), "a text")
            if not free_text:
                raise RecordError(
                    f"{where}: record field {name!r} is free text, which is off; remove it, or "
                    "turn free text on (config.prompt.free_text)."
                )
            _screen(str(value), name, where)
        case Term():
            if kind.flag and isinstance(value, bool):
                return
            rule = f"{'true, false or ' if kind.flag else ''}one of {_listed(kind.terms)}"
            if kind.several:
                rule = f"a text, separated by commas, of {_listed(kind.terms)}"
            need(isinstance(value, str), rule)
            terms = split_terms(str(value)) if kind.several else [str(value)]
            need(len(set(terms)) == len(terms), "a list without repetitions")
            need("none" not in terms or len(terms) == 1, "'none' alone or a list without it")
            for term in terms:
                if term not in kind.terms:
                    near = difflib.get_close_matches(term.lower(), kind.terms, n=1)
                    hint = f" (the nearest is {near[0]!r})" if near else ""
                    need(kind.open and free_text, rule + hint)
                    _screen(term, name, where)
                    _screen(str(value), name, where)  # whole: its length, a number over a comma


def split_terms(text: str) -> list[str]:
    """The terms of a text that lists them with commas."""
    return [term.strip() for term in text.split(",")]


def _screen(text: str, name: str, where: str) -> None:
    what = f"{where}: record field {name!r}"
    if len(text) > _LONGEST:
        raise RecordError(f"{what} has more than {_LONGEST} characters; shorten it.")
    if not re.search(r"\w", text):
        raise RecordError(f"{what} has no word in it; remove it.")
    for found, pattern in _SUSPECT.items():
        if pattern.search(text):
            raise RecordError(f"{what} seems to hold {found}; take that out of the text.")


def _listed(terms: Iterable[str]) -> str:
    return ", ".join(map(repr, terms))
