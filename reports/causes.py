"""Which findings are consequences of another, so that a reader mends the cause and not its shadows."""

from __future__ import annotations

from dataclasses import replace

from reports.finding import Finding, worst_first

_CURVATURE = (
    "batch_sharpness/",
    "gradient_curvature/",
    "spectrum/",
    "sharpening/",
    "ascent/",
    "batch_ladder/",
    "gradient_flow/",
    "noise_scale/",
    "gradient_alignment/",
    "opposing/",
    "noise_stream/",
)

_ALIVE = ("units/", "attention/", "ranks/", "plasticity/", "tangent_kernel/")

CONSEQUENCES: dict[str, tuple[str, ...]] = {
    "weights/finite": ("sharpness/", *_CURVATURE, "learning_rate/", *_ALIVE, "training/"),
    "units/dead_at_start": ("sharpness/", *_CURVATURE, "learning_rate/", *_ALIVE, "training/"),
    "sharpness/regime": (*_CURVATURE, "learning_rate/", *_ALIVE, "training/"),
    "noise_scale/batch": ("noise_scale/", "units/dead", "training/loss", "ranks/"),
    "units/dead": (
        *("learning_rate/", "ranks/", "plasticity/", "tangent_kernel/", "training/loss"),
        *("units/gradient_dormant", "units/outliers"),
    ),
    "plasticity/lost": ("training/loss",),
}
"""A failed finding, and the beginnings of ids that follow from it. Earlier entries explain later ones."""


def causes_first(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Findings worst first; what follows from a failure stands behind it and points to it instead of giving advice."""
    explained: dict[str, Finding] = {}
    for cause, beginnings in CONSEQUENCES.items():
        root = next((finding for finding in findings if finding.id == cause and finding.level == "fail"), None)
        if root is None or root.id in explained:
            continue
        for finding in findings:
            if finding.id.startswith(beginnings) and finding is not root and finding.level in ("fail", "warn"):
                explained.setdefault(finding.id, root)
    ordered = worst_first(findings)
    behind = [_pointing_to(finding, explained[finding.id]) for finding in ordered if finding.id in explained]
    return worst_first((*(finding for finding in ordered if finding.id not in explained), *behind))


def _pointing_to(finding: Finding, root: Finding) -> Finding:
    what = root.claim.partition(":")[0].rstrip(".")
    return replace(finding, advice=(f"Mend this first, it is the likely cause: {what[0].lower()}{what[1:]}.",))
