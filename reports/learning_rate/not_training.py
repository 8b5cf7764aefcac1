"""Tensors that require gradients and do not train: left out of the optimizer, or never moved."""

from __future__ import annotations

from diagnostics.estimate import exact
from probes.run import Run
from reports.finding import Finding
from reports.learning_rate.tensor_curves import named
from reports.words import counted


def not_training(run: Run) -> list[Finding]:
    """Tensors that the optimizer does not hold, and those that it holds and that stood still."""
    left_out = set((run.header.get("model") or {}).get("not_in_optimizer", ()))
    names = run.layers("learning_rate", "relative_update")
    series = {name: run.series("learning_rate", "relative_update", name) for name in names}
    still = [name for name, one in series.items() if len(one) > 1 and not one.values.any() and name not in left_out]
    findings = []
    if left_out:
        findings.append(
            _finding(
                "not_in_optimizer",
                sorted(left_out),
                "require gradients, but the optimizer does not hold them",
                "Gradients are computed for them and never used: they stay as they were initialised.",
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
