"""Reading the moments of Adam that a checkpoint brings along, where no task makes the optimizer itself available."""

from __future__ import annotations

from diagnostics.estimate import exact
from probes.run import Run
from reports.chapter import method_of
from reports.finding import Finding
from reports.weights.latest import latest, listed
from reports.words import counted

EPSILON_SHARE = 0.5
CITATION = "Kingma and Ba, arXiv 1412.6980; Wortsman et al., arXiv 2309.14322"


def without_gradient(run: Run) -> list[Finding]:
    """A warning about tensors whose second moment is zero throughout."""
    shares = latest(run, "adam_untouched")
    never = [name for name, share in shares.items() if share == 1.0]
    if not never:
        return []
    return [
        Finding(
            id="weights/without_gradient",
            level="warn",
            claim=f"{counted(len(never), 'matrix')} of {len(shares)} in the optimizer never got a gradient "
            f"({listed(never)}, in the optimizer's order).",
            value=exact(len(never), "second moments that are zero throughout"),
            threshold="none",
            meaning="Their second moment is exactly zero after all these steps: the loss does not depend on them, or "
            "nothing flows back to them.",
            advice=("Check that the layers are used in the forward pass, and not cut off by detach or no_grad.",),
            evidence=(),
            method="second moments that are zero throughout",
            citation=CITATION,
        )
    ]


def below_epsilon(run: Run) -> list[Finding]:
    """A warning where most coordinates that get a gradient have a second moment below ε."""
    if run.header.get("task"):
        return []
    untouched = latest(run, "adam_untouched")
    shares = {}
    for name, share in latest(run, "adam_epsilon_share").items():
        reached = 1.0 - untouched.get(name, 0.0)
        if reached > 0:
            shares[name] = max(0.0, share - untouched.get(name, 0.0)) / reached
    affected = [name for name, share in shares.items() if share > EPSILON_SHARE]
    if not affected:
        return []
    worst = max(affected, key=lambda name: shares[name])
    return [
        Finding(
            id="weights/epsilon",
            level="warn",
            claim=f"In {len(affected)} of {len(shares)} matrices most second moments are below ε ({shares[worst]:.0%} "
            f"in {worst}).",
            value=exact(shares[worst], method_of(run.last("weights", "adam_epsilon_share", worst))),
            threshold=f"more than {EPSILON_SHARE:.0%} of the coordinates that get a gradient with √v̂ < ε",
            meaning="There the optimizer no longer adapts: it acts as plain descent with rate η/ε. Gradients this "
            "small often come before trouble at scale.",
            advice=("Lower ε (1e-8 to 1e-15).", "Check that these tensors get the gradient you expect."),
            evidence=(),
            method="√v̂ with bias correction, from the saved state",
            citation=CITATION,
        )
    ]
