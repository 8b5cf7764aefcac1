"""Reading gradient noise: its findings and figures, in the order of the report."""

from __future__ import annotations

from probes.run import Run
from reports.chapter import Chapter
from reports.noise.batch import batch, figure


def read(run: Run) -> Chapter:
    """Findings and figures about gradient noise."""
    return Chapter(tuple(batch(run)), tuple(figure(run)))
