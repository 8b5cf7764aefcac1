from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import matplotlib
import matplotlib.style
import pytest
from matplotlib.figure import Figure as Canvas
from sample_report import HOSTILE

from reports import palette
from reports.document import Document, Figure, Table
from reports.render.canvas import plain_power, report_style
from reports.render.svg import VARIABLES, drawings


def figure(document: Document, name: str) -> Figure:
    return next(figure for figure in document.figures if figure.id == name)


def svg_of(figure: Figure) -> str:
    return drawings(figure)[0].svg


def test_palette_colours_become_variables_that_the_page_defines(sick):
    for name in ("sharpness-ratio", "effective-rates", "loss"):
        svg = svg_of(figure(sick, name))
        assert re.findall("#[0-9a-f]{6}", svg) == []
        assert set(re.findall(r"var\(--([\w-]+)\)", svg)) <= {*VARIABLES, "sans"}
    assert "var(--edge)" in svg_of(figure(sick, "sharpness-ratio"))


def test_cells_of_a_heat_map_keep_their_colours(sick):
    root = ElementTree.fromstring(svg_of(figure(sick, "dormant-map")))
    meshes = [element for element in root.iter() if element.get("class") == "mesh"]
    assert len(meshes) == 2  # the map and its colour bar
    assert "var(--" not in "".join(ElementTree.tostring(mesh, encoding="unicode") for mesh in meshes)


def test_fragment_is_a_labelled_image_and_reaches_nothing_outside(sick):
    for each in sick.figures:
        svg = svg_of(each)
        root = ElementTree.fromstring(svg)
        assert root.tag == "svg"
        assert root.get("role") == "img"
        assert root.get("aria-label") == each.alt
        assert {"style", "script", "metadata"}.isdisjoint(element.tag for element in root.iter())
        references = [element.get("href", "#") for element in root.iter()]
        assert all(reference.startswith(("#", "data:image/png")) for reference in references)


def test_ids_belong_to_the_figure_and_references_find_them(sick):
    first = figure(sick, "sharpness-ratio")
    one, other = (svg_of(each) for each in (first, replace(first, id="twin of/it")))
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (one, other)]
    assert ids[0].isdisjoint(ids[1])
    for svg, own in zip((one, other), ids, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([\w-]+)', svg)) == own


def test_hostile_text_stays_text(sick):
    root = ElementTree.fromstring(svg_of(figure(sick, "effective-rates")))
    assert HOSTILE in [element.text for element in root.iter("text")]


def test_control_characters_and_dollars_do_not_stop_a_drawing():
    def draw(canvas: Canvas) -> None:
        canvas.add_subplot().set_title("a\x00b\x1b $x^$ 中")

    svg = svg_of(Figure("x", "", "", "alt\x00", draw, Table((), ())))
    assert "$x^$" in svg
    assert "\x00" not in svg


def test_powers_on_logarithmic_axes_are_plain_text(sick):
    texts = [e.text for e in ElementTree.fromstring(svg_of(figure(sick, "effective-rates"))).iter("text")]
    assert "10⁻³" in texts
    assert not any("mathdefault" in text for text in texts)
    assert plain_power(r"$\mathdefault{-10^{12}}$") == "−10¹²"


def test_nothing_to_draw_is_said(sick):
    assert "nothing to draw" in svg_of(figure(sick, "empty-figure"))


def test_drawing_is_the_same_whatever_the_user_set(sick):
    each = figure(sick, "sharpness-ratio")
    before = svg_of(each)
    with matplotlib.style.context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert svg_of(each) == before
        assert matplotlib.rcParams["font.size"] == 30


def test_settings_come_back_after_an_error():
    size = matplotlib.rcParams["font.size"]
    with pytest.raises(ZeroDivisionError), report_style():
        _ = 1 / 0
    assert matplotlib.rcParams["font.size"] == size


def test_every_palette_colour_has_a_variable():
    assert set(VARIABLES.values()) >= {*palette.SERIES, *palette.LEVEL.values(), palette.INK, palette.PAPER}
    assert len(set(VARIABLES.values())) == len(VARIABLES)
