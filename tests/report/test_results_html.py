"""The results page: nothing from outside, one script that the page vouches for, nothing lost."""

from __future__ import annotations

import base64
import hashlib
import tempfile
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from rtsam_jax.evaluation.report import write_results
from rtsam_jax.report import canvas
from rtsam_jax.report.results_html import KINDS, Picture, write_results_page
from rtsam_jax.report.results_tables import TitledTable
from rtsam_jax.report.tables import Table
from tests.made_up import made_up
from tests.report.browser import asked, find_chromium, open_page
from tests.report.parsed_page import Page

HOSTILE = "\"><script>alert(1)</script><img src=http://example.com/x onerror=alert(2)>&lt;'</style>"


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "p.png"
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    canvas.save(figure, path)
    return path


def write(
    path: Path, picture: Path, text: str = "set", *, tables: list[TitledTable] | None = None
) -> Path:
    table = TitledTable(text, text, Table(("Task", text), ((text, "0.5"), ("b", "-"))))
    shown = Picture(picture, text, text)
    write_results_page(
        path, heading=text, kind="synthetic", notes=[text],
        tables=[table] if tables is None else tables, plots=[shown], pictures=[shown], cases=table,
    )  # fmt: skip
    return path


def test_pictures_are_in_the_page_and_decode(picture: Path, tmp_path: Path) -> None:
    images = Page(write(tmp_path / "r.html", picture).read_text()).all("img")
    assert len(images) == 2
    for image in images:
        kind, _, content = (image["src"] or "").partition(",")
        assert kind == "data:image/png;base64"
        assert Image.open(BytesIO(base64.b64decode(content, validate=True))).size == (160, 160)


def test_nothing_is_fetched_and_the_policy_names_the_one_script(
    picture: Path, tmp_path: Path
) -> None:
    page = Page(write(tmp_path / "r.html", picture).read_text())
    (script,) = page.text("script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (m["content"] or "" for m in page.all("meta") if "http-equiv" in m)
    expected = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src "
    assert policy == f"{expected}'sha256-{digest}'"
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert not [name for name in attributes if name.startswith("on") or name == "href"]
        assert (attributes.get("src") or "data:").startswith("data:")


@settings(max_examples=20, deadline=None)
@given(text=st.one_of(st.just(HOSTILE), st.text(min_size=1, max_size=20)))
def test_every_text_arrives_as_it_is_and_makes_no_element(picture: Path, text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # A carriage return is a line end to every parser, so it cannot arrive as it is.
        text = text.replace("\r", "")
        read = Page(write(Path(folder) / "r.html", picture, text).read_bytes().decode())
        plain = Page(write(Path(folder) / "p.html", picture, "word").read_text())
    assert [tag for tag, _ in read.elements] == [tag for tag, _ in plain.elements]
    assert read.text("title") == read.text("h1") == [text]
    assert read.text("h2")[0] == read.text("h2")[-1] == text
    assert read.text("td")[0] == text and read.text("th")[1] == text
    assert read.text("b") == [text, text]


def test_the_kind_is_said_whatever_it_is(picture: Path, tmp_path: Path) -> None:
    for kind in ("synthetic", "surrogate", "clinical", "phantoms of another kind"):
        table = TitledTable("t", "", Table(("a",), ()))
        write_results_page(
            tmp_path / "r.html", heading="h", kind=kind, notes=[], tables=[], plots=[],
            pictures=[], cases=table,
        )  # fmt: skip
        page = Page((tmp_path / "r.html").read_text())
        assert KINDS.get(kind, kind) in page.text("p")


def test_a_missing_picture_leaves_the_old_page(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("old")
    with pytest.raises(FileNotFoundError):
        write(path, tmp_path / "none.png")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["r.html"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, picture: Path) -> Path:
    """A whole results folder of two methods and tasks, with misses and structures."""
    find_chromium()
    folder = tmp_path_factory.mktemp("results")
    cases = [
        made_up(
            f"c{i}", dice, task=("orn", "ce")[i % 2], volume_truth_ml=volume,
            volume_pred_ml=volume * (0.5 + dice), missed=not dice, structures_ml={"cord": dice},
        )
        for i, (dice, volume) in enumerate(
            [(0.9, 30.0), (0.0, 0.4), (0.7, 4.0), (0.5, 0.0), (0.8, 12.0), (0.6, 2.0)]
        )
    ]  # fmt: skip
    other = [made_up(c.case, 0.4, task=c.task) for c in cases]
    figures = [Picture(picture, "best: c0", HOSTILE)]
    methods = {"model": cases, "ROI itself": other}
    write_results(
        folder, methods, heading="made up", kind="synthetic", notes=["Note."], figures=figures
    )
    return folder / "report.html"


def test_a_browser_shows_every_picture_and_no_script_fails(results: Path, tmp_path: Path) -> None:
    found = asked(results, tmp_path / "asked.html")
    assert found["failures"] == []
    assert len(found["images"]) == 5
    assert all(width > 100 for _, width in found["images"]), found["images"]
    # As it is, with its own policy: nothing on the console, which would tell of a script refused.
    document, console = open_page(results)
    assert console == "" and "Paired differences" in document


def test_a_browser_sorts_numbers_by_value_and_dashes_last(picture: Path, tmp_path: Path) -> None:
    cells = ("-", "<0.001", "10.5 ± 2.0", "9.0", "inf", "-0.2 to 1")
    table = TitledTable("t", "", Table(("x", "y"), tuple(("a", cell) for cell in cells)))
    page = write(tmp_path / "r.html", picture, tables=[table])
    columns = asked(page, tmp_path / "asked.html")["columns"]
    assert columns[0] == ["inf", "10.5 ± 2.0", "9.0", "<0.001", "-0.2 to 1", "-"]


def test_a_browser_would_tell_of_a_broken_page(picture: Path, tmp_path: Path) -> None:
    page = write(tmp_path / "r.html", picture)
    text = page.read_text()
    start = text.index("base64,") + len("base64,")
    page.write_text(text[:start] + "AAAA" + text[start + 400 :])
    found = asked(page, tmp_path / "asked.html")
    assert len(found["failures"]) == 1 and found["images"][0][1] == 0
    page.write_text(text.replace("</body>", "<script>missing()</script></body>"))
    assert "missing" in asked(page, tmp_path / "asked.html")["failures"][0]
    assert "Content Security Policy" in open_page(page)[1]  # the page itself refuses it
