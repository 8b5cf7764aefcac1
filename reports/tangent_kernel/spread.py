"""Reading what sets examples apart in the kernel: where nothing does, no example can be learned by itself.

When all gradients of the outputs are the same, the kernel has rank one and every step moves the outputs of all examples
alike. That is so where hidden units are dead and the last bias is all that learns, and at the start of networks that
are too deep for their initialisation. Small numbers are usual at the start: of what we saw train, a sigmoid network
began at .002 and a ReLU network of ten layers at 3e-5.
"""

from __future__ import annotations

from diagnostics.estimate import exact
from probes.run import Run
from reports.chapter import method_of
from reports.finding import Finding

ID = "tangent_kernel/alike"
PROBE = "tangent_kernel"
CITATION = "Xiao et al., arXiv 1912.13053"

ALIKE = 1e-6
"""Of the trace. Dead networks have 0, and deep sigmoid networks 1e-8, where gradients are in single precision."""


def spread(run: Run) -> list[Finding]:
    """A warning where the kernel cannot tell examples apart; what the kernel looks like otherwise."""
    last, rank = run.last(PROBE, "spread"), run.last(PROBE, "effective_rank")
    if last is None or last.value is None:
        return []
    alike = last.value < ALIKE
    if alike:
        claim = f"The tangent kernel does not tell examples apart at step {last.step}: the gradients of their outputs "
        claim += "are the same"
    else:
        claim = f"{100 * last.value:.2g}% of the trace of the tangent kernel tells examples apart at step {last.step}"
    if rank is not None and rank.value is not None and rank.step == last.step:
        claim += f"; its effective rank is {rank.value:.3g}"
        examples = run.last(PROBE, "examples")
        claim += "" if examples is None or examples.value is None else f" of {examples.value:.0f} examples"
    return [
        Finding(
            id=ID,
            level="warn" if alike else "ok",
            claim=f"{claim}.",
            value=exact(last.value, method_of(last)),
            threshold=f"a share below {ALIKE:g}",
            meaning="A step moves the outputs of all examples alike, so that only their mean is learned."
            if alike
            else "What all gradients have in common moves all outputs alike; the rest is what examples are told apart "
            "by. Ranks fall as features come to serve few classes: that is no fault.",
            advice=(
                "Look for dead or saturated units; they pass nothing of the inputs on.",
                "In a fresh deep network: an initialisation that keeps inputs apart (He or orthogonal weights), "
                "normalisation layers, or skip connections.",
            )
            if alike
            else (),
            evidence=(),
            method=method_of(last),
            citation=CITATION,
        )
    ]
