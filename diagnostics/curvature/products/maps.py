"""What one batch contributes to a Hessian product, in the ways autograd offers.

*Double backward*: v ↦ ∇(∇ℓ·v), from a graph of ∇ℓ that is built once and serves every vector. *Linearised*: the same
map as a straight line of operations, traced once by ``torch.func.linearize``; tracing costs as much as some fifty
gradients, and pays where double backward computes what nobody asked for, which it does for convolutions. *Compiled*:
that line through ``torch.compile``.

``grad(jvp(...))`` is never taken: torch returns wrong values for normalisation layers there (pytorch#196700).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from diagnostics.curvature.products.sweep import Parts
from diagnostics.objective import Objective


class DoubleBackward:
    """∂²ℓ_b by a second backward pass through the graph of the first.

    Args:
        objective: whose batch.
        index: which batch.
        leaves: θ.
        groups: slices of the parameters; with several, the map is the block-diagonal part of the Hessian, and each
            block's pass goes only through what lies above its layer.
    """

    def __init__(self, objective: Objective, index: int, leaves: Sequence[Tensor], groups: Sequence[slice]) -> None:
        self._leaves = leaves
        self._groups = groups
        self._gradients = objective.batch_gradient(index, leaves, create_graph=True)[1]

    def __call__(self, vector: Parts) -> Parts:
        """Of one vector."""
        return self._pass(vector, batched=False)

    def many(self, vectors: Parts) -> Parts:
        """K vectors through one vectorised backward pass."""
        with warnings.catch_warnings():
            # Operations without a batching rule are looped over, which is what would be done otherwise.
            warnings.simplefilter("ignore")
            return self._pass(vectors, batched=True)

    def _pass(self, vector: Parts, *, batched: bool) -> Parts:
        parts: list[Tensor] = []
        for group in self._groups:
            leaves = self._leaves[group]
            # A gradient without a graph is constant in θ: its rows of the Hessian are zero.
            varying = [
                (part, weight)
                for part, weight in zip(self._gradients[group], vector[group], strict=True)
                if part.requires_grad
            ]
            # A layer whose part of the vector is zero has nothing to say: it has converged before the others.
            idle = len(self._groups) > 1 and not any(bool(weight.any()) for _, weight in varying)
            if idle or not varying:
                parts += [torch.zeros_like(weight) for weight in vector[group]]
                continue
            outputs, weights = zip(*varying, strict=True)
            reached = torch.autograd.grad(
                outputs, leaves, weights, retain_graph=True, allow_unused=True, is_grads_batched=batched
            )
            parts += [
                torch.zeros_like(weight) if part is None else part
                for part, weight in zip(reached, vector[group], strict=True)
            ]
        return parts


class Linearised:
    """The derivative of ∇ℓ_b at θ as a traced line of operations."""

    def __init__(self, objective: Objective, index: int, leaves: Sequence[Tensor], *, compiled: bool = False) -> None:
        def gradient(*values: Tensor) -> tuple[Tensor, ...]:
            parts: tuple[Tensor, ...] = torch.func.grad(lambda inner: objective.batch_loss(index, inner))(values)
            return parts

        values = tuple(leaf.detach() for leaf in leaves)
        with warnings.catch_warnings():
            # torch.fx warns about constants that it places itself, torch.func about torch.jit.
            warnings.simplefilter("ignore")
            # Where forward-mode derivatives are missing this raises; tracing may end the process (torch 2.13, MSE).
            torch.func.jvp(gradient, values, values)
            _, line = torch.func.linearize(gradient, *values)
        with torch.no_grad():
            once, twice, thrice = (line(*values) for _ in range(3))
        if not all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(once, twice, thrice, strict=True)):
            # Random operations are drawn anew, and some operations write into the constants of the line (LSTM, BCE).
            raise RuntimeError("the traced line does not repeat itself")
        self._line = torch.compile(line) if compiled else line
        self._compiled = compiled

    def __call__(self, vector: Parts) -> Parts:
        """Of one vector."""
        with torch.no_grad():
            if not self._compiled:
                return tuple(self._line(*vector))
            # ``quiet`` runs the user's compiled modules eagerly; this one is ours.
            with torch.compiler.set_stance("default"):
                return tuple(self._line(*vector))

    def many(self, vectors: Parts) -> Parts:
        """K vectors, mapped over the line."""
        with torch.no_grad():
            return tuple(torch.func.vmap(self._line)(*vectors))
