"""Tensors that require gradients and do not train: left out of the optimizer, or never moved.

One that the optimizer does not hold and that moves all the same is trained by something else, as where a second
optimizer takes the biases.
"""

from __future__ import annotations

from diagnostics.estimate import exact
from probes.run import Run
from reports.finding import Finding
from reports.learning_rate.tensor_curves import named
from reports.words import counted


def not_training(run: Run) -> list[Finding]:
    """Tensors that the optimizer does not hold, moving or not, and those that it holds and that stood still."""
    left_out = set((run.header.get("model") or {}).get("not_in_optimizer", ()))
    names = run.layers("learning_rate", "relative_update")
    series = {name: run.series("learning_rate", "relative_update", name) for name in names}
    still = [name for name, one in series.items() if len(one) > 1 and not one.values.any() and name not in left_out]
    # The step of a second optimizer mostly lies outside the one that is watched: the Monitor compares start and end.
    within = {name: one.values for name, one in series.items()}
    between = {name: run.series("monitor", "moved", name).values for name in run.layers("monitor", "moved")}
    moved = {
        name for name in left_out if any(bool((found[name] > 0).any()) for found in (within, between) if name in found)
    }
    findings = []
    if moved:
        findings.append(_elsewhere(sorted(moved)))
    if left_out - moved:
        findings.append(
            _finding(
                "not_in_optimizer",
                sorted(left_out - moved),
                "require gradients, but the optimizer does not hold them",
                "Gradients are computed for them and never used: they stay as they were initialised."
                if (left_out - moved) <= between.keys()
                else "Unless another optimizer trains them, which is not known, they stay as they were initialised.",
                (
                    "Pass them to the optimizer: SGD(model.parameters(), ...) after the last layer was added.",
                    "If they are meant to be frozen, set requires_grad=False: it saves time and memory.",
                ),
                "parameters of the model against those of the optimizer",
            )
        )
    if still:
        checks = max(len(series[name]) for name in still)
        findings.append(
            _finding(
                "not_moving",
                still,
                f"did not move in any of {checks} measured steps, though the optimizer holds them",
                "No gradient reaches them, or their group's learning rate is zero.",
                (
                    "Check that the layer is used in forward, and not cut off by detach() or no_grad().",
                    "Check the learning rate of their parameter group.",
                    "If they are meant to be frozen, set requires_grad=False: it saves memory too.",
                ),
                "tensors before and after the step, compared bit by bit",
            )
        )
    return findings


def _elsewhere(names: list[str]) -> Finding:
    method = "tensors at the start of the run and at its end, and before and after the steps that were measured"
    return Finding(
        id="learning_rate/other_optimizer",
        level="ok",
        claim=f"{counted(len(names), 'trainable tensor')} moved though the monitored optimizer does not hold them: "
        f"{named(names, most=4)}.",
        value=exact(len(names), method),
        threshold="",
        meaning="Something else trains them, as a second optimizer does. The stability ratio is that of the monitored "
        "optimizer; what it says of their updates is only what happens within its own step.",
        advice=(),
        evidence=(),
        method=method,
        citation="",
    )


def _finding(id: str, names: list[str], claim: str, meaning: str, advice: tuple[str, ...], method: str) -> Finding:
    return Finding(
        id=f"learning_rate/{id}",
        level="warn",
        claim=f"{counted(len(names), 'trainable tensor')} {claim}: {named(names, most=4)}.",
        value=exact(len(names), method),
        threshold="every trainable tensor moves",
        meaning=meaning,
        advice=advice,
        evidence=(),
        method=method,
        citation="",
    )
