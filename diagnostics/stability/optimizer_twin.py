"""A copy of an optimizer that can take a step without anything of the run being moved.

The copy is over copies of the parameters, with copies of the states, settings and attributes. Hooks and what
schedulers put on the instance are left behind. ``copy.deepcopy`` hands functions on as they are, and one that was made
inside the optimizer may hold its parameters or the optimizer itself: such functions are made anew, over the copies.
Optimizers that the optimizer holds are copied in the same way.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn
from torch.optim import Optimizer

Places = dict[int, nn.Parameter]

_COMPILED = "_torchdynamo_orig_callable"
"""Where ``torch.compile`` keeps the function that it was given."""


@contextmanager
def twin_of(optimizer: Optimizer) -> Iterator[tuple[Optimizer, Places]]:
    """An optimizer of the same kind over copies of the parameters, and those copies by ``id`` of the original.

    The copies are let go on the way out, also where they hold each other.

    Example:
        >>> import torch
        >>> weight = nn.Parameter(torch.ones(1))
        >>> with twin_of(torch.optim.SGD([weight], lr=0.5)) as (twin, places):
        ...     places[id(weight)].grad = torch.ones(1)
        ...     _ = twin.step()
        ...     places[id(weight)].item(), weight.item()
        (0.5, 1.0)
    """
    reached = _reached(optimizer)
    optimizers = reached_optimizers(optimizer)
    functions = [thing for thing in reached if isinstance(thing, FunctionType)]
    places: Places = {
        id(parameter): nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
        for parameter in held_by(optimizers)
    }
    memo: dict[int, Any] = dict(places)
    twins = [object.__new__(type(original)) for original in optimizers]
    memo.update((id(original), twin) for original, twin in zip(optimizers, twins, strict=True))
    plain = [function for function in functions if not hasattr(function, _COMPILED)]
    memo.update((id(function), _shell(function)) for function in plain)
    try:
        for function in functions:
            if hasattr(function, _COMPILED):
                memo[id(function)] = copy.deepcopy(getattr(function, _COMPILED), memo)
        for original, twin in zip(optimizers, twins, strict=True):
            for name, value in vars(original).items():
                if not _left_behind(name):
                    vars(twin)[name] = copy.deepcopy(value, memo)
                elif name != "step":
                    vars(twin)[name] = OrderedDict()
        for function in plain:
            _fill(memo[id(function)], function, memo)
        yield twins[0], places
    finally:
        for twin in twins:
            vars(twin).clear()
        places.clear()
        memo.clear()


def reached_optimizers(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizer itself, and those that it holds."""
    return [optimizer, *(thing for thing in _reached(optimizer)[1:] if isinstance(thing, Optimizer))]


def held_by(optimizers: list[Optimizer]) -> list[nn.Parameter]:
    """Every parameter of these optimizers, once."""
    return list(
        {
            id(parameter): parameter
            for optimizer in optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }.values()
    )


def _left_behind(name: str) -> bool:
    """Hooks, and the ``step`` that schedulers put on the instance: it would move the original."""
    return name == "step" or name.endswith("_hooks")


def _reached(optimizer: Optimizer) -> list[Any]:
    """The optimizer, and whatever functions, optimizers and containers are found from it."""
    seen: dict[int, Any] = {id(optimizer): optimizer}
    ahead: deque[Any] = deque(_attributes(optimizer))
    while ahead:
        thing = ahead.popleft()
        if id(thing) not in seen:
            parts = _parts(thing)
            if parts is not None:
                seen[id(thing)] = thing
                ahead.extend(parts)
    return list(seen.values())


def _attributes(optimizer: Optimizer) -> list[Any]:
    return [value for name, value in vars(optimizer).items() if not _left_behind(name)]


def _parts(thing: Any) -> list[Any] | None:
    """What is looked through in a thing; None where it is not one of those that are."""
    if isinstance(thing, Optimizer):
        return _attributes(thing)
    if isinstance(thing, FunctionType):
        if hasattr(thing, _COMPILED):
            return [getattr(thing, _COMPILED)]
        cells = [cell.cell_contents for cell in thing.__closure__ or ()]
        return [*cells, thing.__defaults__, thing.__kwdefaults__]
    if isinstance(thing, MethodType):
        return [thing.__self__]
    if isinstance(thing, partial):
        return [thing.func, thing.args, thing.keywords]
    if isinstance(thing, dict):
        return list(thing.values())
    return list(thing) if isinstance(thing, list | tuple | set | deque) else None


def _shell(function: FunctionType) -> FunctionType:
    """The same code with cells that are still empty."""
    cells = tuple(CellType() for _ in function.__closure__ or ())
    return FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)


def _fill(shell: FunctionType, function: FunctionType, memo: dict[int, Any]) -> None:
    """Give a shell copies of what the function holds."""
    for cell, original in zip(shell.__closure__ or (), function.__closure__ or (), strict=True):
        cell.cell_contents = copy.deepcopy(original.cell_contents, memo)
    shell.__defaults__ = copy.deepcopy(function.__defaults__, memo)
    shell.__kwdefaults__ = copy.deepcopy(function.__kwdefaults__, memo)
    vars(shell).update(vars(function))
