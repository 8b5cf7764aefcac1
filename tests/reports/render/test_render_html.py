from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

from sample_report import HOSTILE, LONG, STEPS

from reports.document import Document, Figure, Table
from reports.render.html import to_html


class Page(HTMLParser):
    """What a browser would find: ids, links, tags and the text outside style sheets."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._hidden = False
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._hidden = tag in ("style", "script")
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href", "srcset", "data", "action", "poster"):
                self.links.append(value or "")
            assert not name.startswith("on")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data


def test_outside_text_is_escaped(sick):
    source = to_html(sick)
    page = Page(source)
    assert "b" not in page.tags
    assert HOSTILE in page.text
    assert LONG in page.text  # the places to break leave the name whole
    scripts = re.findall("<script[^>]*>", source.lower())
    assert scripts.count("<script>") == 1
    assert set(scripts) == {"<script>", '<script type="application/json">'}


def test_control_characters_do_not_reach_the_page(sick):
    source = to_html(replace(sick, title="a\x00\x1b[31m\u202eb", figures=()))
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", source)


def test_ids_are_unique_and_every_link_leads_somewhere(sick, empty):
    for document in (sick, empty):
        source = to_html(document)
        page = Page(source)
        assert len(page.ids) == len(set(page.ids))
        for link in page.links:
            if link.startswith("#"):
                assert link[1:] in page.ids
            else:
                assert re.fullmatch(
                    r"https://arxiv\.org/abs/\d{4}\.\d{4,5}|data:,|data:(image/png|application/gzip);base64,.*",
                    link,
                    re.DOTALL,
                )
        for name in re.findall(r"url\(([^)]*)\)", source):
            assert name.removeprefix("#") in page.ids


def test_worst_finding_first_and_its_figures_beneath_it(sick):
    source = to_html(sick)
    order = [source.index(f'id="finding-{name}"') for name in ("sharpness_2f_regime", "rates_2f_spread")]
    order += [source.index(f'id="finding-{name}"') for name in ("noise_2f_scale", "units_2f_dormant")]
    assert order == sorted(order)
    assert (
        order[0] < source.index('id="figure-sharpness-ratio"') < source.index('id="figure-effective-rates"') < order[1]
    )
    assert source.count('id="figure-effective-rates"') == 1
    assert source.index('id="evidence"') < source.index('id="figure-loss"')


def test_missing_values_are_not_numbers(sick):
    page = Page(to_html(sick))
    assert "–" in page.text
    assert "undetermined (standard error)" in page.text


def test_long_tables_say_that_they_are_thinned(sick):
    assert "of 3000 rows: evenly spaced" in Page(to_html(sick)).text
    assert f"of {len(STEPS)} rows" in Page(to_html(sick)).text


def test_empty_report_is_honest(empty):
    text = Page(to_html(empty)).text
    assert "There are no findings" in text
    assert "Everything that was tried was measured." in text
    assert "Not measured" in text
    assert "OK" not in text


def test_rendering_twice_gives_the_same_page(sick):
    assert to_html(sick) == to_html(sick)


def test_a_run_of_fifty_thousand_steps_fits_in_two_megabytes(sick):
    values = [float(step % 977) for step in range(50_000)]
    table = Table(("step", "a", "b", "c"), tuple((step, value, value, value) for step, value in enumerate(values)))
    many = tuple(
        Figure(f"f{n}", "t", "c", "a", lambda canvas: canvas.add_subplot().plot(values[:2_000]), table)
        for n in range(8)
    )
    document: Document = replace(sick, figures=sick.figures + many)
    assert len(to_html(document).encode()) < 2_000_000
