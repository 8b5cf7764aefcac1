"""Reading the path of several checkpoints of one run."""

from __future__ import annotations

from probes.run import Run
from reports.chapter import Chapter
from reports.trajectory.figures import figures
from reports.trajectory.line import barrier, line_figure
from reports.trajectory.loss import earlier_is_better, loss_figure
from reports.trajectory.plane import plane_figure
from reports.trajectory.still import unchanged
from reports.trajectory.turning import turned_back

FINDINGS = (unchanged, turned_back, earlier_is_better, barrier)
"""What matters most first: within a level this is the order of the report."""


def read(run: Run) -> Chapter:
    """Findings and figures about the path; nothing for a run with one checkpoint, or none."""
    if len(run.series("trajectory", "displacement")) < 2:
        return Chapter()
    findings = tuple(finding for part in FINDINGS for finding in part(run))
    return Chapter(findings, (*figures(run), *plane_figure(run), *loss_figure(run), *line_figure(run)))
