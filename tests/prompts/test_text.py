"""Text prompts: every record reads well, variations are reproducible, mirrors are involutions."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsam_jax.errors import ConfigError
from rtsam_jax.prompts import text as prompts
from rtsam_jax.prompts.record import FIELDS, Number, check_record
from rtsam_jax.prompts.text import (
    mirror,
    mirror_prompt,
    optional_sentences,
    parse_task_texts,
    task_sentence,
)
from tests.prompts.records import records, values

TASK = "Segment the osteoradionecrosis of the jaw in this CT image."
FULL = {
    "age": 61, "sex": "male", "site": "oropharynx", "tumour_side": "left", "t_stage": "T2",
    "prescription_gy": 70.0, "fractions": 35, "technique": "IMRT", "surgery": False,
    "smoking": "former", "months_since_rt": 14, "side": "left", "symptoms": "pain, trismus",
}  # fmt: skip


def write_prompt(task: str, record: prompts.Record) -> str:
    return " ".join(prompts.write_prompt(task, record))


def vary_prompt(task: str, record: prompts.Record, seed: Sequence[int], drop: float) -> str:
    return " ".join(prompts.vary_prompt(task, record, seed, drop))


def test_a_whole_text_word_for_word() -> None:
    assert write_prompt(TASK, FULL) == (
        f"{TASK} The treated tumor was in the oropharynx. The treated tumor was on the left side. "
        "The TNM stage was T2. The prescription was 70 Gy in 35 fractions. The radiotherapy "
        "technique was intensity-modulated radiotherapy (IMRT). The treatment did not include "
        "surgery. The patient is a former smoker. Radiotherapy ended 14 months before this image. "
        "The injury is on the left side. The recorded symptoms are pain and trismus. "
        "The patient is a 61-year-old man."
    )


def test_an_empty_record_leaves_the_task() -> None:
    assert write_prompt(TASK, {}) == vary_prompt(TASK, {}, (0,), 0.5) == TASK


@pytest.mark.parametrize(
    ("task", "modality", "words"),
    [
        ("orn", "CT", "osteoradionecrosis"),
        ("ce", "MR", "cerebral edema"),
        ("crn", "MR", "cerebral radiation necrosis"),
    ],
)
def test_tasks_of_the_paper(task: str, modality: str, words: str) -> None:
    sentence = task_sentence(task, "a title", modality, {})
    assert words in sentence and modality in sentence and "title" not in sentence
    # The same name on other images is another task.
    other = {"CT": "MR", "MR": "CT"}[modality]
    assert task_sentence(task, "A title", other, {}) == (
        f"Segment the following in this {other} image: A title."
    )


def test_tasks_of_ones_own() -> None:
    own = parse_task_texts(("orn=the dead bone.", " gland = the left = larger gland "))
    assert own == {"orn": "the dead bone.", "gland": "the left = larger gland"}
    assert task_sentence("orn", "x", "CT", own) == "Segment the dead bone in this CT image."
    assert parse_task_texts(()) == {}
    for entries in (("orn",), ("=x",), ("orn=",), ("orn= . ",), ("orn=a", "orn=b")):
        with pytest.raises(ConfigError, match="config.prompt.task_texts"):
            parse_task_texts(entries)


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"prescription_gy": 70.0}, "The prescription was 70 Gy."),
        ({"fractions": 35}, "Radiotherapy was given in 35 fractions."),
        ({"fractions": 1}, "Radiotherapy was given in 1 fraction."),
        ({"dose_per_fraction_gy": 2}, "The dose per fraction was 2 Gy."),
        (
            {"prescription_gy": 69.96, "fractions": 33.0},
            "The prescription was 69.96 Gy in 33 fractions.",
        ),
        (
            {"prescription_gy": 54, "dose_per_fraction_gy": 1.8},
            "The prescription was 54 Gy in fractions of 1.8 Gy.",
        ),
        (
            {"fractions": 1, "dose_per_fraction_gy": 20},
            "Radiotherapy was given in 1 fraction of 20 Gy.",
        ),
        ({"months_since_rt": 1}, "Radiotherapy ended 1 month before this image."),
        ({"months_since_rt": -0.0}, "Radiotherapy ended 0 months before this image."),
        ({"months_since_rt": 9.5}, "Radiotherapy ended 9.5 months before this image."),
        ({"t_stage": "T4a", "n_stage": "N2b", "m_stage": "M0"}, "The TNM stage was T4a N2b M0."),
        ({"n_stage": "N2b"}, "The TNM stage was N2b."),
        ({"who_grade": 4}, "The tumor was WHO grade 4."),
        ({"site": "brain metastasis"}, "The treated tumor was a brain metastasis."),
        ({"site": "left tonsil."}, "The site of the treated tumor was recorded as left tonsil."),
        ({"symptoms": "none"}, "No symptoms are recorded."),
        ({"symptoms": "pain"}, "The recorded symptom is pain."),
        (
            {"symptoms": "pain, exposed bone,trismus"},
            "The recorded symptoms are pain, exposed bone and trismus.",
        ),
        ({"note": " eats\n a soft diet. "}, "Clinical note: eats a soft diet."),
        ({"age": 61}, "The patient is a 61-year-old person."),
        ({"age": 1}, "The patient is a 1-year-old child."),
        ({"sex": "female"}, "The patient's sex is female."),
        ({"age": 18, "sex": "female"}, "The patient is an 18-year-old woman."),
        ({"age": 8, "sex": "male"}, "The patient is an 8-year-old boy."),
        ({"age": 89, "sex": "male"}, "The patient is an 89-year-old man."),
        ({"age": 90, "sex": "male"}, "The patient is a man aged 90 or older."),
        ({"age": 101, "sex": "other"}, "The patient is a person aged 90 or older."),
        ({"age": 40, "sex": "other"}, "The patient is a 40-year-old person."),
    ],
)
def test_single_sentences(record: dict, sentence: str) -> None:
    check_record(record, "here", free_text=True)
    assert optional_sentences(record) == [sentence]


@settings(max_examples=150, deadline=None)
@given(records(note=True))
def test_every_record_reads_well(record: dict) -> None:
    text = write_prompt(TASK, record)
    assert "  " not in text and text == text.strip() and "\n" not in text
    assert not re.search(r"\b(None|nan|True|False|inf)\b", text)
    assert "_" not in text and ".." not in text and ".0 " not in text
    for sentence in optional_sentences(record):
        assert re.fullmatch(r"[A-Z].*[^\s.,;:]\.", sentence), sentence
        assert sentence.count(". ") == 0
    assert not re.search(r"(?<![\d.])1 (fractions|months|years)\b", text)


@settings(max_examples=60, deadline=None)
@given(records(note=True))
def test_the_order_of_the_record_does_not_matter(record: dict) -> None:
    assert write_prompt(TASK, record) == write_prompt(TASK, dict(sorted(record.items())))


@settings(max_examples=100, deadline=None)
@given(records())
def test_numbers_are_told_with_their_units(record: dict) -> None:
    text = write_prompt(TASK, record)
    unit = {
        "age": "-year-old",
        "who_grade": "",
        "fractions": " fractions?",
        "months_since_rt": " months?",
    }
    for name, field in FIELDS.items():
        if name in record and isinstance(field.kind, Number):
            number = re.escape(f"{record[name]:.2f}".rstrip("0").rstrip("."))
            if name == "age" and record[name] > 89:
                number, ending = "90", " or older"
            else:
                ending = unit.get(name, " Gy")
            assert re.search(rf"\b{number}{ending}", text), (name, text)


@pytest.mark.parametrize("name", FIELDS)
def test_no_field_is_silent(name: str) -> None:
    seen = set()

    @settings(max_examples=40, deadline=None, database=None)
    @given(values(FIELDS[name]))
    def draw(value) -> None:
        sentences = optional_sentences({name: value})
        assert len(sentences) == 1
        seen.update(sentences)

    draw()
    assert len(seen) > 1 or name == "note"


@pytest.mark.parametrize("age", range(90, 121))
def test_great_ages_are_folded(age: int) -> None:
    for sex in ({}, {"sex": "female"}, {"sex": "male"}, {"sex": "other"}):
        text = write_prompt(TASK, {"age": age, **sex})
        assert "90 or older" in text and re.findall(r"\d+", text) == ["90"]


@settings(max_examples=60, deadline=None)
@given(records(), st.lists(st.integers(0, 2**32), min_size=1, max_size=3), st.floats(0, 1))
def test_variations(record: dict, seed: list[int], drop: float) -> None:
    sentences = optional_sentences(record)
    np.random.seed(0)
    text = vary_prompt(TASK, record, seed, drop)
    np.random.seed(1)
    assert text == vary_prompt(TASK, record, tuple(seed), drop)  # no global state
    said = re.findall(r"[A-Z].*?\.(?= [A-Z]|$)", text)
    assert said[0] == TASK and len(set(said)) == len(said)
    assert set(said[1:]) <= set(sentences)
    whole = vary_prompt(TASK, record, seed, 0.0)
    assert sorted(whole) == sorted(write_prompt(TASK, record))
    assert vary_prompt(TASK, record, seed, 1.0) == TASK


def test_seeds_differ_and_sentences_drop_at_their_rate() -> None:
    texts = [vary_prompt(TASK, FULL, (0, k), 0.3) for k in range(300)]
    assert len(set(texts)) > 290
    many = len(optional_sentences(FULL))
    kept = sum(sentence in text for text in texts for sentence in optional_sentences(FULL))
    assert 0.66 < kept / (300 * many) < 0.74
    firsts = {text.removeprefix(TASK + " ").split(".")[0] for text in texts}
    assert len(firsts) == many  # any sentence may come first


@settings(max_examples=100, deadline=None)
@given(records(), st.sampled_from(["left", "right"]), st.integers(0, 99))
def test_the_mirrored_text_is_the_text_of_the_mirrored_case(
    record: dict, side: str, seed: int
) -> None:
    swap = {"left": "right", "right": "left"}
    record["side"] = side
    sides = ("side", "tumour_side")
    other = {k: swap.get(v, v) if k in sides else v for k, v in record.items()}
    assert mirror(write_prompt(TASK, record)) == write_prompt(TASK, other)
    varied = vary_prompt(TASK, record, (seed,), 0.3)
    assert mirror(varied) == vary_prompt(TASK, other, (seed,), 0.3)


WORDS = [
    *("left", "Left", "RIGHT", "right", "left-sided", "Rightward", "leftmost", "LeFt", "cleft"),
    *("L", "Rt.", "RT", "sinister", "bilateral", "ipsilateral", "was", "untreated", "the", "in"),
    *("place", "bone", "tooth", "36", "rights", "rıght", "left_", "9", "(", ")", ",", "."),
]


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)
    | st.lists(st.sampled_from(WORDS), max_size=4).map("".join)
    | st.text()
)
def test_mirror_is_its_own_inverse(text: str) -> None:
    mirrored = mirror(text)
    if mirrored is not None:
        assert mirror(mirrored) == text
        assert (mirrored == text) == (not re.search(r"(?<!c)(left|right)", text.lower()))


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("", ""),
        ("No side.", "No side."),
        ("Left-sided pain, RIGHT jaw.", "Right-sided pain, LEFT jaw."),
        ("left and right", "right and left"),
        ("left-to-right", "right-to-left"),
        ("parotid_right (left)", "parotid_left (right)"),
        ("rightwards of the leftmost", "leftwards of the rightmost"),
        ("Ipsilateral, contralateral, bilateral.", "Ipsilateral, contralateral, bilateral."),
        ("A bright cleft, held upright on the left.", "A bright cleft, held upright on the right."),
        ("R0 resection at L5, T1c, SBRT, IMRT.", "R0 resection at L5, T1c, SBRT, IMRT."),
        ("dexamethasone and levothyroxine", "dexamethasone and levothyroxine"),
        ("36 teeth", "36 teeth"),
    ],
)
def test_mirrored_words(text: str, mirrored: str) -> None:
    assert mirror(text) == mirrored


@pytest.mark.parametrize(
    "text",
    [
        *("L mandible", "mandible (R)", "Rt. jaw", "lt jaw", "RT jaw", "R/L", "L-sided", "LHS"),
        *("mandible_L", "vision OS", "oculus dexter", "ramus sinister", "dextrocardia"),
        *("tooth 36", "Tooth no. 36", "Teeth #46, #47", "quadrant III", "UL6", "at 3 o'clock"),
        *("RightParotid", "LeFt", "rights", "copyright", "leftright"),
        *("was left untreated", "was left in place", "She left the clinic", "left alone"),
        *("right away", "right after surgery", "all right", "is right"),
    ],
)
def test_texts_that_cannot_be_mirrored(text: str) -> None:
    assert mirror(text) is None
    assert mirror(f"Clinical note: {text}. The injury is on the left side.") is None


def test_a_text_is_mirrored_sentence_by_sentence_or_not_at_all() -> None:
    text = prompts.write_prompt(TASK, FULL)
    swapped = mirror_prompt(text)
    assert swapped == prompts.write_prompt(TASK, FULL | {"tumour_side": "right", "side": "right"})
    assert mirror_prompt((*text, "Clinical note: scar on the R cheek.")) is None
