"""Markdown and JUnit for CI: all findings, worst first, and nothing from outside comes to life."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

from markdown_it import MarkdownIt
from sample_report import HOSTILE

from reports.finding import worst_first
from reports.render.junit import to_junit
from reports.render.markdown import to_markdown

LIVE = f"{HOSTILE} [a](javascript:x) ![i](http://x/y.png) @octocat www.x.org `code` **bold** #1 | a"


def rendered(text: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


def test_findings_come_worst_first_with_claim_and_error(sick):
    text = to_markdown(sick)
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`" in line]
    assert [row.split("`")[1] for row in rows] == [finding.id for finding in worst_first(sick.findings)]
    assert "2.31 ± 0.02" in rows[0]
    assert text.startswith("## ✗ Fail: ")


def test_nothing_from_outside_comes_to_life(sick):
    hostile = replace(sick, title=LIVE, findings=(replace(sick.findings[0], claim=LIVE, advice=(LIVE,)),))
    page = rendered(to_markdown(hostile))
    for tag in ("<script", "<a ", "<img", "<strong>a", "<code>code"):
        assert tag not in page, tag
    text = to_markdown(hostile)
    assert "@octocat" not in text
    assert "http://" not in text
    assert "alert" in page
    assert all(row.count("<td") == 5 for row in page.split("<tr>")[2:])


def test_an_empty_report_is_still_one(empty):
    assert to_markdown(empty).startswith("## ? Not measured: ")
    assert ElementTree.fromstring(to_junit(empty)).get("tests") == "0"


def test_each_finding_is_a_test_case(sick):
    root = ElementTree.fromstring(to_junit(sick))
    cases = root.findall("./testsuite/testcase")
    findings = worst_first(sick.findings)
    assert [f"{case.get('classname').removeprefix('diagnose.')}/{case.get('name')}" for case in cases] == [
        finding.id for finding in findings
    ]
    kinds = {"fail": "failure", "unmeasured": "skipped", "warn": "system-out", "ok": "system-out"}
    assert [[part.tag for part in case] for case in cases] == [[kinds[finding.level]] for finding in findings]
    for name, level in (("failures", "fail"), ("skipped", "unmeasured")):
        assert root.get(name) == str(sum(finding.level == level for finding in findings))


def test_no_text_breaks_the_xml(sick):
    strange = f"{HOSTILE} \x00\x0b\x1b ]]> \ud800 \ufffe &amp;"
    hostile = replace(sick, title=strange, findings=tuple(replace(one, claim=strange) for one in sick.findings))
    text = to_junit(hostile)
    text.encode("utf-8")
    root = ElementTree.fromstring(text)
    assert "<script>alert('x')</script>" in root.find("testsuite").get("name")
