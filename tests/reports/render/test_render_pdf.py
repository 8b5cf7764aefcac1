from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from matplotlib.font_manager import findfont, get_font
from sample_report import LONG

from reports.document import Figure, Table
from reports.finding import worst_first
from reports.render import flow, pdf
from reports.render.flow import Piece, Type, Words, paginate, paragraph, wrap
from reports.render.pdf import HEIGHT, WIDTH, layout, to_pdf

needs_poppler = pytest.mark.skipif(shutil.which("pdftotext") is None, reason="pdftotext is not installed")
BODY = Type(9.5)


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


@needs_poppler
def test_findings_facts_and_figures_are_in_the_text(sick, tmp_path):
    to_pdf(sick, tmp_path / "report.pdf")
    text = squeezed(run("pdftotext", "-layout", str(tmp_path / "report.pdf"), "-"))
    wanted = [sick.title, sick.diagnosis]
    for finding in sick.findings:
        wanted += [finding.claim, finding.meaning, finding.threshold, finding.method, finding.citation, *finding.advice]
    for figure in sick.figures:
        wanted += [figure.title, figure.caption]
    wanted += [value for _, value in sick.facts]
    wanted += ["sharpness÷threshold", "10⁻³", "nothing to draw"]
    assert [each for each in wanted if squeezed(each) not in text] == []
    order = [text.index(squeezed(finding.claim)) for finding in worst_first(sick.findings)]
    assert order == sorted(order)


@needs_poppler
def test_no_word_leaves_the_page(sick, tmp_path):
    to_pdf(sick, tmp_path / "report.pdf")
    boxes = re.findall(
        r'<word xMin="([-\d.]+)" yMin="([-\d.]+)" xMax="([-\d.]+)" yMax="([-\d.]+)"',
        run("pdftotext", "-bbox", str(tmp_path / "report.pdf"), "-"),
    )
    assert len(boxes) > 300
    for left, top, right, foot in (map(float, box) for box in boxes):
        assert left >= pdf.MARGIN - 2
        assert right <= pdf.PAGE[0] - pdf.MARGIN + 2
        assert top >= 20
        assert foot <= pdf.PAGE[1] - 20


@needs_poppler
def test_fonts_are_embedded_and_pages_are_numbered(sick, tmp_path):
    to_pdf(sick, tmp_path / "report.pdf")
    rows = run("pdffonts", str(tmp_path / "report.pdf")).splitlines()[2:]
    assert rows
    assert all("TrueType" in row and "yes yes yes" in row for row in rows)
    last = run("pdftotext", "-layout", str(tmp_path / "report.pdf"), "-").split("\f")[-2]
    assert re.search(r"(\d) ?/ ?\1", last)
    assert sick.title in last
    assert "training-dynamics-diagnostics" in run("pdfinfo", str(tmp_path / "report.pdf"))


def test_pieces_neither_overlap_nor_run_over(sick, empty):
    for document in (sick, empty, replace(sick, title=LONG * 5, diagnosis=LONG * 9)):
        for page in layout(document):
            end = 0.0
            for top, piece in page:
                assert top >= end
                end = top + piece.height
                ends = 0.0
                for left, right in sorted(words.extent() for words in piece.words):
                    assert left >= ends
                    ends = right
                assert ends <= WIDTH + 0.5
            assert end <= HEIGHT


def test_headings_stay_with_what_follows(sick):
    for page in layout(sick)[:-1]:
        assert not page[-1][1].keep


def test_the_head_of_a_table_comes_again_on_each_page(sick):
    rows = tuple((f"measure {n}", "why " * 60) for n in range(60))
    pages = layout(replace(sick, skipped=Table(("what", "why"), rows)))
    heads = [page[0][1].words[0].text for page in pages[-2:]]
    assert heads == ["what", "what"]


def test_a_figure_larger_than_the_page_is_drawn_smaller(sick):
    big = Figure("big", "Big", "", "", lambda canvas: canvas.add_subplot(), Table((), ()), (20.0, 30.0))
    drawings = [piece.drawing for page in layout(replace(sick, figures=(big,))) for _, piece in page if piece.drawing]
    assert drawings[0].size[0] * 72 <= WIDTH + 0.01
    assert drawings[0].size[1] * 72 <= HEIGHT


def test_every_glyph_the_reports_use_is_in_both_fonts():
    needed = {ord(mark) for mark in "λ₁ητβεσθ∇‖²³⁻·±≤≥≈≠√→∞−–…×÷✗✓!?½∑‑“”’µ\u202f\u00a0�"}
    for style in ("DejaVu Sans", "DejaVu Sans:bold"):
        assert needed <= set(get_font(findfont(style)).get_charmap())


def test_wrapping_keeps_every_character_and_the_width():
    text = f"a {LONG} λ₁ ≤ 2/η {'x' * 500} end"
    lines = wrap(text, BODY, 200.0)
    assert squeezed("".join(lines)) == squeezed(text)
    assert max(flow.width_of(line, BODY) for line in lines) <= 200.0
    assert wrap("", BODY, 200.0) == []


def test_no_line_of_a_paragraph_is_left_alone():
    lines = paragraph("word " * 60, BODY, 200.0)
    filler = Piece(BODY.line)
    for before in range(8):
        for page in paginate([filler] * before + lines, 9 * BODY.line + 0.01):
            own = [piece for _, piece in page if piece.words]
            assert len(own) != 1


def test_a_group_taller_than_a_page_is_still_placed():
    pieces = [Piece(10.0, (Words(0.0, str(n), BODY),), keep=True) for n in range(12)]
    pages = paginate(pieces, 45.0)
    assert [len(page) for page in pages] == [4, 4, 4]


def test_two_renders_are_equal(sick, tmp_path):
    to_pdf(sick, tmp_path / "a.pdf")
    to_pdf(sick, tmp_path / "b.pdf")
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    assert (tmp_path / "a.pdf").stat().st_size < 400_000


def test_a_failed_drawing_leaves_the_old_report(sick, tmp_path):
    def fail(canvas):
        raise RuntimeError("no")

    (tmp_path / "report.pdf").write_text("old")
    with pytest.raises(RuntimeError, match="no"):
        to_pdf(replace(sick, figures=(replace(sick.figures[0], draw=fail),)), tmp_path / "report.pdf")
    assert [path.name for path in tmp_path.iterdir()] == ["report.pdf"]
    assert (tmp_path / "report.pdf").read_text() == "old"


def test_a_date_that_is_none_and_text_in_other_scripts(empty, tmp_path):
    to_pdf(replace(empty, created="yesterday", title="模型 $x^$ \x1b[31m"), tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
