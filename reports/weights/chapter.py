"""Reading a checkpoint's tensors: what can be said of weights with nothing else known."""

from __future__ import annotations

from probes.checkpoint import Format
from probes.run import Run
from reports.chapter import Chapter, unmeasured
from reports.finding import Finding
from reports.stability.verdict import CITATION as STABILITY_CITATION
from reports.weights.finite import all_zero, finite, optimizer_state
from reports.weights.moments import below_epsilon, without_gradient
from reports.weights.norms import running_statistics, switched_off
from reports.weights.precision import half_precision
from reports.weights.rows import repeated_rows, zero_rows
from reports.weights.sizes import size_figure
from reports.weights.spectra import spectra, spectra_figure

FINDINGS = (
    finite,
    optimizer_state,
    running_statistics,
    all_zero,
    without_gradient,
    below_epsilon,
    repeated_rows,
    zero_rows,
    switched_off,
    half_precision,
    spectra,
)
"""What matters most first: within a level this is the order of the report."""

FIGURES = (size_figure, spectra_figure)


def read(run: Run) -> Chapter:
    """Findings and figures about the tensors of a checkpoint."""
    if not run.layers("weights", "elements"):
        return Chapter()
    findings = [finding for part in FINDINGS for finding in part(run)]
    if not run.header.get("task"):
        findings.append(_curvature(run))
    return Chapter(tuple(findings), tuple(figure for part in FIGURES for figure in part(run)))


def _curvature(run: Run) -> Finding:
    folder = f", {Format.FOLDER}" in str(run.header.get("file"))
    text = ("Of a language model in a folder of Hugging Face, --text FILE is enough.",) if folder else ()
    return unmeasured(
        "sharpness/regime",
        "Curvature",
        "a checkpoint alone has no loss and no data",
        ("Pass --task task.py, whose build(checkpoint) returns an Objective, or (Objective, optimizer).", *text),
        STABILITY_CITATION,
    )
