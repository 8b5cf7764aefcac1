"""A folder for a run, and a toy that trains in a millisecond."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.probes.toy import Toy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a run may be written; it does not exist yet."""
    return tmp_path / "run"


@pytest.fixture
def toy() -> Toy:
    """Three features, two classes, four hidden units, SGD."""
    return Toy()
