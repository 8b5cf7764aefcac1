"""Products with Jᵀ B J for one batch: J the Jacobian of the model's outputs, B a map on the outputs.

Jᵀu is one backward pass. Jv is a second one: Jᵀu is linear in u, and the derivative of (Jᵀu)·v in u is Jv. So every
operation that can be differentiated twice will do, forward-mode derivatives are not asked for, and the loss is never
differentiated through the model. Where an operation cannot be differentiated twice, or wrongly, Jv is taken from
central differences of the outputs, which need no derivatives at all.

The first Jv for each Objective is compared with those differences.

Source: Schraudolph 2002 (Gauss-Newton products).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from diagnostics.curvature.products.check import REFUSALS, disagreement, reason_of, rounding_seen
from diagnostics.curvature.products.differences import reach
from diagnostics.curvature.products.sweep import Parts, Sweep, T
from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective
from diagnostics.output_loss import OutputLoss, OutputMap

JACOBIAN = "Jacobian products"

Middle = Callable[[int, OutputLoss], OutputMap]
"""B of a batch, from its index and what is known at its outputs."""


class Sandwich:
    """Jᵀ B J of one batch, from graphs that are built once.

    Args:
        objective: whose batch.
        index: which batch.
        leaves: θ.
        groups: slices of the parameters; with several, one diagonal block for each.
        middle: makes B.
        differences: take Jv from central differences of the outputs.
    """

    def __init__(
        self,
        objective: Objective,
        index: int,
        leaves: Sequence[Tensor],
        groups: Sequence[slice],
        middle: Middle,
        *,
        differences: bool,
    ) -> None:
        self._objective = objective
        self._index = index
        self._leaves = leaves
        self._groups = groups
        self._differences = differences
        at = objective.batch_outputs(index, leaves)
        self._outputs = at.outputs
        self.reached = at.outputs.requires_grad
        if not self.reached:
            objective.unreached(index)
            return
        self._between = middle(index, at)
        if not differences:
            self._cotangent = torch.zeros_like(at.outputs, requires_grad=True)
            self._pulled = objective.placed(
                leaves,
                lambda: torch.autograd.grad(
                    at.outputs, leaves, self._cotangent, create_graph=True, materialize_grads=True
                ),
            )

    def __call__(self, vector: Parts) -> Parts:
        """Of one vector."""
        if not self.reached:
            return [torch.zeros_like(part) for part in vector]
        parts: list[Tensor] = []
        for group in self._groups:
            pushed = self.pushed(vector, group)
            parts += torch.autograd.grad(
                self._outputs,
                self._leaves[group],
                self._between(pushed).to(self._outputs.dtype),
                retain_graph=True,
                materialize_grads=True,
            )
        return parts

    def many(self, vectors: Parts) -> Parts:
        """K vectors, one after another."""
        columns = [self([part[column] for part in vectors]) for column in range(len(vectors[0]))]
        return [torch.stack(parts) for parts in zip(*columns, strict=True)]

    def pushed(self, vector: Parts, group: slice) -> Tensor:
        """Jv for the parameters of one group."""
        if not self.reached:
            return torch.zeros_like(self._outputs)
        if self._differences:
            return self.differenced(vector, group)
        reached = [
            (pulled, part)
            for pulled, part in zip(self._pulled[group], vector[group], strict=True)
            if pulled.requires_grad
        ]
        if not reached:
            return torch.zeros_like(self._outputs)
        pulled, parts = zip(*reached, strict=True)
        (pushed,) = torch.autograd.grad(pulled, self._cotangent, parts, retain_graph=True, materialize_grads=True)
        return pushed

    def differenced(self, vector: Parts, group: slice, share: float = 1.0) -> Tensor:
        """Jv from the outputs on either side of θ."""
        values = [leaf.detach() for leaf in self._leaves]
        length = math.sqrt(sum(float(torch.linalg.vector_norm(part)) ** 2 for part in vector[group]))
        if length == 0.0:
            return torch.zeros_like(self._outputs)
        step = share * reach(values) / length
        ends: list[Tensor] = []
        for sign in (step, -step):
            moved = list(values)
            moved[group] = [value + sign * part for value, part in zip(values[group], vector[group], strict=True)]
            with torch.no_grad():
                ends.append(self._objective.batch_outputs(self._index, moved).outputs)
        return (ends[0] - ends[1]) / (2.0 * step)


class JacobianRoute:
    """Σ_b w_b J_bᵀ B_b J_b, by backward passes where they are right and by differences of outputs where not."""

    def __init__(self, objective: Objective, values: Parts, groups: Sequence[slice], middle: Middle) -> None:
        self._objective = objective
        self._groups = groups
        self._middle = middle
        self._reason = ""
        self._proved = False
        # Nothing that the sweep holds refers back to this object: graphs must die with the last reference to it.
        self._graph = partial(Sandwich, objective, groups=groups, middle=middle, differences=False)
        self._sweep = Sweep(objective, values, self._graph)
        self.error: float = 8 * max(torch.finfo(value.dtype).eps for value in values)

    @property
    def name(self) -> str:
        """For the reader."""
        how = f"Jv by central differences ({self._reason})" if self._reason else "double backward"
        return f"{JACOBIAN}, {how}, {self._sweep.keeping}"

    def steadily(self, action: Callable[[], T]) -> T:
        """Run an action that takes many products."""
        return self._sweep.steadily(action)

    def products(self, block: Tensor) -> Tensor:
        """(P, K) from (P, K)."""
        if not self._proved:
            self._sweep.steadily(lambda: self._prove(block[:, 0]))
            self._proved = True
        return self._sweep.products(block)

    def expect(self, products: int) -> None:
        """There is no other route to take."""
        del products

    def of_batch(self, index: int, vector: Tensor) -> Parts:
        """One batch's share of a product."""
        return self._sweep.of_batch(index, vector)

    def _prove(self, given: Tensor) -> None:
        """Compare the first Jv with differences of the outputs; go over to those when it is refused or wrong."""
        space, verified = self._objective.space, self._objective.verified_routes
        if JACOBIAN in verified:
            self.error = max(self.error, verified[JACOBIAN])
            return
        everything = slice(0, len(space.names))
        draw = torch.randn(space.total, generator=torch.Generator().manual_seed(0), device="cpu").to(given)
        vector = space.unflatten(draw)
        try:
            with torch.enable_grad():
                self._objective.require_differentiable(self._sweep.leaves)
        except REFUSALS as refusal:
            raise DiagnosticsError(
                "the model cannot be differentiated even once",
                given=reason_of(refusal, self._objective),
                expected="outputs from which autograd finds the way back to the parameters",
            ) from refusal
        try:
            sandwich = self._first_reached()
            pushed = sandwich.pushed(vector, everything)
        except REFUSALS as refusal:
            self._fall_back(f"double backward refused: {reason_of(refusal, self._objective)}")
            return
        off = disagreement(self._objective, pushed, lambda share: sandwich.differenced(vector, everything, share))
        if off:
            self._fall_back(f"double backward is off by {off:.0%} here")
            return
        product = self._sweep.products(draw[:, None])[:, 0]
        seen = rounding_seen(lambda scaled: self._sweep.products(scaled[:, None])[:, 0], draw, product)
        self.error = max(self.error, seen)
        if off is not None:
            verified[JACOBIAN] = seen

    def _first_reached(self) -> Sandwich:
        for index, weight in enumerate(self._objective.weights):
            if weight:
                with torch.enable_grad():
                    sandwich = self._graph(index, self._sweep.leaves)
                if sandwich.reached:
                    break
        return sandwich

    def _fall_back(self, reason: str) -> None:
        self._reason = reason
        # What is left of central differences' precision at their best step.
        self.error = 10 * torch.finfo(self._objective.space.dtype).eps ** (2 / 3)
        build = partial(Sandwich, self._objective, groups=self._groups, middle=self._middle, differences=True)
        self._sweep = Sweep(self._objective, self._sweep.leaves, build)
