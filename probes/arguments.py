"""What a Monitor can be given: everything that can be told to be wrong before training starts is told then."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from diagnostics import DiagnosticsError, Objective
from probes.probe import Probe

RESERVED = ("loop", "monitor")
"""Names under which the Monitor writes what is not a probe's: the loop's own scalars, and its own costs."""


def check_single(optimizer: Any) -> None:
    """Refuse several optimizers: steps are counted on one.

    Raises:
        DiagnosticsError: a collection was passed.
    """
    if isinstance(optimizer, list | tuple | set | dict):
        raise DiagnosticsError(
            "optimizer is several",
            given=f"a {type(optimizer).__name__} of {len(optimizer)}",
            expected="one optimizer, the one whose steps count",
            attempt="Monitor(model, optimizers[0], ...); tensors that another one trains are measured too",
        )


def check_run(model: Any, optimizer: Any, objective: Any, budget: Any, resume: Any) -> None:
    """Refuse what does not belong together or is out of range.

    Raises:
        DiagnosticsError: always with the argument's name.
    """
    if not isinstance(model, nn.Module):
        raise DiagnosticsError("model is not a module", given=type(model).__name__, expected="torch.nn.Module")
    if not isinstance(optimizer, Optimizer):
        raise DiagnosticsError(
            "optimizer is not a torch optimizer", given=type(optimizer).__name__, expected="torch.optim.Optimizer"
        )
    if objective is not None and not isinstance(objective, Objective):
        raise DiagnosticsError(
            "objective is not an Objective",
            given=type(objective).__name__,
            expected="Objective(model, loss, batches), or None",
        )
    if objective is not None and objective.model is not model:
        raise DiagnosticsError(
            "objective was built on another model",
            given=f"a {type(objective.model).__name__} that is not the model passed to Monitor",
            expected="Objective(model, ...) with the same model object",
        )
    if budget is not None and not (_is_number(budget) and budget > 0):
        raise DiagnosticsError("budget is not positive", given=repr(budget), expected="a share such as 0.05, or None")
    if resume is not None and (isinstance(resume, bool) or not isinstance(resume, int) or resume < 0):
        raise DiagnosticsError(
            "resume is not a step", given=repr(resume), expected="the step that training restarts from, or None"
        )


def check_probes(probes: Any) -> list[Probe]:
    """The probes as a list, each under a name of its own: series are told apart by it.

    Raises:
        DiagnosticsError: something else than probes, or two of one name.
    """
    if isinstance(probes, str) or not isinstance(probes, Sequence):
        raise DiagnosticsError(
            "probes is not a list", given=type(probes).__name__, expected="a list such as [Sharpness(every=50)]"
        )
    for probe in probes:
        name = getattr(probe, "name", None)
        if isinstance(probe, type) or not isinstance(name, str) or not callable(getattr(probe, "measure", None)):
            raise DiagnosticsError(
                "probes holds something that is not a probe",
                given=repr(probe),
                expected="instances such as Sharpness(), or objects with the attributes of probes.probe.Probe",
            )
        if not name or "/" in name or name in RESERVED:
            raise DiagnosticsError(
                "probes: a name cannot be used",
                given=repr(name),
                expected="a name without '/', other than " + " and ".join(RESERVED),
            )
    names = [probe.name for probe in probes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DiagnosticsError(
            "probes: two have one name, so their records could not be told apart",
            given=", ".join(twice),
            expected="one probe of each name",
            attempt="one probe with a schedule for both, every=lambda step: ...",
        )
    return list(probes)


def check_sinks(sinks: Any) -> list[Callable[..., Any]]:
    """The sinks as a list.

    Raises:
        DiagnosticsError: not a list of callables.
    """
    chosen = list(sinks) if isinstance(sinks, Iterable) and not isinstance(sinks, str) else None
    if chosen is None or not all(callable(sink) for sink in chosen):
        raise DiagnosticsError(
            "sinks is not a list of callables",
            given=repr(sinks),
            expected="callables log(scalars, step)",
            attempt="sinks=[wandb.log]",
        )
    return chosen


def _is_number(thing: Any) -> bool:
    return isinstance(thing, int | float) and not isinstance(thing, bool)
