"""The chapters of a report, in the order in which their evidence is shown. A new measure adds one line here."""

from __future__ import annotations

from collections.abc import Callable

from probes.run import Run
from reports import noise, training, units
from reports.chapter import Chapter
from reports.learning_rate import chapter as learning_rate
from reports.spectrum import chapter as spectrum
from reports.stability import (
    ascent,
    batch_ladder,
    batch_sharpness,
    gradient_curvature,
    gradient_flow,
    sharpening,
    sharpness,
)
from reports.weights import chapter as weights

CHAPTERS: dict[str, Callable[[Run], Chapter]] = {
    "sharpness": sharpness.read,
    "batch_sharpness": batch_sharpness.read,
    "gradient_curvature": gradient_curvature.read,
    "sharpening": sharpening.read,
    "gradient_flow": gradient_flow.read,
    "batch_ladder": batch_ladder.read,
    "ascent": ascent.read,
    "noise_scale": noise.read,
    "spectrum": spectrum.read,
    "learning_rate": learning_rate.read,
    "units": units.read,
    "weights": weights.read,
    "training": training.read,
}
"""By the name of the probe whose records they read."""
