"""Reading gradient noise: its findings and figures, in the order of the report."""

from __future__ import annotations

from probes.run import Run
from reports.chapter import Chapter
from reports.noise import alignment, batch
from reports.noise.clipping import clipping
from reports.noise.conflict import conflict
from reports.noise.tails import tails


def read(run: Run) -> Chapter:
    """Findings and figures about the size of gradient noise."""
    return Chapter((*batch.batch(run), *tails(run)), tuple(batch.figure(run)))


def read_alignment(run: Run) -> Chapter:
    """Findings and figures about the directions of examples' gradients."""
    return Chapter((*alignment.alignment(run), *conflict(run), *clipping(run)), tuple(alignment.figure(run)))
