"""The report is read back the way a browser would: parsed as HTML, its pictures decoded."""

import base64
import io
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from clipvid.data.manifest import ClassInfo
from clipvid.evaluation.charts import PALETTE
from clipvid.evaluation.clips import ClipStrip, save_strips, strip_image
from clipvid.evaluation.evaluation_report import Evaluation, evaluation_page
from clipvid.evaluation.loop import Predictions
from clipvid.evaluation.metrics import proportion
from clipvid.evaluation.report import Page, write_page
from clipvid.evaluation.report_sections import (
    Confusion,
    Curve,
    ReportRow,
    clips_section,
    confusions_section,
    curves_section,
    details_section,
    pairs_section,
    results_section,
    results_table,
    row_colors,
)
from clipvid.evaluation.summary import summarize_thoroughly
from clipvid.files import printable

SHAPES = {
    "svg", "defs", "style", "g", "path", "text", "use", "metadata", "RDF", "Work", "type", "format", "creator", "Agent",
    "title", "rect", "clipPath", "image",
}  # fmt: skip
VOID = {"meta", "link", "img", "col"}
NASTY = 'a <b>&"quoted"</b> $name_{x'


class ParsedPage(HTMLParser):
    """Elements as (tag, attributes) and text with whitespace put in order; asserts that tags are closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


def figures(hits: int) -> dict:
    share = proportion(hits, 100)
    return {"object": proportion(96, 100), "pairs": share, "top1": share, "by_pair": {"depth": share}}


def clip(num_frames: int = 3, height: int = 8, width: int = 8, seed: int = 0) -> ClipStrip:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(256, (num_frames, 3, height, width), dtype=torch.uint8, generator=generator)
    said = {"zero-shot": [("box going away", 0.6), ("box coming closer", 0.4)], "ILA": [("box coming closer", 0.97)]}
    return ClipStrip(frames, "box coming closer", said)


HISTORY = [{"step": 1, "epoch": 0, "lr": 0.1, "loss": 2.5}, {"step": 2, "epoch": 0, "lr": 0.1, "loss": 0.75}]
FULL = {
    "title": "A title",
    "introduction": ["First.", "Second."],
    "rows": [ReportRow("zero-shot", figures(50)), ReportRow("ILA", figures(93))],
    "curves": [Curve("ILA", [*HISTORY, {"step": 2, "epoch": 0, "val_top1": 0.625}])],
    "confusions": [Confusion("ILA", [[3, 1], [0, 4]], ["closer", "away"])],
    "clips": [clip()],
    "details": {"command": "make demo"},
}
SECTIONS = {
    "rows": ["Results", "Accuracy by motion pair"],
    "clips": ["Clips"],
    "curves": ["Learning curves"],
    "confusions": ["Confusion matrices"],
    "details": ["Details"],
}


def build(parts: dict) -> Page:
    colors = row_colors(parts["rows"], parts["curves"])
    sections = [results_section(parts["rows"], colors), pairs_section(parts["rows"], colors)]
    sections += [clips_section(parts["clips"]), curves_section(parts["curves"], colors)]
    sections += [confusions_section(parts["confusions"]), details_section(parts["details"])]
    return Page(parts["title"], parts["introduction"], sections)


def test_gray_is_for_zero_shot_clip_of_all_groups():
    names = [f"{model}, {group}" for group in ("base", "novel") for model in ("zero-shot CLIP", *"abcdefgh")]
    colors = row_colors([ReportRow(name, {}) for name in names])
    gray = {name for name in names if colors[name] == PALETTE[0]}
    assert gray == {"zero-shot CLIP, base", "zero-shot CLIP, novel"}
    assert len({colors[name] for name in names}) == len(PALETTE)


@pytest.fixture
def render(tmp_path):
    def write(**changes) -> tuple[ParsedPage, str]:
        path = tmp_path / "new folder" / "report.html"
        write_page(path, build({**FULL, **changes}))
        assert list(path.parent.iterdir()) == [path]
        html = path.read_text(encoding="utf-8")
        return ParsedPage(html), html

    return write


def decode(uri: str) -> bytes:
    return base64.b64decode(uri.split(",", 1)[1], validate=True)


def test_page_needs_nothing_but_itself(render):
    page, html = render()
    assert "http://" not in html
    assert "https://" not in html
    assert not page.all("script")
    references = [value for _, a in page.elements for key, value in a.items() if key in ("src", "href", "srcset")]
    references += re.findall(r"url\(([^)]*)\)", html)
    assert len(references) == 5  # icon, two curves, a confusion matrix, a clip
    assert all(reference.startswith("data:") for reference in references)
    assert "default-src 'none'" in html  # a browser would refuse anything else


def test_every_picture_decodes_and_has_words(render):
    page, html = render()
    assert len(page.all("img")) == 3
    for image in page.all("img"):
        assert decode(image["src"]).lstrip().startswith(b"<?xml")
        assert image["alt"]
    assert "training loss: ILA from 2.50 to 0.75" in html
    assert "validation top-1: ILA from 0.62 to 0.62" in html
    assert "Confusion matrix of ILA: 88% on the diagonal" in html
    labels = {attributes["aria-label"] for _, attributes in page.elements if attributes.get("role") == "img"}
    assert labels == {"3 frames of a clip: box coming closer", "right", "wrong"}


def test_table_shows_values_intervals_and_chance(render):
    page, html = render()
    assert "zero-shot 0.96 0.90–0.98 0.50 0.40–0.60 0.50 0.40–0.60" in page.text
    assert "ILA 0.96 0.90–0.98 0.93 0.86–0.97 0.93 0.86–0.97" in page.text
    assert "share of 100 clips" in page.text
    assert "chance, 0.50" in page.text
    low, high = (100 * FULL["rows"][1].figures["pairs"][end] for end in ("low", "high"))
    assert f"left:{low:.1f}%;width:{high - low:.1f}%" in html
    assert html.count('class="chance"') == 4  # the pairs of two rows, in the table and by pair


def test_figures_that_a_row_lacks_are_dashes(render):
    page, _ = render(rows=[ReportRow("plain", {"top1": proportion(1, 4)}), ReportRow("none", {})])
    assert "plain 0.25 0.05–0.70 none – Clips" in page.text
    assert "Accuracy by motion pair" not in page.text


def test_counts_that_differ_are_told_as_a_range(render):
    page, _ = render(rows=[ReportRow("a", {"top1": proportion(1, 4), "pairs": proportion(2, 9)})])
    assert "share of 4 to 9 clips" in page.text


@pytest.mark.parametrize("part", SECTIONS)
def test_sections_with_nothing_to_show_are_left_out(render, part):
    page, _ = render(**{part: type(FULL[part])()})
    for other, headings in SECTIONS.items():
        for heading in headings:
            assert (heading in page.words) == (other != part)


def test_page_of_nothing_is_still_a_page(render):
    page, _ = render(**{part: type(FULL[part])() for part in SECTIONS}, introduction=[])
    assert page.text == "A title A title"  # title and heading


def test_all_text_is_escaped(render):
    named = replace(clip(), truth=NASTY, predictions={NASTY: [(NASTY, 1.0)]})
    by_pair = {**figures(93), "by_pair": {NASTY: proportion(1, 2)}}
    page, html = render(
        title=NASTY,
        introduction=[NASTY],
        rows=[ReportRow(NASTY, by_pair)],
        curves=[Curve(NASTY, HISTORY)],
        confusions=[Confusion(NASTY, [[1, 0], [0, 1]], [NASTY, "$\\nonsense$"])],
        clips=[named],
        details={NASTY: NASTY},
    )
    assert "<b>&" not in html
    assert page.text.count(NASTY) == 13
    alts = [attributes["alt"] for attributes in page.all("img")]
    assert all(NASTY in alt for alt in alts)


HOSTILE = [
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "--><!--",
    "' onload='alert(1)",
    '" style="background:url(http://a/b)',
    "{{ 7 * 7 }} {% raw %} {# #}",
    "javascript:alert(1)",
    "&lt;b&gt; &amp;",
    "$\\frac{x$",
    "_hidden",
    "| x",
    "\x00\x1b[31m\x07",
    "a\r\nb\u2028c",
    "\u202egpj.exe",
    os.fsdecode(b"\xff\xfe"),
    "打球 🏀",
    "l" * 5000,
]


@pytest.fixture(scope="module")
def clean_page(tmp_path_factory) -> ParsedPage:
    path = tmp_path_factory.mktemp("clean") / "report.html"
    write_page(path, build(FULL))
    return ParsedPage(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", HOSTILE)
def test_every_name_is_text_in_page_and_charts(render, clean_page, name):
    page, html = render(
        title=name,
        introduction=[name],
        rows=[ReportRow(name, {**figures(93), "by_pair": {name: proportion(1, 2)}})],
        curves=[Curve(name, HISTORY)],
        confusions=[Confusion(name, [[1, 0], [0, 1]], [name, "other"])],
        clips=[replace(clip(), truth=name, predictions={name: [(name, 1.0)]}, name=name)],
        details={name: name},
    )
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in clean_page.elements}
    assert {key for _, a in page.elements for key in a} == {key for _, a in clean_page.elements for key in a}
    assert "".join(page.words).count(printable(name)) == 14
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", html)
    charts = [ElementTree.fromstring(decode(image["src"])) for image in page.all("img")]
    assert {element.tag.split("}")[1] for chart in charts for element in chart.iter()} <= SHAPES
    texts = ["".join(element.itertext()) for element in charts[-1].iter() if element.tag.endswith("}text")]
    assert sum(text.strip().startswith(printable(name)[:39].strip()) for text in texts) == 2


def test_right_and_wrong_are_told_by_symbol_word_and_colour(render):
    page, html = render()
    assert "✗ zero-shot box going away 60% box coming closer 40%" in page.text
    assert "✓ ILA box coming closer 97%" in page.text
    assert '<div class="wrong"><b role="img" aria-label="wrong">✗</b> <h4>zero-shot' in html
    assert '<div class="right"><b role="img" aria-label="right">✓</b> <h4>ILA' in html


def test_model_that_said_nothing_of_a_clip_is_left_out(render, tmp_path):
    silent = replace(clip(), predictions={"silent": []})
    page, _ = render(clips=[silent])
    assert "silent" not in page.text
    save_strips(tmp_path / "strips.png", [silent])


@pytest.mark.parametrize(("num_frames", "columns"), [(1, 1), (8, 8), (12, 12), (16, 8), (32, 11)])
def test_any_number_of_frames(render, num_frames, columns):
    page, html = render(clips=[clip(num_frames, 6, 10)])
    frames = [attributes for attributes in page.all("i") if attributes.get("class") == "frame"]
    assert len(frames) == num_frames
    assert f"--columns:{columns};--shape:10/6" in html
    assert html.count('class="frame playing"') == (num_frames > 1)
    strip = imread(io.BytesIO(decode(re.search(r"--strip:url\(([^)]*)\)", html)[1])))
    assert strip.shape[:2] == (6, 10 * num_frames)


def test_forty_classes_and_a_class_without_clips(render):
    counts = np.diag([5] * 39 + [0]).tolist()
    page, _ = render(confusions=[Confusion("ILA", counts, [f"class number {i}" for i in range(40)])])
    assert page.all("img")[-1]["alt"].startswith("Confusion matrix of ILA: 100%")


def test_confusion_that_does_not_fit_its_names_is_refused(render):
    with pytest.raises(ValueError, match=r"K=3 names, got \(2, 2\)"):
        render(confusions=[Confusion("ILA", [[1, 0], [0, 1]], ["a", "b", "c"])])


def test_curve_of_a_run_that_diverged_or_never_evaluated(render):
    page, html = render(curves=[Curve("nan", [*HISTORY, {"step": 3, "loss": float("nan")}]), Curve("empty", [])])
    assert "training loss: nan from 2.50 to 0.75" in html
    assert "validation top-1" not in page.words
    assert "empty" not in page.words


def test_earlier_report_stays_when_writing_fails(render, tmp_path):
    render()
    with pytest.raises(ValueError, match="confusion"):
        render(title="Another", confusions=[Confusion("ILA", [[1]], [])])
    page, _ = ParsedPage((tmp_path / "new folder" / "report.html").read_text()), None
    assert "A title" in page.text


@pytest.mark.parametrize(("classes", "has_top5"), [(1, False), (2, False), (5, False), (6, True), (40, True)])
@pytest.mark.parametrize("broken", [0, 1, 20])
def test_top_5_is_shown_if_it_can_be_below_one_and_unreadable_videos_are_named(tmp_path, classes, has_top5, broken):
    labels = torch.arange(40) % classes
    scores = torch.rand(40, classes, generator=torch.Generator().manual_seed(0)).softmax(-1)
    scores[:broken] = 0
    names = [f"class number {index}" for index in range(classes)]
    infos = [ClassInfo(index, name) for index, name in enumerate(names)]
    figures = summarize_thoroughly(Predictions(torch.arange(40), labels, scores), infos)
    unreadable = [f"<broken {index}>.mp4" for index in range(broken)]
    write_page(tmp_path / "report.html", evaluation_page(Evaluation("model", {"all": figures}, names, {}, unreadable)))
    page = ParsedPage((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert ("top-5" in page.text) == has_top5
    assert (f"{broken} of 40 videos could not be read." in page.text) == (broken > 0)
    assert all(name in page.words for name in unreadable)
    assert ("NLL of the readable videos" in page.text) == ("unreadable ones are wrong" in page.text) == (broken > 0)
    assert len(page.all("details")) == (broken > 12)


def test_rows_render_as_a_markdown_table():
    rows = [ReportRow("zero-shot", figures(50)), ReportRow("a | b\nc", {"pairs": proportion(93, 100)})]
    assert results_table(rows).markdown() == (
        "| | object top-1 | motion pairs | top-1 |\n"
        "|---|---:|---:|---:|\n"
        "| zero-shot | 0.96 (0.90-0.98) | 0.50 (0.40-0.60) | 0.50 (0.40-0.60) |\n"
        "| a \\| b c | - | 0.93 (0.86-0.97) | - |\n"
    )


def test_strip_image_is_the_frames_side_by_side():
    strip = clip(3, 6, 10)
    pixels = (imread(io.BytesIO(strip_image(strip)))[..., :3] * 255).round().astype(np.uint8)
    assert pixels.shape == (6, 30, 3)
    for index, frame in enumerate(strip.frames):
        np.testing.assert_array_equal(pixels[:, 10 * index : 10 * index + 10], frame.permute(1, 2, 0))
    assert imread(io.BytesIO(strip_image(strip, scale=4))).shape[:2] == (24, 120)


def colour_present(pixels: np.ndarray, colour: str) -> bool:
    expected = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return bool((np.abs(pixels[..., :3] - expected).max(axis=-1) < 0.1).any())


def test_save_strips_draws_one_row_per_clip(tmp_path):
    path = tmp_path / "figures" / "strips.png"
    green, red = "#16794a", "#c2293d"
    right = replace(clip(), truth=NASTY, predictions={NASTY: [(NASTY, 1.0)]})
    save_strips(path, [replace(clip(6, 8, 16), predictions={"ILA": [("no", 1.0)]}), right])
    assert list(path.parent.iterdir()) == [path]
    pixels = imread(path)
    assert pixels.shape[:2] == (224, 1640)  # 100 pixels an inch: six frames of 2 by 1, and the words
    words = pixels[:, 1220:]
    assert colour_present(words[:112], red)
    assert not colour_present(words[:112], green)
    assert colour_present(words[112:], green)
    assert not colour_present(words[112:], red)
    assert (pixels[112:, 320:1200, :3] == 1).all()  # a shorter clip ends earlier


def test_save_strips_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no clips"):
        save_strips(tmp_path / "strips.png", [])


@pytest.mark.parametrize(
    "frames",
    [torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(0, 3, 4, 4, dtype=torch.uint8)],
)
def test_frames_of_another_type_or_shape_are_refused(frames):
    with pytest.raises(ValueError, match=r"expected uint8 \[T, 3, H, W\], got torch"):
        ClipStrip(frames, "a", {})
