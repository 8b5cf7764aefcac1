"""Optimizers around optimizers: what they do to the edge of the one inside.

Accelerate's and its kind pass every step on. SAM takes its gradient a little uphill, at θ + ρ g/‖g‖, so curvature λ
acts as λ (1 + ρλ/‖g‖). Lookahead pulls the weights back towards where they were k steps ago: around plain descent an
odd k moves the edge out, and around momentum, whose buffer is not pulled back, the edge can move in.

Source: Foret et al., arXiv 2010.01412; Long and Bartlett, arXiv 2309.12488; Zhang et al., arXiv 1907.08610.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy
from torch.optim import Optimizer

from diagnostics.arguments import real_number, whole_number
from diagnostics.errors import DiagnosticsError
from diagnostics.stability.rules.step_rule import Group, Momentum, StepRule

Wrapper = Callable[[StepRule, Group], StepRule]

_INNER = ("optimizer", "base_optimizer", "_base_optimizer")
_SHARPNESS_AWARE = ("SAM", "ASAM")
_STEPS = ("lookahead_k", "la_steps", "_total_la_steps", "k")
_SHARE = ("lookahead_alpha", "la_alpha", "alpha")


def unwrap_optimizer(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer that takes the steps, out of accelerate's wrapper, SAM or Lookahead."""
    return wrapped_by(optimizer)[0]


def wrapped_by(optimizer: Any) -> tuple[Optimizer, list[Wrapper]]:
    """The optimizer inside, and what the wrappers around it do to its rule, from the inside out."""
    wrappers: list[Wrapper] = []
    around, optimizer = _peeled(optimizer)
    for wrapper in around:
        name = type(wrapper).__name__
        if name in _SHARPNESS_AWARE:
            wrappers.append(partial(_sharpness_aware, wrapper))
        elif name == "Lookahead":
            wrappers.append(partial(_lookahead, wrapper))
        elif _of_unknown_effect(wrapper):
            wrappers.append(partial(_unknown, name))
    # Some, as schedule-free's wrapper, have all that an optimizer has and are of another class.
    if not (callable(getattr(optimizer, "step", None)) and hasattr(optimizer, "param_groups")):
        raise DiagnosticsError(
            "optimizer is not a torch optimizer", given=type(optimizer).__name__, expected="torch.optim.Optimizer"
        )
    return optimizer, wrappers[::-1]


def wrappers_around(optimizer: Any) -> list[tuple[str, dict[str, Any]]]:
    """Class and settings of each wrapper that changes steps, from the outside in; one that only passes them on has no
    say, and a setting that cannot be found is left out.

    Example:
        >>> import torch
        >>> wrappers_around(torch.optim.SGD([torch.zeros(1)], lr=0.1))
        []
    """
    found = []
    for wrapper in _peeled(optimizer)[0]:
        name = type(wrapper).__name__
        known: dict[str, tuple[str, ...]] = {"rho": ("rho",)} if name in _SHARPNESS_AWARE else {}
        if name == "Lookahead":
            known = {"k": _STEPS, "alpha": _SHARE}
        if known or _of_unknown_effect(wrapper):
            group: Group = next(iter(getattr(wrapper, "param_groups", ())), {})
            settings = {}
            for setting, places in known.items():
                with suppress(DiagnosticsError):
                    settings[setting] = _setting(wrapper, group, *places)
            found.append((name, settings))
    return found


def _peeled(optimizer: Any) -> tuple[list[Any], Any]:
    """The wrappers from the outside in, and what is inside them."""
    around: list[Any] = []
    while all(optimizer is not one for one in around) and (inner := _inside(optimizer)) is not None:
        around.append(optimizer)
        optimizer = inner
    return around, optimizer


def _of_unknown_effect(wrapper: Any) -> bool:
    return hasattr(wrapper, "base_optimizer") or "SAM" in type(wrapper).__name__


def _inside(optimizer: Any) -> Optimizer | None:
    """The optimizer that a wrapper is around; None for one that takes steps of its own and has another beside it."""
    for attribute in _INNER:
        inner = getattr(optimizer, attribute, None)
        if isinstance(inner, Optimizer) and not _steps_as_torch(optimizer) and _same_parameters(optimizer, inner):
            return inner
    return None


def _steps_as_torch(optimizer: Any) -> bool:
    step = inspect.unwrap(getattr(type(optimizer), "step", Optimizer.step))
    return (step.__module__ or "").startswith("torch.optim.") and step is not inspect.unwrap(Optimizer.step)


def _same_parameters(wrapper: Any, inner: Optimizer) -> bool:
    groups = getattr(wrapper, "param_groups", None)
    if groups is None:
        return True
    theirs, its = (
        {id(tensor) for group in some for tensor in group["params"]} for some in (groups, inner.param_groups)
    )
    return theirs == its


def _setting(wrapper: Any, group: Group, *names: str) -> Any:
    """What a wrapper was told, which some keep on themselves and some in the groups."""
    for name in names:
        if name in group:
            return group[name]
        if hasattr(wrapper, name):
            return getattr(wrapper, name)
    raise DiagnosticsError(
        f"{type(wrapper).__name__} cannot be read",
        given="none of " + ", ".join(names) + " among its attributes or in its parameter groups",
        expected="a wrapper that keeps its settings",
        attempt="stability(objective, optimizer.base_optimizer) for the optimizer inside",
    )


def _sharpness_aware(wrapper: Any, rule: StepRule, group: Group) -> StepRule:
    adaptive = type(wrapper).__name__ == "ASAM" or bool(group.get("adaptive", getattr(wrapper, "adaptive", False)))
    rho = _setting(wrapper, group, "rho")
    return replace(
        rule,
        text=f"{'asam' if adaptive else 'sam'}, λ(1+ρλ/‖g‖) in {rule.text}",
        ascent=real_number("rho of SAM is not a radius", rho, "zero or more", lambda value: 0 <= value < math.inf),
        ascent_by_size=adaptive,
    )


def _lookahead(wrapper: Any, rule: StepRule, group: Group) -> StepRule:
    taken = _setting(wrapper, group, *_STEPS)
    steps = whole_number("k of Lookahead is not a number of steps", taken, "at least 1", 1)
    kept = _setting(wrapper, group, *_SHARE)
    share = real_number("α of Lookahead is out of range", kept, "above 0 and at most 1", lambda value: 0 < value <= 1)
    stretch = lookahead_stretch(rule.momentum, rule.lr * rule.decoupled_decay, steps, share)
    moved = "" if abs(stretch - 1) < 1e-6 else f" × {stretch:.4g}"
    return replace(rule, text=f"lookahead (k={steps}, α={share:g}) around {rule.text}{moved}", stretch=stretch)


def _unknown(name: str, rule: StepRule, group: Group) -> StepRule:
    del rule, group
    raise DiagnosticsError(
        "this wrapper changes steps in a way that is not known here",
        given=name,
        expected="SAM, ASAM, Lookahead, or a wrapper that passes every step on",
        attempt="stability(objective, optimizer.base_optimizer) for the optimizer inside",
    )


def lookahead_stretch(momentum: Momentum, decay: float, steps: int, share: float) -> float:
    """The edge of Lookahead over that of the optimizer inside, infinite where it never grows.

    A cycle is ``steps`` inner steps on (weight, buffer), and then weights that keep ``1 − share`` of where they began.
    The edge is the smallest curvature at which the spectral radius of a cycle passes 1.

    Args:
        momentum: of the inner optimizer, whose buffer goes on over the cycles.
        decay: ηλ_d.
        steps: k.
        share: α.

    Example:
        >>> [round(lookahead_stretch(Momentum(), 0.0, steps, 0.5), 4) for steps in (1, 5, 6)]
        [2.0, 1.1229, 1.0]
    """
    alone = (2 - decay) / momentum.at_minus_one
    if share == 1.0:
        return 1.0

    def grows(curvatures: numpy.ndarray) -> numpy.ndarray:
        return _cycle_radius(curvatures, momentum, decay, steps, share) > 1 + 1e-9

    grid = alone * numpy.geomspace(1e-2, 1e2, 4001)
    unstable = grows(grid)
    if not unstable.any():
        return float("inf")
    first = int(numpy.argmax(unstable))
    low, high = grid[max(0, first - 1)], grid[first]
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if grows(numpy.array([middle]))[0] else (middle, high)
    return float(high / alone)


def _cycle_radius(
    curvatures: numpy.ndarray, momentum: Momentum, decay: float, steps: int, share: float
) -> numpy.ndarray:
    """(n,) spectral radii of one cycle, for curvatures (n,) times η."""
    one_step = numpy.empty((len(curvatures), 2, 2))
    pull = momentum.gain * curvatures
    one_step[:, 1, 0], one_step[:, 1, 1] = pull, momentum.beta
    one_step[:, 0, 0] = 1 - decay - momentum.direct * curvatures - momentum.buffer * pull
    one_step[:, 0, 1] = -momentum.buffer * momentum.beta
    with numpy.errstate(all="ignore"):
        cycle = numpy.linalg.matrix_power(one_step, steps)
    cycle[:, 0] *= share
    cycle[:, 0, 0] += 1 - share
    finite = numpy.isfinite(cycle).all(axis=(1, 2))
    radius = numpy.full(len(curvatures), numpy.inf)
    radius[finite] = numpy.abs(numpy.linalg.eigvals(cycle[finite])).max(axis=1)
    return radius
