"""The text prompt (Sec. 3.2.1): task, clinical and demographic sentences from a case's record.

A record that passed `prompts.record.check_record` is assumed; what it lacks is not spoken of, and
an empty one leaves the task sentence alone. Each sentence stands alone, states its units, and names
no field outside the allow-list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rtsam_jax.errors import ConfigError
from rtsam_jax.prompts.phrases import FIXED, SITES, TASKS, TECHNIQUES
from rtsam_jax.prompts.record import Scalar, split_terms

Record = Mapping[str, Scalar]
Text = tuple[str, ...]  # sentences, the task's first

_OLDEST = 89  # years; greater ages are told as "90 or older", since few people reach them


def task_sentence(task: str, title: str, modality: str, own: Mapping[str, str]) -> str:
    """The sentence that says what to segment, in what image.

    Args:
      task: its name.
      title: the dataset's title of it, used where nothing else is known.
      modality: of its images: "CT" | "MR". A built-in task on another modality is not that task.
      own: task -> what to segment ("the left parotid gland"); goes before the built-in sentences.
    """
    if task in own:
        return f"Segment {_tidy(own[task])} in this {modality} image."
    built_in = TASKS.get(task)
    if built_in and built_in[0] == modality:
        return built_in[1]
    # A title has no article and may be of any form: "Cerebral edema", "mandible (surrogate task)".
    return f"Segment the following in this {modality} image: {_tidy(title)}."


def parse_task_texts(entries: Sequence[str]) -> dict[str, str]:
    """`prompt.task_texts`, each "TASK=what to segment", by task.

    Raises:
      ConfigError: an entry without "=", without a task or words, or a task given twice.
    """
    texts: dict[str, str] = {}
    for entry in entries:
        task, _, words = (part.strip() for part in str(entry).partition("="))
        if not task or not _tidy(words):
            raise ConfigError(
                f"config.prompt.task_texts has the entry {entry!r}; write TASK=what to segment."
            )
        if task in texts:
            raise ConfigError(f"config.prompt.task_texts has task {task!r} twice; keep one entry.")
        texts[task] = words
    return texts


def optional_sentences(record: Record) -> list[str]:
    """The sentences that a record supports: clinical, then demographic; [] for an empty one."""
    made = (make(record) for make in (*_CLINICAL, _person))
    return [sentence for sentence in made if sentence is not None]


def write_prompt(task: str, record: Record) -> Text:
    """The whole text: the task's sentence, then all that the record supports, in a fixed order."""
    return (task, *optional_sentences(record))


def vary_prompt(task: str, record: Record, seed: Sequence[int], drop: float) -> Text:
    """A text for training: the task's sentence, then some of the record's, in any order.

    Args:
      task: its sentence.
      seed: whole numbers of 0 or more; the same ones give the same text, whatever was drawn before.
      drop: probability, 0 to 1, with which each optional sentence is left out.
    """
    rng = np.random.default_rng(list(seed))
    sentences = optional_sentences(record)
    # As many draws as sentences: left and right then fare alike, so that mirrored texts correspond.
    kept = [
        s for s, draw in zip(sentences, rng.random(len(sentences)), strict=True) if draw >= drop
    ]
    return (task, *(kept[at] for at in rng.permutation(len(kept))))


def _fixed(field: str) -> Callable[[Record], str | None]:
    return lambda record: FIXED[field].get(record[field]) if field in record else None


def _site(record: Record) -> str | None:
    if "site" not in record:
        return None
    site = str(record["site"])
    if site in SITES:
        return f"The treated tumor was {SITES[site]}."
    return f"The site of the treated tumor was recorded as {_tidy(site)}."


def _histology(record: Record) -> str | None:
    if "histology" not in record:
        return None
    return f"The histology was {_tidy(record['histology'])}."


def _grade(record: Record) -> str | None:
    return (
        f"The tumor was WHO grade {_number(record, 'who_grade')}."
        if "who_grade" in record
        else None
    )


def _tnm(record: Record) -> str | None:
    parts = [str(record[f"{part}_stage"]) for part in "tnm" if f"{part}_stage" in record]
    return f"The TNM stage was {' '.join(parts)}." if parts else None


def _stage(record: Record) -> str | None:
    return f"The overall stage was {record['stage']}." if "stage" in record else None


def _dose(record: Record) -> str | None:
    """One sentence for any of prescription, fractions and dose per fraction."""
    total = f"{_number(record, 'prescription_gy')} Gy" if "prescription_gy" in record else None
    each = None
    if "dose_per_fraction_gy" in record:
        each = f"{_number(record, 'dose_per_fraction_gy')} Gy"
    course = _count(record, "fractions", "fraction")
    if course and each:
        course = f"{course} of {each}"
    elif each and total:
        course = f"fractions of {each}"
    if total:
        return f"The prescription was {total}{f' in {course}' if course else ''}."
    if course:
        return f"Radiotherapy was given in {course}."
    return f"The dose per fraction was {each}." if each else None


def _technique(record: Record) -> str | None:
    if "technique" not in record:
        return None
    technique = str(record["technique"])
    return f"The radiotherapy technique was {TECHNIQUES.get(technique) or _tidy(technique)}."


def _months(record: Record) -> str | None:
    since = _count(record, "months_since_rt", "month")
    return f"Radiotherapy ended {since} before this image." if since else None


def _symptoms(record: Record) -> str | None:
    if "symptoms" not in record:
        return None
    *others, last = (_tidy(term) for term in split_terms(str(record["symptoms"])))
    if last == "none":
        return "No symptoms are recorded."
    if others:
        return f"The recorded symptoms are {', '.join(others)} and {last}."
    return f"The recorded symptom is {last}."


def _note(record: Record) -> str | None:
    return f"Clinical note: {_tidy(record['note'])}." if "note" in record else None


def _person(record: Record) -> str | None:
    """Age and sex in one sentence; ages over 89 are folded."""
    sex = record.get("sex")
    if "age" not in record:
        return f"The patient's sex is {sex}." if sex else None
    age = int(record["age"])
    young = age < 18
    nouns = {"female": "girl" if young else "woman", "male": "boy" if young else "man"}
    noun = nouns.get(str(sex), "child" if young else "person")
    if age > _OLDEST:
        return f"The patient is a {noun} aged 90 or older."
    article = "an" if age in (8, 11, 18) or age // 10 == 8 else "a"
    return f"The patient is {article} {age}-year-old {noun}."


_CLINICAL = (
    *(_site, _fixed("tumour_side"), _histology, _grade, _tnm, _stage, _fixed("hpv")),
    *(_dose, _technique, _fixed("concurrent_chemotherapy"), _fixed("surgery")),
    *(_fixed("dental_extraction"), _fixed("smoking"), _fixed("alcohol"), _fixed("diabetes")),
    *(_fixed("hypertension"), _fixed("bevacizumab"), _fixed("steroids")),
    *(_months, _fixed("side"), _symptoms, _note),
)


def _number(record: Record, field: str) -> str:
    """To two decimals, without trailing zeros: 70.0 is "70", 1.80 is "1.8"."""
    text = f"{float(record[field]):.2f}".rstrip("0").rstrip(".")
    return text.removeprefix("-") if text == "-0" else text


def _count(record: Record, field: str, noun: str) -> str | None:
    if field not in record:
        return None
    number = _number(record, field)
    return f"{number} {noun}{'' if number == '1' else 's'}"


def _tidy(text: Scalar) -> str:
    """One line, without the punctuation that would end a sentence early or twice."""
    return " ".join(str(text).split()).strip(" .;,:!?")


# Words that contain "left" or "right" and mean no side.
_HARMLESS = frozenset(
    "cleft clefts bright brighter brightest brightly brightness upright leftover leftovers".split()
)
_SIDE_WORD = re.compile(r"(left|Left|LEFT|right|Right|RIGHT)((?i:wards?|most|sided?|hand(?:ed)?)?)")
_SWAP = {"left": "right", "Left": "Right", "LEFT": "RIGHT"}
_SWAP |= {right: left for left, right in _SWAP.items()}
# What may name a side and has no safe counterpart. The words around "left" and "right" are listed
# for both, so that a text and its mirror image have one answer.
_UNSURE = re.compile(
    r"(?<![^\W_])(?:[lr]|[lr]t|[lr]hs|rgt|lft)(?![^\W_])"  # L, (R), Rt., LHS; RT as well
    r"|(?<![^\W_])(?-i:O[DS]|A[DS])(?![^\W_])"  # of eyes and ears
    r"|sinist|dextr|dexter"
    # Teeth by number or notation (36 is a left one), and positions on a clock's face.
    r"|\b(?:tooth|teeth|molars?|premolars?|canines?|incisors?)\b\D{0,12}\d|\bquadrants?\b"
    r"|(?<![^\W_])(?-i:[UL][LR]\d)|o\W?clock"
    r"|\b(?:is|are|was|were|be|been|being|has|have|had|having|he|she|they|who|it|patient|all|not)"
    r"\s+(?:left|right)\b"
    r"|\b(?:left|right)\s+(?:un\w+|in\s+(?:place|situ)|intact|open|alone|to|the|a|an|his|her|their"
    r"|it|after|before|away|now|out|over|behind|off|with|without|at|as|angles?)\b",
    re.IGNORECASE,
)


def mirror(text: str) -> str | None:
    """The text of the left-right mirrored case: "left" and "right" swapped, in their case.

    Swapped are the words left and right, also with -side(d), -ward(s), -most and -hand(ed), in
    lower, Capitalised or UPPER case. A text without a side comes back unchanged; "ipsilateral",
    "contralateral", "bilateral" and "midline" hold in the mirror too. English only.

    Returns:
      None where a text may name a side otherwise, so that a flip would make it lie: abbreviations
      ("L", "Rt."; also "RT", so write radiotherapy), Latin, "OS", "tooth 36", "UL6", "3 o'clock",
      other words with "left" or "right" in them; and where left or right may be no side ("was left
      in place", "all right"), which loses a flip at worst. mirror(mirror(t)) == t otherwise.
    """
    if _UNSURE.search(text):
        return None
    pieces = re.split(r"([^\W\d_]*(?:left|right)[^\W\d_]*)", text, flags=re.IGNORECASE)
    for at in range(1, len(pieces), 2):
        word = pieces[at]
        if word.lower() in _HARMLESS:
            continue
        if (side := _SIDE_WORD.fullmatch(word)) is None:
            return None
        pieces[at] = _SWAP[side[1]] + side[2]
    return "".join(pieces)


def mirror_prompt(text: Text) -> Text | None:
    """`mirror` of every sentence; None where one of them cannot be mirrored."""
    mirrored = [mirror(sentence) for sentence in text]
    return None if None in mirrored else tuple(s for s in mirrored if s is not None)
