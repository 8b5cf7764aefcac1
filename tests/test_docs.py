"""The code of the README and of every page of the docs runs from top to bottom, as a reader would run it."""

from __future__ import annotations

from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parent.parent


# One test for each page: blocks rest on those before them, and tests may be spread over processes.
@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_the_code_on_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = list(Sybil(parsers=[PythonCodeBlockParser(), SkipParser()], path=str(ROOT)).parse(page))
    for example in examples:
        example.evaluate()
    assert examples or "```python" not in page.read_text(encoding="utf-8")
