"""Whether the best learning rate of one width is that of another: the shift in octaves, within the spacing of the grid.

Under the maximal-update parametrisation it is, under the standard one it falls with width (arXiv 2203.03466). Sweeps
are of one kind where the tensors have the same names and numbers of axes: then only their lengths differ.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from diagnostics.estimate import Estimate
from reports.chapter import unmeasured
from reports.comparison.sweep import Sweep
from reports.finding import Finding
from reports.words import counted

CITATION = "Yang et al., arXiv 2203.03466"


def transfer(sweeps: Sequence[Sweep]) -> list[Finding]:
    """For each kind with two widths or more, from the smallest to the largest."""
    kinds: dict[str, list[Sweep]] = defaultdict(list)
    for one in sweeps:
        if one.size:
            kinds[one.kind].append(one)
    return [
        _finding(f"comparison/transfer/{number}", found)
        for number, found in enumerate(kinds.values(), start=1)
        if len({one.size for one in found}) > 1
    ]


def _finding(id: str, sweeps: Sequence[Sweep]) -> Finding:
    ends = [counted(one.size, "parameter") for one in sweeps if None in one.gaps]
    if ends:
        reason = f"the best rate of {' and of '.join(ends)} lies at the end of the grid"
        return unmeasured(id, "Whether the best learning rate transfers", reason, ("Extend the grid.",), CITATION)
    small, large = sweeps[0], sweeps[-1]
    rates = [one.points[one.best or 0].rate for one in (small, large)]
    shift = math.log2(rates[1] / rates[0])
    spacing = max(gap for one in (small, large) for gap in one.gaps if gap is not None)
    stays = abs(shift) <= spacing
    said = (
        f"{rates[0]:.4g} for {counted(small.size, 'parameter')}, {rates[1]:.4g} for {counted(large.size, 'parameter')}"
    )
    return Finding(
        id=id,
        level="ok",
        claim=f"The best learning rate {'transfers across width' if stays else 'moves with width'}, by {shift:+.2g} ± "
        f"{spacing:.2g} octaves: {said}.".replace("-", "−"),
        value=Estimate(shift, spacing, "bound", "spacing of the grid beside the best rates, in octaves"),
        threshold="the spacing of the grid",
        meaning="Within the grid a rate tuned on the smaller model serves the larger one."
        if stays
        else "A rate tuned on the smaller model is not that of the larger one.",
        advice=()
        if stays
        else (
            "Scale initialisation and rates by width (maximal-update parametrisation), or tune at the larger width.",
        ),
        evidence=("sweep",),
        method=f"lowest late loss; {small.steps} and {large.steps}",
        citation=CITATION,
    )
