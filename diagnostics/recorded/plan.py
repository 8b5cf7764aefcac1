"""How a model uses its parameters, and where the examples are in it: two examples alone, and the two together.

What has the same shape for one example and for two was computed from parameters alone. What is true of the gradients
is looked at as well: that of two examples is the mean of theirs, or their sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves

from diagnostics.forms import Batch
from diagnostics.objective import Objective
from diagnostics.recorded.contractions import is_built
from diagnostics.recorded.examples import AGREEMENT, adds_up, some, square
from diagnostics.recorded.layouts import Layout, layout_of
from diagnostics.recorded.operations import UnknownOperationError
from diagnostics.recorded.recording import Use
from diagnostics.recorded.watched import Places, Watched, dense, leaves_of, watch

Shapes = tuple[tuple[int, ...], ...]

DEPTH = 8
"""Operations in a row on parameters alone; deeper chains are left to the loop over examples."""


@dataclass(frozen=True)
class Plan:
    """What was learned from two examples.

    Attributes:
        summed: whether the loss adds its examples up.
        derived: operations on parameters alone, by key.
        sequence: the keys of all uses, in order.
        places: where the examples are in each use, by key.
        seen: parameters of which some use reaches the loss.
        built: parameters whose gradients are built for their norms: their sum is had with them.
        writes: whether the model writes into its parameters or its batch, and has to be given copies.
        squares: squared norms of the gradients of the two examples' own losses, by parameter.
        verdicts: of the comparison with these, by parameter: nothing where they agree, or why it is not trusted.
    """

    summed: bool
    derived: frozenset[str]
    sequence: tuple[str, ...]
    places: Mapping[str, Places]
    seen: frozenset[str]
    built: frozenset[str]
    writes: bool
    squares: tuple[Mapping[str, float], Mapping[str, float]]
    verdicts: dict[str, str] = field(default_factory=dict)


def make_plan(objective: Objective, index: int, probes: tuple[int, int]) -> Plan:
    """A plan for a batch. To be called inside ``quiet``.

    Raises:
        DiagnosticsError: the examples are coupled, or the loss is neither a mean nor a sum over them.
    """
    first, second = probes
    small = some(objective, index, [[first], [second], [first, second]])
    derived: frozenset[str] = frozenset()
    for _ in range(DEPTH):
        one, both = watch(small, 0, derived), watch(small, 2, derived)
        shapes = both.recording.shapes
        more = frozenset(key for key, shape in one.recording.shapes.items() if _same(shape, shapes.get(key))) - derived
        if not more:
            break
        derived |= more
    alone = [one, watch(small, 1, derived)]
    leaves = dict(objective.space.items())
    exact = [dense(leaves, each.leaf_gradients) for each in (*alone, both)]
    flat = [objective.space.flatten(each.values()) for each in exact]
    summed = adds_up(objective, flat[2], flat[:2], small.terms[:2], "two together are neither mean nor sum of the two")
    places = {} if one.sequence != both.sequence else _places(alone, both)
    built = frozenset(name for name, leaf in leaves.items() if _is_built(both, name, leaf.numel(), places))
    seen = frozenset(name for name in leaves if both.reaching(name))
    squares = [{name: square(part) for name, part in each.items()} for each in exact[:2]]
    return Plan(summed, derived, one.sequence, places, seen, built, _writes(small), (squares[0], squares[1]))


def _writes(small: Objective) -> bool:
    """Whether anything is another after a forward pass: parameters, or the batch."""
    values, batch = list(leaves_of(small).values()), small.fresh(2)
    small.placed(values, lambda: small.loss_in_place(batch))
    before = [*small.space.tensors, *tree_leaves(small.batches[2])]
    after = [*values, *tree_leaves(batch)]
    pairs = [(one, other) for one, other in zip(before, after, strict=True) if isinstance(one, Tensor)]
    # What cannot be compared is copied.
    return not all(one.layout is torch.strided and torch.equal(one, other) for one, other in pairs)


def likeness(batch: Batch) -> tuple[object, ...]:
    """What batches have in common that share a plan: everything but how many examples they hold."""
    leaves, structure = tree_flatten(batch)
    return (
        str(structure),
        *((leaf.shape[1:], leaf.dtype) if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves),
    )


def _same(one: Shapes, two: Shapes | None) -> bool:
    """Whether outputs do not grow with the examples. Those of experts to which no example is sent do not tell."""
    return one == two and all(all(shape) for shape in one)


def _is_built(both: Watched, name: str, size: int, places: Mapping[str, Places]) -> bool:
    try:
        found = both.contributions(name, places, 2)
    except UnknownOperationError:
        return False
    return bool(found) and is_built(found, size)


def _places(alone: Sequence[Watched], both: Watched) -> dict[str, Places]:
    places: dict[str, Places] = {}
    keys = both.sequence
    rows = zip(alone[0].recording.uses, both.recording.uses, strict=True)
    for place, (use, pair) in enumerate(rows):
        layout = layout_of(use.output, pair.output)
        if layout is None or keys.count(use.key) > 1:
            continue
        if layout.each > 1:
            chosen = _order(layout, [each.gradients[place] for each in alone], both.gradients[place])
            if chosen is None:
                continue
            layout = chosen
        inside = _inside(use, pair, layout)
        if inside is not None:
            places[use.key] = (layout, inside)
    return places


def _inside(use: Use, pair: Use, layout: Layout) -> tuple[Layout | None, ...] | None:
    one, two = use.tensors(), pair.tensors()
    if len(one) != len(two):
        return None
    found = [layout_of(a.shape, b.shape) for a, b in zip(one, two, strict=True)]
    return tuple(each if each is None else replace(each, inner=layout.inner and each.each > 1) for each in found)


def _order(layout: Layout, alone: Sequence[Tensor | None], both: Tensor | None) -> Layout | None:
    """Whether the entries of an example are side by side or interleaved; None where the gradients do not tell."""
    matching = []
    for inner in (False, True):
        tried = replace(layout, inner=inner)
        agrees = [
            _parallel(tried.front(both)[example], layout.front(each)[0])
            for example, each in enumerate(alone)
            if both is not None and each is not None
        ]
        if agrees and all(agrees):
            matching.append(tried)
    return matching[0] if len(matching) == 1 else None


def _parallel(one: Tensor, other: Tensor) -> bool:
    one, other = one.flatten().double(), other.flatten().double()
    size = torch.linalg.vector_norm(one) * torch.linalg.vector_norm(other)
    return bool(size > 0) and bool((one @ other) >= (1.0 - AGREEMENT) * size)
