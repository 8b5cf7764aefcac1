"""Reading the run itself: the loss on the monitored batches, and what the measurements cost or could not do."""

from __future__ import annotations

import numpy

from diagnostics.estimate import exact
from probes.run import Run
from probes.run.reader import Series
from reports.chapter import Chapter, method_of
from reports.finding import Finding


def read(run: Run) -> Chapter:
    """Findings about the loss and about failed probes."""
    return Chapter((*_loss(run), *_failures(run)))


def _loss(run: Run) -> list[Finding]:
    loss = run.series("sharpness", "loss")
    if len(loss) < 2:
        return []
    first, last = loss.values[0], loss.values[-1]
    record = run.last("sharpness", "loss")
    if not numpy.isfinite(last):
        step = int(loss.steps[int(numpy.flatnonzero(~numpy.isfinite(loss.values))[0])])
        return [
            _finding(
                "fail",
                f"The loss stopped being a number at or before step {step}.",
                "From that step on the weights are lost; what was measured before it may still say why.",
                ("Read the stability ratio before that step.", "Go back to the last checkpoint before it."),
                loss,
                method_of(record),
            )
        ]
    risen = last > first
    claim = (
        f"Loss on the monitored batches went from {first:.4g} to {last:.4g} in "
        f"{int(loss.steps[-1] - loss.steps[0])} steps"
    )
    return [
        _finding(
            "warn" if risen else "ok",
            claim + ".",
            "The run ends with a higher loss than it began with."
            if risen
            else "Training makes progress on what it is measured on.",
            ("Read the stability ratio first: above 1 the step is too long.",) if risen else (),
            loss,
            method_of(record),
        )
    ]


def _finding(level: str, claim: str, meaning: str, advice: tuple[str, ...], loss: Series, method: str) -> Finding:
    return Finding(
        id="training/loss",
        level="fail" if level == "fail" else "warn" if level == "warn" else "ok",
        claim=claim,
        value=exact(float(loss.values[-1]), method),
        threshold="finite, and below where it began",
        meaning=meaning,
        advice=advice,
        evidence=("sharpness-ratio",),
        method=method,
        citation="",
    )


def _failures(run: Run) -> list[Finding]:
    failed = [record for record in run.records if record.status == "failed"]
    if not failed:
        return []
    probes = sorted({record.probe for record in failed})
    return [
        Finding(
            id="training/probes",
            level="unmeasured",
            claim=f"{len(failed)} measurements failed ({', '.join(probes)}); the last: "
            f"{str(failed[-1].note).rstrip('.')}.",
            value=None,
            threshold="",
            meaning="Training was not disturbed, but the numbers of these probes are missing from that step on or "
            "for that step.",
            advice=("The appendix lists every failure with its reason.",),
            evidence=(),
            method="",
            citation="",
        )
    ]
