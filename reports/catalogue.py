"""The chapters of a report, in the order in which their evidence is shown. A new measure adds one line here."""

from __future__ import annotations

from collections.abc import Callable

from probes.run import Run
from reports import (
    batch_sharpness,
    gradient_curvature,
    learning_rate,
    sharpness,
    spectrum,
    training,
    units,
    weights,
)
from reports.chapter import Chapter

CHAPTERS: dict[str, Callable[[Run], Chapter]] = {
    "sharpness": sharpness.read,
    "batch_sharpness": batch_sharpness.read,
    "gradient_curvature": gradient_curvature.read,
    "spectrum": spectrum.read,
    "learning_rate": learning_rate.read,
    "units": units.read,
    "weights": weights.read,
    "training": training.read,
}
"""By the name of the probe whose records they read."""
