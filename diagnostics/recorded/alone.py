"""Gradients of single examples the long way: each example differentiated by itself, for some parameters.

Several at a time by ``vmap`` where that works. It does not with control flow that depends on data, functions whose
derivative is written by hand, checkpoints, and cells that write in place; what it does is compared with an example
that is run alone, and the sum of all gradients with that of the batch.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective
from diagnostics.recorded.contributions import squares_of
from diagnostics.recorded.examples import adds_up, agreement, lengths, remedy, shares, some, square
from diagnostics.recorded.sheets import FEW
from diagnostics.recorded.vectorised import agree, at_once, together
from diagnostics.recorded.watched import gradients

See = Callable[[Sequence[int], dict[str, Tensor]], None]
"""Takes the places of some examples in a batch, and their gradients by name, (n, P)."""

VMAP, LOOP = "vmap", "example by example"


@dataclass
class Alone:
    """How the examples of a batch were run, and what came out.

    Attributes:
        total: the sum of their scaled gradients, by name, in float64.
        ways: of ``VMAP`` and ``LOOP`` what was used.
        refusal: why not ``VMAP``; nothing if it was, or if it had nothing to gain.
    """

    total: dict[str, Tensor]
    ways: set[str] = field(default_factory=set)
    refusal: str = ""


def each_alone(
    objective: Objective, index: int, names: Sequence[str], scale: float, summed: bool | None, see: See
) -> Alone:
    """Hand the scaled gradients of the examples of a batch to ``see``. To be called inside ``quiet``.

    Args:
        objective: the whole.
        index: which batch.
        names: of the parameters concerned.
        scale: N w_b.
        summed: whether the loss adds its examples up; None where that is still to be found out.
        see: is not called for examples without loss terms, whose gradients are zero.

    Raises:
        DiagnosticsError: the gradients do not make up that of the batch.
    """
    chosen = frozenset(names)
    part = objective.narrowed(lambda name, _: name in chosen)
    space = part.space
    single = some(part, index, [[place] for place in range(lengths(objective)[index])])
    # Objective's own way to a gradient: it refuses what goes around the model.
    whole = space.flatten(part.batch_gradient(index, [value.requires_grad_() for value in space.values()])[1])
    if summed is None:
        summed = _kind(part, index, single)
    weights = [scale * share for share in shares(single.terms, summed)]
    total = {name: torch.zeros(p.numel(), dtype=torch.float64, device=p.device) for name, p in space.items()}
    result, size = Alone(total), 0.0
    for places, found in _blocks(part, index, single, result):
        weight = torch.tensor([weights[place] for place in places], dtype=torch.float64)
        parts = {name: _weighted(rows, weight) for name, rows in found.items()}
        see(places, parts)
        for name, rows in parts.items():
            total[name] += rows.sum(0)
        size += float(torch.stack([squares_of(rows) for rows in parts.values()]).sum(0).sqrt().sum())
    expected = zip(space.names, whole.split(list(space.sizes)), strict=True)
    off = sum(square(total[name] - scale * one.double()) for name, one in expected) ** 0.5
    if off > agreement(objective) * size:
        raise DiagnosticsError(
            f"the gradient of batch {index} is not the mean of its examples' gradients",
            given=f"{off / size:.2g} of their size apart, in {objective.mode} mode",
            expected="a loss that is a mean or a sum over examples, each by itself",
            attempt=remedy(objective),
        )
    return result


def _blocks(
    objective: Objective, index: int, single: Objective, result: Alone
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Places of examples and the gradients of their losses, (n, P) by name."""
    # An example without a term has no loss of its own, and no gradient.
    counted = [place for place, terms in enumerate(single.terms) if terms]
    step = max(1, at_once(objective))
    kinds, trusted = [False, True] if len(counted) > FEW and step > 1 else [], set[bool]()
    for first in range(0, len(counted), step):
        places, found = counted[first : first + step], None
        while kinds and found is None:
            copies = kinds[0]
            alone = None if copies in trusted else gradients(single, places[0])
            found = _vectorised(objective, index, places, copies, alone, result)
            trusted.add(copies)
            if found is None:
                kinds.remove(copies)
        if found is not None:
            result.ways.add(VMAP)
            yield places, found
            continue
        result.ways.add(LOOP)
        for place in places:
            yield [place], {name: one.reshape(1, -1) for name, one in gradients(single, place).items()}
    if VMAP in result.ways:
        # A model that keeps its activations would be left with some that cannot be read outside of vmap.
        single.evaluate(counted[0])


def _vectorised(
    objective: Objective, index: int, places: list[int], copies: bool, alone: dict[str, Tensor] | None, result: Alone
) -> dict[str, Tensor] | None:
    """The gradients from one pass; None, with the reason in ``result``, if it fails or the first is not as alone."""
    try:
        found = together(objective, index, places, copies)
        if alone is None or agree(objective, found, alone):
            result.refusal = ""
            return found
        result.refusal = "another gradient than that of an example alone"
    except Exception as problem:  # noqa: BLE001
        # Whatever it was, in torch or in the model: the loop runs the model as it is, and meets what is wrong with it.
        result.refusal = textwrap.shorten(f"{type(problem).__name__}: {problem}", 120)
    return None


def _weighted(rows: Tensor, weight: Tensor) -> Tensor:
    precise = torch.promote_types(rows.dtype, torch.float32)
    return (rows * weight.to(rows.device, precise)[:, None]).to(rows.dtype)


def _kind(objective: Objective, index: int, single: Objective) -> bool:
    """Whether two examples with terms add up; one alone is what it is."""
    found = [place for place, count in enumerate(single.terms) if count][:2]
    if len(found) < 2:
        return False
    pair = some(objective, index, [found])
    flat = [objective.space.flatten(gradients(single, place).values()) for place in found]
    both = objective.space.flatten(gradients(pair, 0).values())
    counts = [single.terms[place] for place in found]
    return adds_up(objective, both, flat, counts, "two together are neither mean nor sum of the two")
