"""Tensors that are the same in every checkpoint: a layer that is not training.

Only matrices are warned of. A vector may stand still by design, as a bias in front of batch normalisation does.
"""

from __future__ import annotations

from diagnostics.estimate import exact
from probes.run import Run
from reports.finding import Finding
from reports.learning_rate.tensor_curves import named
from reports.words import counted

ID = "trajectory/unchanged"
METHOD = "tensors compared bit by bit between each checkpoint and the next"


def unchanged(run: Run) -> list[Finding]:
    """Which tensors never changed."""
    changed = {name: run.last("trajectory", "changed_in", name) for name in run.layers("trajectory", "changed_in")}
    counts = {name: record.value for name, record in changed.items() if record is not None}
    if not counts:
        return []
    shapes = (run.header.get("model") or {}).get("shapes", {})
    still = [name for name, count in counts.items() if not count]
    matrices = [name for name in still if len(shapes.get(name, (1, 1))) > 1]
    checkpoints = len(run.series("trajectory", "displacement"))
    if len(still) == len(counts):
        return [
            _finding(
                still,
                f"All {checkpoints} checkpoints hold the same weights, bit for bit.",
                "Nothing was trained between them, or one file was copied.",
                (
                    "Check that optimizer.step() is reached, and that the model that is saved is the one in training.",
                    "Check that the checkpoints are of different moments of the run.",
                ),
            )
        ]
    if matrices:
        return [
            _finding(
                matrices,
                f"{counted(len(matrices), 'matrix')} of {len(counts)} tensors "
                f"{'is' if len(matrices) == 1 else 'are'} the same, bit for bit, in all {checkpoints} checkpoints: "
                f"{named(matrices)}.",
                "What never changes is not trained: it is frozen, the optimizer does not hold it, or no gradient "
                "reaches it. A buffer may look like this too, where only the checkpoint is known.",
                (
                    "If it should train: check requires_grad, and that the optimizer was made after the layer.",
                    "Check that the layer is used in forward, and not cut off by detach() or no_grad().",
                    "If it is frozen on purpose, all is well; requires_grad=False in build(checkpoint) leaves it out.",
                ),
            )
        ]
    note = f" {counted(len(still), 'vector')} stood still." if still else ""
    return [
        Finding(
            id=ID,
            level="ok",
            claim=f"Every matrix changed between the {checkpoints} checkpoints.{note}",
            value=exact(0.0, METHOD),
            threshold="a matrix that is the same in all of them",
            meaning="All of the network is training."
            + (" A bias in front of a normalisation layer gets no gradient, by design." if still else ""),
            advice=(),
            evidence=("trajectory-layers",),
            method=METHOD,
            citation="",
        )
    ]


def _finding(names: list[str], claim: str, meaning: str, advice: tuple[str, ...]) -> Finding:
    return Finding(
        id=ID,
        level="warn",
        claim=claim,
        value=exact(float(len(names)), METHOD),
        threshold="a matrix that is the same in all of them",
        meaning=meaning,
        advice=advice,
        evidence=("trajectory-layers",),
        method=METHOD,
        citation="",
    )
