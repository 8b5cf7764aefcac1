"""Every operation that uses a parameter, in one forward pass: what went in, and where its gradient will come out.

A ``TorchFunctionMode`` sees modules and functional calls alike. Functions of torch that are written in Python and call
others (multi-head attention) are opened, so that the operations inside are seen. What is computed from parameters
alone, such as ``weight.t()`` or an embedding of positions, counts as a parameter in its turn: it is *derived*.

The gradient at an output is asked for at the edge of the graph that the output had when it was made: an operation that
writes into the output later does not change it.
"""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, resolve_name

WHOLE: set[object] = {F.embedding, F.layer_norm, F.rms_norm, F.group_norm, F.instance_norm, F.batch_norm}
"""Functions written in Python that are known as they are, and not opened."""


@dataclass(frozen=True)
class Use:
    """One operation that uses a parameter.

    Attributes:
        key: the same in every forward pass of the same model.
        function: as torch names it.
        args: as given to it.
        kwargs: as given to it.
        operands: names and values of the parameters among its arguments.
        roots: the parameters that those come from.
        edge: where the gradient of its output is.
        output: the shape of its output.
    """

    key: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    operands: tuple[tuple[str, Tensor], ...]
    roots: frozenset[str]
    edge: GradientEdge
    output: tuple[int, ...]

    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments, in order."""
        return list(_tensors((*self.args, *self.kwargs.values())))


class Recording(TorchFunctionMode):
    """Records while it is entered.

    Args:
        leaves: the tensors in the place of the parameters, by name.
        derived: keys of operations whose outputs count as parameters.

    Attributes:
        uses: what was recorded, derived operations left out.
        places: of the uses of each parameter among all.
        shapes: of the outputs of all that was recorded, by key.
        values: parameters and what was derived from them, by name.
        roots: the parameters that each of those comes from.
    """

    def __init__(self, leaves: Mapping[str, Tensor], derived: Iterable[str] = ()) -> None:
        super().__init__()
        self.derived = frozenset(derived)
        self.uses: list[Use] = []
        self.places: dict[str, list[int]] = {name: [] for name in leaves}
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}
        self.values: dict[str, Tensor] = dict(leaves)
        self.roots: dict[str, frozenset[str]] = {name: frozenset([name]) for name in leaves}
        # Values are held, so no other tensor can come to have the same id.
        self._names = {id(tensor): name for name, tensor in leaves.items()}
        self._counts: Counter[str] = Counter()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        settings = dict(kwargs or {})
        operands = self._operands(args, settings)
        if not operands:
            return func(*args, **settings)
        inside = _opened(func)
        if inside is not None:
            with self:
                return inside(*args, **settings)
        result = func(*args, **settings)
        outputs = [leaf for leaf in _tensors((result,)) if leaf.requires_grad]
        if outputs and not any(id(output) in self._names for output in outputs):
            self._note(func, args, settings, operands, outputs)
        return result

    def _operands(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[str, Tensor], ...]:
        # Every function of torch that the model calls comes by here, most without a parameter.
        names, found = self._names, {}
        for thing in (*args, *kwargs.values()):
            if id(thing) in names:
                found[names[id(thing)]] = thing
            elif isinstance(thing, list | tuple):
                found.update((names[id(leaf)], leaf) for leaf in _tensors(thing) if id(leaf) in names)
        return tuple(found.items())

    def _note(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        operands: tuple[tuple[str, Tensor], ...],
        outputs: list[Tensor],
    ) -> None:
        what = f"{'+'.join(name for name, _ in operands)}>{resolve_name(func) or getattr(func, '__name__', '?')}"
        self._counts[what] += 1
        key = f"{what}#{self._counts[what]}"
        self.shapes[key] = tuple(tuple(output.shape) for output in outputs)
        roots = frozenset[str]().union(*(self.roots[operand] for operand, _ in operands))
        if key in self.derived:
            for place, output in enumerate(outputs):
                name = f"{key}[{place}]"
                self.values[name], self._names[id(output)] = output, name
                self.roots[name] = roots
            return
        for output in outputs:
            for name in roots:
                self.places[name].append(len(self.uses))
            edge, shape = get_gradient_edge(output), tuple(output.shape)
            self.uses.append(Use(key, func, args, kwargs, operands, roots, edge, shape))


def _tensors(things: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors, also those in lists: looking through any structure at all would take as long as small models do."""
    for thing in things:
        if isinstance(thing, Tensor):
            yield thing
        elif isinstance(thing, list | tuple):
            yield from _tensors(thing)


def _opened(func: Callable[..., Any]) -> Callable[..., Any] | None:
    """A function written in Python without its own call of the mode, which would see nothing of what is inside."""
    if not isinstance(func, types.FunctionType) or func.__module__ != F.__name__ or func in WHOLE:
        return None
    silent = {name: _never for name in func.__globals__ if name.startswith("has_torch_function")}
    opened = types.FunctionType(
        func.__code__, {**func.__globals__, **silent}, func.__name__, func.__defaults__, func.__closure__
    )
    opened.__kwdefaults__ = func.__kwdefaults__
    return opened


def _never(*_: Any) -> bool:
    return False
