"""Records: allowed fields pass, anything else names its field and never shows its value."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.data.phantom.dataset import make_case
from rtsam_jax.errors import RecordError
from rtsam_jax.prompts.phrases import FIXED
from rtsam_jax.prompts.record import FIELDS, Flag, Number, Term, check_record
from tests.prompts.records import records

WHERE = "datasets/x/dataset.json: case 'p1'"
DOCS = (Path(__file__).resolve().parents[2] / "docs" / "dataset.md").read_text()


def refused(record: dict, **options: bool) -> str:
    with pytest.raises(RecordError) as caught:
        check_record(record, WHERE, **options)
    message = str(caught.value)
    assert message.startswith(f"{WHERE}: record field {next(iter(record))!r} ")
    assert message.endswith(".") and ". " not in message  # one sentence
    return message


@settings(max_examples=60, deadline=None)
@given(records())
def test_what_the_table_allows_passes(record: dict) -> None:
    check_record(record, WHERE)


@pytest.mark.parametrize("index", range(3))
def test_phantoms_pass(index: int) -> None:
    record = make_case(index).record
    assert {"age", "sex", "site", "prescription_gy", "fractions"} < record.keys()
    check_record(record, WHERE)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "name",
            "patient_name",
            "PatientName",
            "surname",
            "mrn",
            "MRN",
            "patient_id",
            "PatientID",
        ),
        *("patientid", "birth_date", "PatientBirthDate", "dob", "DOB", "date", "StudyDate"),
        *("surgery_date", "address", "zip_code", "phone", "telephoneNumber", "email", "e-mail"),
        *("ssn", "insurance", "hospital", "physician", "referring_physician", "AccessionNumber"),
        *("accession", "id", "study_uid", "contact"),
    ],
)
def test_fields_that_identify(name: str) -> None:
    for free in (False, True):
        message = refused({name: "Jane Roe 4711"}, free_text=free)
        assert "identifies a person" in message and "Roe" not in message


@pytest.mark.parametrize(
    "name",
    [
        *("volume_ml", "lesion_volume", "lesionVolume", "diameter", "max_diameter_mm", "centroid"),
        *("bbox", "bounding_box", "location", "coordinates", "extent", "slices", "lesion_count"),
        *("lesion_side", "injury_location", "label_size", "roi", "mask"),
    ],
)
def test_fields_that_carry_the_answer(name: str) -> None:
    for free in (False, True):
        assert "must not carry the answer" in refused({name: 12.5}, free_text=free)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("prescribed_gy", "prescription_gy"),
        ("smoker", "smoking"),
        ("Age", "age"),
        ("month_since_rt", "months_since_rt"),
        ("histolgy", "histology"),
    ],
)
def test_unknown_fields_suggest_a_known_one(name: str, meant: str) -> None:
    assert f"is unknown (did you mean {meant!r}" in refused({name: 1})


def test_an_unknown_field_like_no_other() -> None:
    for name in ("xyzzy", 7):
        with pytest.raises(RecordError, match=r"unknown \(another field of docs/dataset.md"):
            check_record({name: 1}, WHERE)


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        ({"prescription_gy": "70"}, r"number \(Gy\), without quotes"),
        ({"prescription_gy": None}, r"number \(Gy\), without quotes"),
        ({"age": [61]}, r"whole number \(years\), without quotes"),
        ({"sex": None}, "one of 'female'"),
        ({"prescription_gy": True}, r"number \(Gy\), without quotes"),
        ({"prescription_gy": 7000}, r"number from 1 to 120 \(Gy\)"),  # centigray
        ({"prescription_gy": float("nan")}, "from 1 to 120"),
        ({"age": -1}, r"whole number from 0 to 120 \(years\)"),
        ({"age": 10**400}, "from 0 to 120"),
        ({"age": 61.5}, "whole number from 0 to 120"),
        ({"fractions": 0}, "whole number from 1 to 100"),
        ({"months_since_rt": -0.5}, r"from 0 to 600 \(months\)"),
        ({"surgery": 1}, "true or false"),
        ({"diabetes": "yes"}, "true or false"),
        ({"smoking": 1}, "true, false or one of 'never', 'former', 'current'"),
        ({"smoking": "Former"}, "nearest is 'former'"),
        ({"hpv": True}, "one of 'positive', 'negative'"),
        ({"sex": "F"}, "one of 'female', 'male', 'other'"),
        ({"site": "Oropharnyx"}, "nearest is 'oropharynx'"),
        ({"side": "L"}, "one of 'left', 'right'"),
        ({"side": ""}, "one of 'left', 'right'"),
        ({"symptoms": "pain,"}, "separated by commas"),
        ({"symptoms": "pain, pain"}, "repetitions"),
        ({"symptoms": "none, pain"}, "'none' alone"),
        ({"note": "Denies pain."}, "free text, which is off"),
        ({"note": 3}, "a text"),
    ],
)
def test_values_of_the_wrong_kind(record: dict, rule: str) -> None:
    assert re.search(rule, refused(record))


@pytest.mark.parametrize("value", [61, 61.0, np.float64(61)])
def test_whole_numbers_may_be_stored_with_a_point(value: float) -> None:
    check_record({"age": value}, WHERE)


def test_free_text_opens_some_vocabularies() -> None:
    opened = {"site": "left tonsil", "histology": "basaloid carcinoma", "technique": "tangents"}
    check_record({**opened, "symptoms": "pain, tinnitus", "note": "Node."}, WHERE, free_text=True)
    for name, value in opened.items():
        refused({name: value})
    for closed in ("sex", "side", "tumour_side", "t_stage", "smoking", "hpv"):
        refused({closed: "posterior left angle"}, free_text=True)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("seen 2021-03-14", "a date"),
        ("seen 14.3.21", "a date"),
        ("seen 3/14/2021", "a date"),
        ("seen 03/2021", "a date"),
        ("seen in 2021", "a year"),
        ("seen March 14", "a date"),
        ("seen on the 14th of march", "a date"),
        ("seen 12 march", "a date"),
        ("seen 5th may", "a date"),
        ("seen 31/01", "a date"),
        ("in the 2020s", "a year"),
        ("MRN1234", "identifier"),
        ("DOB7", "identifier"),
        ("a 94-year-old man", "an age"),
        ("at the age of 95", "an age"),
        ("a 2-cm lesion", "a size"),
        ("20 millimeters deep", "a size"),
        ("seen on slice no. 45", "a slice"),
        ("seen 3 Sept", "a date"),
        ("number 48213", "5 digits"),
        ("call 555 123 4567", "telephone"),
        ("call (555) 123-4567", "telephone"),
        ("call +49 30 1234 567", "telephone"),
        ("jane@roe.org", "e-mail"),
        ("see https://x.org", "web address"),
        ("MRN 12", "identifier"),
        ("Mr Smith has pain", "a person's name"),
        ("referred by Dr. X", "a person's name"),
        ("referred by DR. ÖZ", "a person's name"),
        ("sent by prof. Li", "a person's name"),
        ("bone defect of 12 mm", "a size"),
        ("3.5cm³ of edema", "a size"),
        ("seen on slice 45", "a slice"),
        ("x" * 501, "500 characters"),
        (" . ", "no word"),
    ],
)
def test_free_text_is_searched(text: str, found: str) -> None:
    fields = ["note", "site"] if "," not in text else ["note"]
    for name in fields:
        message = refused({name: text}, free_text=True)
        assert found in message
        assert text.strip(" .") == "" or text not in message


@pytest.mark.parametrize(
    "text",
    [
        "Pain may improve; 3/24 nodes were positive.",
        "Boost of 10 Gy in 5 fractions, 2000 cGy in all.",
        "Grade 2 mucositis, T4a N2b, IMRT, p16 positive.",
        "Treated at the drug trial's second step; misses meals.",
        "Aged 61 at the time, a 61-year-old smoker of 20 packs; dose 66 to 70 Gy.",
    ],
)
def test_innocent_free_text_passes(text: str) -> None:
    check_record({"note": text}, WHERE, free_text=True)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from([*FIELDS, "mrn", "volume_ml", "xyzzy"]),
    st.text("QZJ#%&0123456789 -/@", min_size=4, max_size=30).map(lambda text: f"QZ{text}ZQ"),
    st.booleans(),
)
def test_no_message_shows_a_value(name: str, value: str, free_text: bool) -> None:
    try:
        check_record({name: value}, WHERE, free_text=free_text)
    except RecordError as error:
        assert value not in str(error) and f"{name!r}" in str(error)


def test_every_term_has_its_sentence() -> None:
    for name, field in FIELDS.items():
        if name in FIXED:
            kind = field.kind
            values: set = set(kind.terms) if isinstance(kind, Term) else set()
            if isinstance(kind, Flag) or (isinstance(kind, Term) and kind.flag):
                values |= {True, False}
            assert set(FIXED[name]) == values, name


def test_the_documented_table_is_the_table() -> None:
    section = DOCS.split("## Record\n")[1].split("\n## ")[0]
    rows = {row.split("`")[1]: row.split(" | ") for row in section.splitlines() if "| `" in row}
    assert list(rows) == list(FIELDS)
    for name, (_name, group, value, _meaning) in rows.items():
        kind = FIELDS[name].kind
        assert group == FIELDS[name].group
        if isinstance(kind, Term):
            terms = [term for term in re.findall("`(.+?)`", value) if term not in ("true", "false")]
            assert terms == list(kind.terms)
            assert value.endswith("*") == kind.open
            assert ("`true`" in value) == kind.flag
        elif isinstance(kind, Number):
            assert f"{kind.low:g} to {kind.high:g}" in value
            assert value.startswith("whole") == kind.whole
