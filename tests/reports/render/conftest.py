from __future__ import annotations

import pytest
import sample_report

from reports.document import Document


@pytest.fixture
def sick() -> Document:
    """Every level, hostile names, missing cells, and figures of each kind."""
    return sample_report.sick()


@pytest.fixture
def empty() -> Document:
    """No findings, no figures, nothing skipped."""
    return sample_report.empty()
