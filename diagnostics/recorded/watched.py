"""One batch, its loss and its gradients once, with every use of a parameter recorded on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective, as_constant
from diagnostics.quiet import first_order
from diagnostics.recorded.arrivals import Arrivals
from diagnostics.recorded.contributions import Contribution, Convolved, Direct, Lookup, Outer, joined, materialised
from diagnostics.recorded.layouts import Layout
from diagnostics.recorded.operations import Call, UnknownOperationError, contribution
from diagnostics.recorded.recording import Recording, Use
from diagnostics.reentrant import reentrant_checkpoints_refused

Places = tuple[Layout, tuple[Layout | None, ...]]
"""Where the examples are in the output of a use, and in each of its tensors."""


@dataclass(frozen=True)
class Watched:
    """A batch that was run and differentiated.

    Attributes:
        recording: every use of a parameter.
        gradients: at the output of each use; None where it does not reach the loss, or was let go of.
        loss: ℓ_b.
        leaf_gradients: of the loss in the parameters, by name; None where it does not depend on one.
        outputs: of the model, with their graph, where more than the loss is to be differentiated.
    """

    recording: Recording
    gradients: list[Tensor | None]
    loss: float
    leaf_gradients: dict[str, Tensor | None] = field(default_factory=dict)
    outputs: Tensor | None = None
    _inside: dict[str, dict[int, Layout]] = field(default_factory=dict)

    @cached_property
    def sequence(self) -> tuple[str, ...]:
        """The keys of all uses, in order."""
        return tuple(use.key for use in self.recording.uses)

    def reaching(self, name: str) -> list[tuple[Use, str, Tensor]]:
        """Uses of a parameter and of what is derived from it, with the name of the value used, and the gradient."""
        found = []
        for place in self.recording.places[name]:
            use, gradient = self.recording.uses[place], self.gradients[place]
            if gradient is not None:
                found += [(use, value, gradient) for value, _ in use.operands if name in self.recording.roots[value]]
        return found

    def contributions(self, name: str, places: Mapping[str, Places], count: int) -> list[Contribution]:
        """What the uses of a parameter add to the gradients of the examples.

        Raises:
            UnknownOperationError: an operation among them is not known.
        """
        found: dict[str, list[Contribution]] = {}
        for use, value, gradient in self.reaching(name):
            found.setdefault(value, []).append(contribution(self._call(use, value, gradient, places, count)))
        leaf = self.recording.values[name]
        result: list[Contribution] = []
        for value, some in found.items():
            result += some if value == name else _pulled_back(self.recording.values[value], leaf, joined(some))
        return joined(result)

    def _call(self, use: Use, value: str, gradient: Tensor, places: Mapping[str, Places], count: int) -> Call:
        if use.key not in self._inside:
            self._inside[use.key] = _layouts(use, places, count)
        dense = gradient.to_dense() if gradient.is_sparse else gradient
        return Call(use, self.recording.values[value], dense, places[use.key][0], self._inside[use.key])


def _layouts(use: Use, places: Mapping[str, Places], count: int) -> dict[int, Layout]:
    """Where the examples are in the tensors that a use has, by ``id``.

    Raises:
        UnknownOperationError: the plan is of a use that was given others.
    """
    if use.key not in places:
        raise UnknownOperationError
    layout, inside = places[use.key]
    tensors = use.tensors()
    if len(tensors) != len(inside) or not layout.fits(use.output, count):
        raise UnknownOperationError
    found = {}
    for tensor, one in zip(tensors, inside, strict=True):
        if one is not None:
            if not one.fits(tensor.shape, count):
                raise UnknownOperationError
            found[id(tensor)] = one
    return found


def watch(
    objective: Objective,
    index: int,
    derived: Iterable[str],
    scale: float = 1.0,
    unwanted: frozenset[str] = frozenset(),
    see: Callable[[Watched, str], None] | None = None,
    copied: bool = True,
    graph: bool = False,
    backward: bool = True,
) -> Watched:
    """Forward and backward of a batch. To be called inside ``quiet``.

    Args:
        objective: the whole.
        index: which batch.
        derived: operations on parameters alone.
        scale: what the loss is multiplied by.
        unwanted: parameters whose gradients are not needed: a third of the work for all of them.
        see: called with each parameter when all gradients at its uses are there, for the last time that they are. Not
            called for parameters of which others are derived, nor if the loss is not finite.
        copied: whether the model runs on copies of its parameters and of the batch, as long as it may write into them.
        graph: whether the outputs are kept with their graph, for ``pulled_back``.
        backward: False where that alone is wanted.
    """
    leaves = leaves_of(objective, copied)
    values = list(leaves.values())
    # What reaches the loss around the model, as in a closure over its parameters, would pass for a constant.
    live = [tensor for tensor in objective.space.tensors if tensor.requires_grad]

    asked = {name: value for name, value in leaves.items() if name not in unwanted}

    def differentiated() -> Watched:
        outputs: Tensor | None = None
        with Recording(leaves, derived) as recording:
            batch = objective.fresh(index, copied)
            if graph:
                at = objective.form.at_outputs(objective.model, batch)
                outputs, loss = at.outputs, at.loss
            else:
                loss = objective.loss_in_place(batch)
        watched = Watched(recording, [None] * len(recording.uses), float(loss.detach()), outputs=outputs)
        if not (loss.requires_grad and backward):
            watched.leaf_gradients.update(dict.fromkeys(asked))
            return watched
        handed_on = partial(see, watched) if see is not None and math.isfinite(watched.loss) else None
        arrivals = Arrivals(recording, watched.gradients, asked.values(), handed_on)
        edges = [recording.uses[place].edge for place in arrivals.ends]
        # What was derived from parameters is differentiated again, once for each example.
        kept = graph or len(recording.values) > len(values)
        with arrivals.awaited():
            wanted = [*edges, *asked.values(), *live]
            found = torch.autograd.grad(scale * loss, wanted, allow_unused=True, retain_graph=kept)
        at_ends, parts = found[: len(edges)], found[len(edges) : len(edges) + len(asked)]
        if any(part is not None for part in found[len(edges) + len(asked) :]):
            raise DiagnosticsError(
                "the loss reaches the model's parameters other than through the model it is handed",
                expected="a loss computed from the model that is handed in",
                attempt="model.parameters() inside loss_fn, of the model that loss_fn is given",
            )
        for place, gradient in zip(arrivals.ends, at_ends, strict=True):
            watched.gradients[place] = gradient
        watched.leaf_gradients.update(zip(asked, parts, strict=True))
        return watched

    with reentrant_checkpoints_refused(), first_order():
        return objective.placed(values, differentiated)


def pulled_back(objective: Objective, watched: Watched, cotangents: Iterable[Tensor]) -> Iterator[Watched]:
    """The same forward pass differentiated anew for each of some cotangents. To be called inside ``quiet``.

    Args:
        objective: the whole.
        watched: with its graph.
        cotangents: each in the shape of the outputs.
    """
    recording, outputs = watched.recording, watched.outputs
    assert outputs is not None
    values = [recording.values[name] for name in objective.space.names]
    for cotangent in cotangents:
        again = replace(watched, gradients=[None] * len(recording.uses), leaf_gradients={})
        arrivals = Arrivals(recording, again.gradients, (), None)
        edges = [recording.uses[place].edge for place in arrivals.ends]

        def differentiated(
            arrivals: Arrivals = arrivals, edges: list[GradientEdge] = edges, cotangent: Tensor = cotangent
        ) -> tuple[Tensor, ...]:
            with arrivals.awaited():
                return torch.autograd.grad(outputs, edges, cotangent, retain_graph=True, allow_unused=True)

        found: tuple[Tensor, ...] = ()
        if outputs.requires_grad and edges:
            with reentrant_checkpoints_refused(), first_order():
                found = objective.placed(values, differentiated)
        for place, gradient in zip(arrivals.ends, found, strict=False):
            again.gradients[place] = gradient
        yield again


def gradients(objective: Objective, index: int | None) -> dict[str, Tensor]:
    """The gradients of a batch by parameter, zero where its loss does not reach; all zero for no batch."""
    leaves = leaves_of(objective)
    values = list(leaves.values())

    def differentiated() -> list[Tensor | None]:
        assert index is not None
        loss = objective.batch_loss(index, values)
        return (
            list(torch.autograd.grad(loss, values, allow_unused=True)) if loss.requires_grad else [None] * len(values)
        )

    parts = [None] * len(values) if index is None else objective.placed(values, differentiated)
    return dense(leaves, dict(zip(leaves, parts, strict=True)))


def dense(leaves: Mapping[str, Tensor], parts: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Gradients by parameter with zeros for those that are missing."""
    return {
        name: torch.zeros_like(leaf) if (part := parts[name]) is None else part.to_dense() if part.is_sparse else part
        for name, leaf in leaves.items()
    }


def leaves_of(objective: Objective, copied: bool = True) -> dict[str, Tensor]:
    """Tensors to differentiate in, in the place of the parameters, by name; with their memory if not copied."""
    values = objective.space.values() if copied else [as_constant(tensor) for tensor in objective.space.tensors]
    return {name: value.requires_grad_() for name, value in zip(objective.space.names, values, strict=True)}


def _pulled_back(value: Tensor, leaf: Tensor, contributions: list[Contribution]) -> list[Contribution]:
    """Contributions to what was derived from a parameter, as contributions to the parameter."""
    if value.ndim == leaf.ndim == 2 and value.data_ptr() == leaf.data_ptr() and value.numel() == leaf.numel():
        if value.stride() == leaf.stride():
            return contributions
        if value.stride() == leaf.stride()[::-1] and not any(isinstance(one, Lookup) for one in contributions):
            return [_turned(one, value) for one in contributions]
    rows = materialised(contributions, value.numel())
    pulled = []
    for row in rows:
        (part,) = torch.autograd.grad(value, leaf, row.view(value.shape), retain_graph=True, allow_unused=True)
        dense = torch.zeros_like(leaf) if part is None else part.to_dense() if part.is_sparse else part
        pulled.append(dense.flatten())
    return [Direct(torch.stack(pulled))]


def _turned(one: Contribution, value: Tensor) -> Contribution:
    """A contribution to a matrix as one to its transpose."""
    if isinstance(one, Outer | Convolved):
        made = one if isinstance(one, Outer) else one.outer()
        return Outer(made.right, made.left)
    assert isinstance(one, Direct)
    return Direct(one.gradients.view(-1, *value.shape).mT.flatten(1))
