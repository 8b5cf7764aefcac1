from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sample_report
from browsing import started
from selenium import webdriver

from reports.document import Document
from reports.render.html import to_html


@pytest.fixture
def sick() -> Document:
    """Every level, hostile names, missing cells, and figures of each kind."""
    return sample_report.sick()


@pytest.fixture
def empty() -> Document:
    """No findings, no figures, nothing skipped."""
    return sample_report.empty()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Headless, with nothing from outside."""
    driver = started(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where the pages of both documents are."""
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for name, document in (("sick", sample_report.sick()), ("empty", sample_report.empty())):
        found[name] = folder / f"{name}.html"
        found[name].write_text(to_html(document), encoding="utf-8")
    return found
