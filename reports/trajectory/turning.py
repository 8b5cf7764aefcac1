"""Whether the last step went on, or undid those before it.

Two things together are warned of: the last step points back, and it brings the weights most of the way to where they
began. Steps that turn at random are nearly orthogonal to all before, in so many dimensions.
"""

from __future__ import annotations

from diagnostics.estimate import Estimate, exact
from probes.run import Run
from reports.chapter import method_of
from reports.finding import Finding
from reports.words import counted

ID = "trajectory/turned_back"
BACK = -0.5
"""The cosine of the last step with all before it; below, it points back."""
LEFT = 0.5
"""Of the displacement before the last step; what is left of it after."""


def turned_back(run: Run) -> list[Finding]:
    """Whether the last step undid the others."""
    displacement, lengths = run.series("trajectory", "displacement"), run.series("trajectory", "step_length")
    back = run.last("trajectory", "back")
    if back is None or back.value is None or len(displacement) < 3:
        return []
    before, after = float(displacement.values[-2]), float(displacement.values[-1])
    undone = back.value < BACK and after < LEFT * before
    share = f"{after / before:.0%}" if before else "all"
    advice: tuple[str, ...] = ()
    method = method_of(back)
    if undone:
        claim = (
            f"The last step of the path, from {displacement.steps[-2]} to {displacement.steps[-1]}, undid the others: "
            f"it points back (cosine {back.value:.2f}) and leaves {share} of the distance from the first checkpoint."
        )
        meaning = (
            "What was learnt since the first checkpoint is mostly gone from the weights. A reset does this, weights "
            "that were loaded from an earlier checkpoint, or files in the wrong order."
        )
        advice = (
            "Take the checkpoint before the last.",
            "Check that the checkpoints are of one run, and their order (see the note on it).",
            "If the run was resumed, check which checkpoint it went on from.",
        )
    else:
        travelled = float(lengths.values.sum())
        claim = (
            f"The path goes on: {counted(len(displacement), 'checkpoint')}, a distance of {after:.4g} from the first "
            f"to the last over a path of {travelled:.4g}; the last step has cosine {back.value:.2f} with all before it."
        )
        meaning = (
            "1 would be straight on, 0 a right angle, −1 straight back. Of the path's length the share that became "
            "distance says how straight it was."
        )
    how: Estimate = exact(back.value, method)
    return [
        Finding(
            id=ID,
            level="warn" if undone else "ok",
            claim=claim,
            value=how,
            threshold=f"a cosine below {BACK:g} and less than {LEFT:.0%} of the distance left",
            meaning=meaning,
            advice=advice,
            evidence=("trajectory-path", "trajectory-steps"),
            method=method,
            citation="Li et al., arXiv 1712.09913",
        )
    ]
