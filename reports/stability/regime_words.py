"""What each regime of stability is called, what it means, and what to try."""

from __future__ import annotations

from dataclasses import dataclass, replace

from reports.finding import Level
from reports.stability.regime import Regime

LOWER = (
    "Lower the learning rate: to a third, then by the ratio.",
    "Start with a warm-up, or lengthen it, so that curvature can fall before the rate is full.",
)
SHORTER = (
    *LOWER,
    "Clip gradients: it shortens the steps that throw the run out, and leaves the others alone.",
    "Weight decay keeps norms from growing, and with them the curvature of layers without normalisation.",
)
LARGER_BATCHES = "Raise the batch size: gradient noise is part of what reaches the edge, and it shrinks with the batch."
ELSEWHERE = (
    "Look at the data and the loss: non-finite or huge inputs, labels out of range, a logarithm or a division at zero, "
    "a wrong sign.",
    "With mixed precision, look at the loss scale and at overflow in float16.",
    "A single bad mini-batch can do it too: log the loss of each step and clip gradients.",
)


@dataclass(frozen=True)
class Words:
    """What a regime is called, and what it means."""

    level: Level
    verdict: str
    meaning: str
    advice: tuple[str, ...] = ()


REGIMES: dict[Regime, Words] = {
    "diverged": Words("fail", "Training has diverged", "What was measured from here on says nothing about learning."),
    "blown up": Words(
        "fail",
        "The run was thrown off and has not come back",
        "Steps were too long for the curvature, the loss rose, and it has not come back since. A low ratio "
        "afterwards is no recovery: a network that was thrown far out is often dead and flat there.",
        SHORTER,
    ),
    "stalled": Words(
        "warn",
        "Steps were too long for the curvature, and the loss has hardly fallen since",
        "A low ratio afterwards is no recovery: a network that was thrown far out is often flat there, and learns "
        "little.",
        SHORTER,
    ),
    "swinging": Words(
        "fail",
        "Steps keep throwing the run past the edge and back",
        "Each time the ratio is far above 1 a step overshoots and throws the run to a flatter region, from where it "
        "sharpens again. What is learnt in between is partly lost, and units can die on the way.",
        SHORTER,
    ),
    "beyond": Words(
        "fail",
        "Steps are too long for the curvature",
        "Along the sharpest direction each step now overshoots by more than it corrects, so the oscillation grows. "
        "Either the loss rises until curvature gives way, or training diverges. Where gradients are clipped, steps are "
        "shorter than the learning rate says, and the ratio overstates them.",
        SHORTER,
    ),
    "unresolved": Words(
        "unmeasured",
        "The ratio is high, but its error is too wide for a verdict",
        "It could be at the edge, which is usual, or beyond it, which is not.",
    ),
    "catapult": Words(
        "warn",
        "The run was thrown to a flatter region and has settled",
        "The ratio went well above 1 and came back: a catapult. It costs a spike in the loss and can be survived; more "
        "than once in a run it is a sign of too high a rate.",
        (
            "If the spike hurt, start with a warm-up, or lengthen it: curvature then falls without one.",
            "Lower the learning rate if it happens again, or if units died on the way.",
            "Clip gradients: it bounds how far one step can throw the run.",
        ),
    ),
    "edge": Words(
        "ok",
        "The run is at the edge of stability",
        "Curvature has risen until the step can only just follow it, and oscillation along the sharpest directions now "
        "holds it there. This is the usual state of full-batch training, not a fault: the loss falls over many steps, "
        "though not at every one.",
    ),
    "sharpening": Words(
        "ok",
        "Curvature is rising towards the edge of stability",
        "Progressive sharpening: steps still contract, and will until the ratio reaches 1.",
    ),
    "stable": Words(
        "ok",
        "Steps are well within what the curvature allows",
        "Every direction contracts under the present step. Whether a larger one would train better is another "
        "question.",
    ),
}
"""By λmax, or whatever the basis for those regimes that the loss decides."""

BATCHES: dict[Regime, Words] = REGIMES | {
    **{one: replace(REGIMES[one], advice=(*SHORTER, LARGER_BATCHES)) for one in ("blown up", "swinging")},
    "beyond": Words(
        "fail",
        "Steps are too long for the curvature of the batches",
        "Along its own gradient the loss of a batch curves by more than the step corrects, on average over batches, so "
        "noise and oscillation grow. Either the loss rises until curvature gives way, or training diverges. Where "
        "gradients are clipped, steps are shorter than the learning rate says, and the ratio overstates them.",
        (*SHORTER, LARGER_BATCHES),
    ),
    "unresolved": replace(
        REGIMES["unresolved"], advice=("Average over more batches: the error falls with the root of their number.",)
    ),
    "edge": Words(
        "ok",
        "The run is at the edge of stochastic stability",
        "Along their own gradients the batches curve as much as the step can follow, and oscillation holds it there. "
        "This is the usual state of mini-batch training, not a fault.",
    ),
    "sharpening": Words(
        "ok",
        "Curvature along the batches' gradients is rising towards the edge of stability",
        "Progressive sharpening, as mini-batches see it: it goes on until the ratio reaches 1.",
    ),
    "stable": Words(
        "ok",
        "Steps are within what the curvature of the batches allows",
        "On average a step lowers the loss of its own batch. Whether a larger one would train better is another "
        "question.",
    ),
}
"""By batch sharpness."""

LOST_AT_EDGE = Words(
    "warn",
    "The run is at the edge of stability, and the loss has been lost there",
    "Steps are as long as curvature allows, which by itself is usual; but the loss has gone back up and has stayed "
    "there. Steps that are too long, or too noisy, for what was learnt do that.",
    (*SHORTER, LARGER_BATCHES),
)
"""Where the loss is far above its lowest."""

BETWEEN = Words(
    "ok",
    "Batch sharpness lies between the edges of small and of large batches",
    "With momentum there is no single edge: whether this is still room or already the edge depends on the batch size. "
    "At the edge the ratio stops rising and stays.",
)
"""With momentum, by batch sharpness."""

LONG_BY_ANALOGY = replace(
    BATCHES["beyond"],
    level="warn",
    verdict="By the rule for whole batches, steps are too long for the curvature of the batches",
)
"""With a preconditioner, where nobody has shown at what ratio mini-batches settle."""

TRIAL = (
    "No rule of stability is known for this optimizer. The ratio is ΔᵀHΔ/(−2g·Δ) along one trial step Δ: from 1 on, a "
    "step no longer lowers the loss in the quadratic model. It bounds the stability ratio from below and is not the "
    "edge itself, so nothing is said about the edge here."
)
TRIAL_LONG = Words(
    "warn",
    "The last steps no longer lower the loss in the quadratic model, and it has risen",
    TRIAL,
    ("Lower the learning rate, or let it decay: steps of a fixed size end up going to and fro.", *LOWER[1:]),
)
TRIAL_AT_ONE = Words("ok", "The last steps no longer lower the loss in the quadratic model", TRIAL)
TRIAL_FINE = Words("ok", "Steps still lower the loss in the quadratic model", TRIAL)
