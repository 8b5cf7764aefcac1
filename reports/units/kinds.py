"""The ways in which a unit can be lost to training: dormant, dead, saturated and linearised are four, not one.

A gated unit can besides be shut off by the branch that it is multiplied with.
"""

from __future__ import annotations

from dataclasses import dataclass

CITATION = "Sokar et al., arXiv 2302.12902; Lyle et al., arXiv 2402.18762"

NOTABLE = 0.25
"""Of a layer: from here on it is worth a look."""

SEVERE = 0.5
"""Of a layer: from here on it is a failure, where the kind is one."""


@dataclass(frozen=True)
class Kind:
    """One way in which a unit can be lost to training."""

    name: str
    condition: str
    severe: bool
    meaning: str
    advice: tuple[str, ...]

    @property
    def word(self) -> str:
        """Before "units"."""
        return self.name.replace("_", "-")


KINDS = (
    Kind(
        "dead",
        "have no output and no slope on any sample",
        True,
        "No gradient can reach the weights of a dead unit, so it hardly ever comes back by itself.",
        (
            "Lower the learning rate or lengthen the warm-up: dead ReLU units mostly come from a few large steps.",
            "Use an activation with a slope everywhere (leaky ReLU, GELU), or add normalisation before it.",
            "Reset them: fresh incoming weights, zero outgoing ones, and their optimizer state with them.",
        ),
    ),
    Kind(
        "dormant",
        "put out next to nothing compared with their layer",
        False,
        "Dormant units take no part in what the layer computes. Many of them mean that the network uses less of its "
        "width than it has; they "
        "are a symptom, and not by themselves a loss of plasticity.",
        (
            "Check the input scale and the initialisation of the layer.",
            "Look whether dormancy grows with time: growth is the warning, a constant share is not.",
        ),
    ),
    Kind(
        "saturated",
        "are flat, with an output, on almost every sample",
        False,
        "A saturated unit passes on almost no gradient: its incoming weights learn slowly or not at all.",
        (
            "Shrink the pre-activations: smaller initial weights, normalisation before the non-linearity, or weight "
            "decay.",
            "Lower the learning rate if saturation grew during training.",
        ),
    ),
    Kind(
        "linearised",
        "have the same slope on almost every sample",
        False,
        "These units act as linear maps. They are alive, but a layer of them adds no non-linearity and plasticity "
        "can suffer.",
        (
            "Check the scale of the pre-activations: too small for tanh, too far from zero for ReLU.",
            "Look for a growing bias or a drifting normalisation gain.",
        ),
    ),
    Kind(
        "gated_dormant",
        "are shut off by the other branch of their gate",
        False,
        "The activation of such a unit is at work, but what it is multiplied by is next to nothing, so nothing of it "
        "arrives.",
        (
            "Look at the weights of the other branch of the gate: weight decay or zeros may have emptied them.",
            "Look whether their number grows with time: growth is the warning, a constant share is not.",
        ),
    ),
)
