"""The page as a browser reads it: nothing from outside, nothing executed, nothing lost."""

from __future__ import annotations

import base64
import dataclasses
import re
import tempfile
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rtsam_jax.data.cases import Case, load_dataset
from rtsam_jax.data.failure import Failure
from rtsam_jax.data.preprocess import PreprocessSpec
from rtsam_jax.report.case_picture import LEGEND
from rtsam_jax.report.case_view import CaseView, view_case
from rtsam_jax.report.cases_html import write_cases_report
from tests import tiny
from tests.report.parsed_page import Page

HOSTILE = "\"><script>alert(1)</script><img src=http://example.com/x onerror=alert(2)>&lt;'</style>"


@pytest.fixture(scope="module")
def case(tiny_dataset: Path) -> Case:
    return load_dataset(tiny_dataset).cases[0]


@pytest.fixture(scope="module")
def view(case: Case) -> CaseView:
    return view_case(case, "CT", PreprocessSpec(spacing_mm=tiny.SPACING, tau=0.5), 32)


def page(
    views: list[CaseView],
    failures: list[Failure] | None = None,
    title: str = "set",
    subtitle: str = "synthetic",
) -> Page:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        write_cases_report(
            path, title=title, subtitle=subtitle, views=views, failures=failures or []
        )
        return Page(path.read_bytes().decode("utf-8"))


def test_pictures_are_in_the_page_and_decode(view: CaseView) -> None:
    pictures = page([view] * 3).all("img")
    assert len(pictures) == 3
    for picture in pictures:
        kind, _, content = (picture["src"] or "").partition(",")
        assert kind == "data:image/jpeg;base64" and picture["loading"] == "lazy"
        assert base64.b64decode(content, validate=True) == view.picture
        assert Image.open(BytesIO(view.picture)).size[0] > 500


def test_nothing_is_fetched_or_executed_and_every_link_arrives(view: CaseView) -> None:
    read = page([view] * 3, [Failure("p9", "zero_dose", "No dose.")])
    allowed = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "h4", "p"}
    allowed |= {"table", "thead", "tbody", "tr", "th", "td", "ul", "li", "svg", "line", "a", "span"}
    allowed |= {"img", "article", "header", "section", "div", "dl", "dt", "dd"}
    assert {tag for tag, _ in read.elements} <= allowed
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in read.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert "data" not in attributes and "srcset" not in attributes
        if "href" in attributes:
            assert (attributes["href"] or "").removeprefix("#") in ids
        if "src" in attributes:
            assert (attributes["src"] or "").startswith("data:image/jpeg")
    (style,) = read.text("style")
    assert not re.search(r"url\(|@import|expression", style)
    (policy,) = (m["content"] or "" for m in read.all("meta") if "http-equiv" in m)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


texts = st.one_of(st.just(HOSTILE), st.text(min_size=1, max_size=30))


@settings(max_examples=30, deadline=None)
@given(id=texts, patient=texts, task=texts, split=texts, warning=texts, title=texts, failure=texts)
def test_every_text_arrives_as_it_is_and_makes_no_element(
    view: CaseView, id: str, patient: str, task: str, split: str, warning: str, title: str,
    failure: str,
) -> None:  # fmt: skip
    strange = dataclasses.replace(
        view, id=id, patient=patient, task=task, split=split, warnings=(warning,)
    )
    read = page([strange], [Failure(failure, failure, failure)], title, title)
    plain = page(
        [dataclasses.replace(view, warnings=("Look.",))], [Failure("p9", "code", "Sentence.")]
    )
    assert [tag for tag, _ in read.elements] == [tag for tag, _ in plain.elements]
    assert [set(a) for _, a in read.elements] == [set(a) for _, a in plain.elements]
    assert read.text("title") == read.text("h1") == [title]
    assert read.text("h3") == [id]
    assert read.text("span")[1:4] == [f"patient {patient}", task, f"split {split}"]
    assert warning in read.text("li") and read.text("td").count(failure) >= 3
    assert read.all("img")[0]["alt"] == f"Axial, coronal and sagittal plane of {id}"


def test_a_name_that_is_not_unicode_is_shown_escaped(view: CaseView) -> None:
    read = page([view], [Failure("p9", "missing_file", "There is no \udcff.nii.gz.")])
    assert "There is no \\udcff.nii.gz." in read.text("td")


def test_the_summary_counts_and_links(view: CaseView) -> None:
    clean = dataclasses.replace(view, warnings=())
    warned = dataclasses.replace(view, id="odd", warnings=("One.", "Two."))
    partial = dataclasses.replace(view, id="half", task="ce", status="incomplete: no label")
    partial = dataclasses.replace(partial, warnings=("There is no label.",))
    read = page([clean, warned, partial], [Failure("p9", "zero_dose", "No dose.")])
    cells = read.text("td")
    assert cells[:15] == [
        *("orn", "2", "2", "0", "1"),
        *("ce", "1", "0", "1", "1"),
        *("all tasks", "3", "2", "1", "2"),
    ]
    links = [(a["href"], text) for a, text in zip(read.all("a"), read.text("a"), strict=True)]
    assert links == [("#failures", "1 case failed"), ("#case-1", "odd"), ("#case-2", "half")]
    assert [a["id"] for a in read.all("article")] == ["case-0", "case-1", "case-2"]
    assert read.text("h3") == [view.id, "odd", "half"]


def test_failures_stand_before_the_rows_and_may_be_all_there_is(view: CaseView) -> None:
    failure = Failure("p9", "zero_dose", "The dose of p9 has no positive voxel.")
    tags = [tag for tag, _ in page([view], [failure]).elements]
    assert max(i for i, tag in enumerate(tags) if tag == "table") < tags.index("article")
    alone = page([], [failure])
    assert list(failure) == alone.text("td")[-3:] and not alone.all("article")
    assert "failed" not in " ".join(page([view]).text("a"))


def test_the_legend_names_every_line_as_it_is_drawn(view: CaseView) -> None:
    read = page([view])
    drawn = [(a["stroke"], a["stroke-dasharray"] == "none") for a in read.all("line")]
    assert drawn == [(line.colour, not line.dashes) for line in LEGEND]
    assert [text for text in read.text("li") if text in {line.name for line in LEGEND}] == [
        line.name for line in LEGEND
    ]


def test_no_value_of_a_record_is_told(case: Case) -> None:
    record = {"note": "SECRETNOTE", "symptoms": "SECRETPAIN", "age": 987654, "smoking": True}
    secret = dataclasses.replace(case, record=record)
    view = view_case(secret, "CT", PreprocessSpec(spacing_mm=tiny.SPACING, tau=0.5), 32)
    (body,) = page([view]).text("body")
    assert "SECRET" not in body and "987654" not in body


def test_what_is_missing_has_no_facts(view: CaseView) -> None:
    facts = dataclasses.replace(view.facts, dose=None, label=None)
    bare = page([dataclasses.replace(view, facts=facts)])
    assert bare.text("h4") == ["Image", "Intensities (HU)"]
    assert page([view]).text("h4")[2:] == ["Dose (unit as stored)", "Label"]


def test_an_interrupted_report_leaves_the_old_one(view: CaseView, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    broken = dataclasses.replace(view, picture=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        write_cases_report(path, title="", subtitle="", views=[view, broken], failures=[])
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_hundreds_of_rows_cost_little_beside_their_pictures(view: CaseView, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "report.html"
    write_cases_report(path, title="", subtitle="", views=[view] * 300, failures=[])
    pictures = 300 * len(base64.b64encode(view.picture))
    assert pictures < path.stat().st_size < pictures + 300 * 4000
