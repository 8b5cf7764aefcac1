from __future__ import annotations

import re
from dataclasses import replace

import pytest
from rich.cells import cell_len

from reports.document import Table
from reports.render.terminal import to_terminal


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize("width", [40, 80, 132])
def test_every_claim_is_there_and_no_line_is_too_long(sick, width):
    text = to_terminal(sick, width=width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    plain = squeezed(re.sub(r"(?m)^(✗ Fail|! Warning|\? Not measured|✓ OK)", "", text))
    for finding in sick.findings:
        assert squeezed(finding.claim) in plain


def test_diagnosis_first_then_worst_first_then_what_was_not_measured(sick):
    text = squeezed(to_terminal(sick, width=100))
    places = [text.index(squeezed(part)) for part in (sick.diagnosis, "Sharpness is 2.31", "Effective learning rates")]
    places += [text.index(squeezed(part)) for part in ("The gradient noise scale", "3 of 1 024", "tangent kernel")]
    assert places == sorted(places)


def test_meaning_is_told_where_something_is_to_be_done(sick):
    text = squeezed(to_terminal(sick, width=100))
    for finding in sick.findings:
        assert (squeezed(finding.meaning) in text) == (finding.level in ("fail", "warn"))


def test_colour_only_on_request(sick):
    assert "\x1b" not in to_terminal(sick, width=80)
    assert "\x1b[1;31m" in to_terminal(sick, width=80, color=True)


@pytest.mark.parametrize("color", [False, True])
def test_escape_sequences_from_outside_do_not_reach_the_terminal(empty, color):
    text = to_terminal(replace(empty, title="a\x1b]0;owned\x07b", diagnosis="[bold]x[/bold] :smile:"), color=color)
    assert "\x1b]" not in text
    assert "\x07" not in text
    assert "[bold]x[/bold] :smile:" in text


def test_the_list_of_what_was_not_measured_is_short(empty):
    skipped = Table(("what", "why"), tuple((f"measure {n}", "off") for n in range(20)))
    text = to_terminal(replace(empty, skipped=skipped), width=80)
    assert "measure 7: off" in text
    assert "measure 8" not in text
    assert "and 12 more" in text


def test_empty_report(empty):
    text = to_terminal(empty, width=80)
    assert "No findings." in text
    assert "Everything that was tried was measured." in text
