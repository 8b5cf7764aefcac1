"""The code of the README and of every page of the docs runs from top to bottom, as a reader would run it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from reports.command_line import FINDINGS, OK, main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def type_in(example: Example) -> None:
    """Lines that call ``diagnose``, as a shell would read them."""
    for line in str(example.parsed).splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "diagnose", "nothing else is typed in on these pages"
        code = main([os.path.expandvars(argument) for argument in arguments])
        assert code in (OK, FINDINGS), line


# One test for each page: blocks rest on those before them, and tests may be spread over processes.
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_on_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    parsers = [PythonCodeBlockParser(), SkipParser()]
    # How-to pages have made what they talk about; the README speaks of the reader's own files.
    if page.parent.parent == DOCS:
        parsers.append(CodeBlockParser("console", type_in))
    examples = list(Sybil(parsers=parsers, path=str(ROOT)).parse(page))
    for example in examples:
        example.evaluate()
    assert examples or "```python" not in page.read_text(encoding="utf-8")
