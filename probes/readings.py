"""From what a measure returns to what a probe writes: a number that was found, or why there is none."""

from __future__ import annotations

from diagnostics import Estimate
from probes.probe import Reading


def reading_of(name: str, estimate: Estimate, layer: str | None = None, note: str | None = None) -> Reading:
    """A number with its error; one that is undetermined is skipped, and says why.

    Example:
        >>> nothing = Estimate(float("nan"), float("nan"), "residual", "the gradient is zero")
        >>> reading = reading_of("rise", nothing)
        >>> reading.status, reading.note
        ('skipped', 'undetermined: the gradient is zero')
    """
    if estimate.determined:
        return Reading(name, estimate, layer, note)
    return Reading(name, None, layer, note=f"undetermined: {estimate.how}", status="skipped")
