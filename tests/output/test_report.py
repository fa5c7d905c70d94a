"""The page is self-contained, escaped, and ties words to masks."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medsight_core.geometry import Frame
from medsight_core.imaging.volume import Volume
from medsight_core.output.report import _words, report_page
from medsight_core.regions import Answer, Provenance, Region, Span

NASTY = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)> $title ${x} &amp;"
FRAME = Frame.of_pixels((1, 1, 1))


class Page(HTMLParser):
    """Text of the answer (without the numbers), tags, attributes and the script of a page."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.answer = ""
        self.script = ""
        self._inside: list[str] = []
        self._answer_depth = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self._inside.append(tag)
        if dict(attrs).get("class") == "answer":
            self._answer_depth = len(self._inside)

    def handle_endtag(self, tag: str) -> None:
        assert self._inside and self._inside[-1] == tag, f"</{tag}> inside {self._inside}"
        self._inside.pop()
        if len(self._inside) < self._answer_depth:
            self._answer_depth = 0

    def handle_data(self, data: str) -> None:
        if self._inside and self._inside[-1] == "script":
            self.script += data
        elif self._answer_depth and "sup" not in self._inside:
            self.answer += data

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if name in (attributes.get("class") or "").split()]


def test_words_and_rows_point_at_the_masks(ct: Volume, answering: Callable[..., tuple]) -> None:
    asked, answer = answering(ct)
    page = Page(report_page(asked, answer))
    assert page.answer == answer.text
    assert [word["data-regions"] for word in page.of("word")] == ["1", "2"]
    assert [name["data-regions"] for name in page.of("name")] == ["1", "2"]
    layers = page.of("layer")
    assert [layer["data-region"] for layer in layers] == ["1", "2"]
    for layer, region in zip(layers, answer.regions, strict=True):
        source = layer["src"]
        assert source is not None and source.startswith("data:image/png;base64,")
        image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        shown = np.asarray(image.resize(region.mask.shape[::-1], Image.Resampling.BOX))[..., 3] > 50
        assert (shown & region.mask).sum() / (shown | region.mask).sum() > 0.85
    # Reachable by keyboard: everything that can be clicked is a button.
    assert all(tag == "button" for tag, attributes in page.tags if "data-regions" in attributes)


def test_everything_is_escaped_and_nothing_comes_from_outside(ct: Volume, answering: Callable[..., tuple]) -> None:
    asked, answer = answering(
        ct,
        raw=f"The <p>heart {NASTY}</p>[C4_3] {NASTY}",
        labels=(NASTY,),
        question=NASTY,
        warnings=(NASTY,),
    )
    answer = dataclasses.replace(answer, provenance=Provenance(model=NASTY, digest=NASTY, settings={NASTY: NASTY}))
    text = report_page(asked, answer)
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert page.answer == answer.text
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert name not in attributes or (tag == "img" and (attributes[name] or "").startswith("data:image/"))
    assert not re.search(r"https?://|url\(|@import", text)


def test_the_policy_allows_this_script_and_no_other(ct: Volume, answering: Callable[..., tuple]) -> None:
    page = Page(report_page(*answering(ct)))
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert policy is not None and f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_the_page_says_what_it_is(ct: Volume, answering: Callable[..., tuple]) -> None:
    text = report_page(*answering(ct, warnings=("2 localizers were left out.",)))
    for words in (
        "Research use only. Not a medical device.",
        "fake-mini",
        "sha256:00ff",
        "2 localizers were left out.",
    ):
        assert words in text
    assert "<b>certain</b> 0.91" in text and "<b>uncertain</b> 0.40" in text
    assert "mm²" in text and "[C4_3]" in text


def test_a_picture_without_spacing_has_areas_in_pixels(picture: Volume, answering: Callable[..., tuple]) -> None:
    text = report_page(*answering(picture))
    assert "750 pixels" in text and "mm²" not in text
    assert 'src="data:image/jpeg' in text


def test_without_regions_there_is_nothing_to_click(ct: Volume, answering: Callable[..., tuple]) -> None:
    asked, answer = answering(ct, raw="No lesion is seen.")
    page = Page(report_page(asked, answer))
    assert page.answer == "No lesion is seen."
    assert not page.of("word") and not page.of("layer")


@settings(max_examples=60)
@given(st.data())
def test_any_spans_leave_the_text_whole(data: st.DataObject) -> None:
    text = data.draw(st.text(alphabet='ab <&"\n', max_size=20))
    numbers = st.integers(0, len(text))
    spans = data.draw(st.lists(st.tuples(numbers, numbers).map(lambda ends: Span(min(ends), max(ends))), max_size=4))

    regions = tuple(
        Region(code="[C0_0]", label="", span=span, score=1.0, slice_index=0, mask=np.ones((1, 1), bool), frame=FRAME)
        for span in spans
    )
    answer = Answer(text=text, raw=text, regions=regions, warnings=(), provenance=Provenance(model="m", digest="d"))
    page = Page('<p class="answer">' + "".join(_words(answer, [(1, 2, 3)] * len(spans))) + "</p>")
    assert page.answer == text
    pressed = {n for word in page.of("word") for n in (word["data-regions"] or "").split()}
    assert pressed == {str(n) for n, span in enumerate(spans, start=1) if span.end > span.start}
