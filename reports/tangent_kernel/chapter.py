"""Reading the tangent kernel: its findings and figures, in the order of the report."""

from __future__ import annotations

from probes.run import Run
from reports.chapter import Chapter
from reports.tangent_kernel import alignment, matrix, modes, regime, spread


def read(run: Run) -> Chapter:
    """Findings and figures about the tangent kernel."""
    findings = (*regime.regime(run), *alignment.alignment(run), *modes.left(run), *spread.spread(run))
    figures = (*regime.figure(run), *alignment.figure(run), *matrix.figure(run), *modes.figure(run))
    return Chapter(findings, tuple(figures))
