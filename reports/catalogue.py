"""The chapters of a report, in the order in which their evidence is shown. A new measure adds one line here."""

from __future__ import annotations

from collections.abc import Callable

from probes.run import Run
from reports import churn, landscape, opposing, plasticity, ranks, training
from reports.attention import chapter as attention
from reports.chapter import Chapter
from reports.learning_rate import chapter as learning_rate
from reports.noise import chapter as noise
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
from reports.tangent_kernel import chapter as tangent_kernel
from reports.trajectory import chapter as trajectory
from reports.units import chapter as units
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
    "gradient_alignment": noise.read_alignment,
    "opposing": opposing.read,
    "spectrum": spectrum.read,
    "landscape": landscape.read,
    "learning_rate": learning_rate.read,
    "units": units.read,
    "attention": attention.read,
    "ranks": ranks.read,
    "plasticity": plasticity.read,
    "churn": churn.read,
    "tangent_kernel": tangent_kernel.read,
    "trajectory": trajectory.read,
    "weights": weights.read,
    "training": training.read,
}
"""By the name of the probe whose records they read."""
