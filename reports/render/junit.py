"""A report as JUnit XML, which CI systems show as tests: a case for each finding, a failure for each that fails."""

from __future__ import annotations

from xml.etree import ElementTree

from reports.document import Document
from reports.finding import Finding, worst_first
from reports.render.tables import printable


def to_junit(document: Document) -> str:
    """Findings as test cases: ``fail`` is a failure, ``unmeasured`` is skipped, ``warn`` passes and says what it is."""
    findings = worst_first(document.findings)
    counts = {
        "tests": str(len(findings)),
        "failures": str(sum(finding.level == "fail" for finding in findings)),
        "errors": "0",
        "skipped": str(sum(finding.level == "unmeasured" for finding in findings)),
    }
    root = ElementTree.Element("testsuites", {"name": "diagnose", **counts})
    suite = ElementTree.SubElement(
        root, "testsuite", {"name": printable(document.title), "timestamp": printable(document.created), **counts}
    )
    for finding in findings:
        _case(suite, finding)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, finding: Finding) -> None:
    theme, _, name = finding.id.partition("/")
    case = ElementTree.SubElement(suite, "testcase", {"classname": f"diagnose.{theme}", "name": name or theme})
    claim = printable(finding.claim)
    if finding.level == "fail":
        ElementTree.SubElement(case, "failure", {"message": claim, "type": "fail"}).text = _details(finding)
    elif finding.level == "unmeasured":
        ElementTree.SubElement(case, "skipped", {"message": claim})
    else:
        warning = f"warning: {claim}\n{_details(finding)}" if finding.level == "warn" else claim
        ElementTree.SubElement(case, "system-out").text = warning


def _details(finding: Finding) -> str:
    parts = [f"held against: {finding.threshold}" if finding.threshold else "", finding.meaning, *finding.advice]
    return "\n".join(printable(part) for part in parts if part)
