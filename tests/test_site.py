"""The site: it builds without a warning, loads nothing from another host, and its reference has every public name."""

from __future__ import annotations

import inspect
import os
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import diagnostics
import probes
import reports

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


class Page(HTMLParser):
    """What a page loads by itself, and the ids on it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.add(given.get("id", ""))
        # What "a" names is followed by people; what "link" names is loaded.
        if tag != "a":
            self.loads += [given[name] for name in ("src", "href", "srcset", "data", "poster") if name in given]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(target)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def public_names() -> list[str]:
    """Of the three packages, with the path under which the reference has them."""
    found = []
    for package in (diagnostics, probes, reports):
        for name in getattr(package, "__all__", None) or vars(package):
            thing = getattr(package, name)
            if name.startswith("_") or inspect.ismodule(thing):
                continue
            path = f"{package.__name__}.{name}"
            # Where a module bears the name too, the reference would take it for the module.
            found.append(f"{thing.__module__}.{name}" if path in sys.modules else path)
    return found


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for path in pages:
        foreign = [given for given in Page(path).loads if re.match(r"(https?:)?//", given)]
        assert not foreign, path
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", path.read_text(encoding="utf-8")), path


def test_the_reference_has_every_public_name(site: Path) -> None:
    shown = set().union(*(Page(path).ids for path in (site / "reference").glob("*.html")))
    assert [name for name in public_names() if name not in shown] == []


def test_examples_in_docstrings_are_shown_as_code(site: Path) -> None:
    for path in (site / "reference").glob("*.html"):
        assert "<blockquote>" not in path.read_text(encoding="utf-8"), path


def test_the_gallery_shows_what_its_program_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("selenium")
    monkeypatch.syspath_prepend(str(DOCS))
    made = runpy.run_path(str(DOCS / "gallery.py"))["REPORTS"]
    entries = re.findall(
        r"\(gallery/(.*)-light\.png\)\]\(gallery/(.*)\.html\)", (DOCS / "gallery.md").read_text("utf-8")
    )
    assert entries == [(name, name) for name in made]
