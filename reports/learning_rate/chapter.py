"""Reading effective learning rates: how far steps move and turn each tensor, and what norms do to the schedule."""

from __future__ import annotations

from probes.run import Run
from reports.chapter import Chapter, reason_missing, unmeasured
from reports.learning_rate.distance import distance
from reports.learning_rate.implicit_decay import CITATION, effective_figure, implicit_decay
from reports.learning_rate.moments import below_epsilon, moment_figure, outgrown
from reports.learning_rate.not_training import not_training
from reports.learning_rate.rotation import rotation, rotation_figure
from reports.learning_rate.spectral_condition import spectral_condition, spectral_figure
from reports.learning_rate.timescale import timescale
from reports.learning_rate.update_size import update_figure, update_size

FINDINGS = (
    update_size,
    not_training,
    implicit_decay,
    below_epsilon,
    outgrown,
    spectral_condition,
    rotation,
    timescale,
    distance,
)
"""What matters most first: within a level this is the order of the report."""

FIGURES = (update_figure, effective_figure, moment_figure, spectral_figure, rotation_figure)


def read(run: Run) -> Chapter:
    """Findings and figures about learning rates."""
    findings = [finding for part in FINDINGS for finding in part(run)]
    if not findings:
        reason = reason_missing(run, "learning_rate")
        if reason is None:
            return Chapter()
        findings = [unmeasured("learning_rate/rates", "The effective learning rate", reason, (), CITATION)]
    return Chapter(tuple(findings), tuple(figure for part in FIGURES for figure in part(run)))
