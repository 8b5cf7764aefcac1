"""The ladder of routes to a Hessian-vector product: the fastest that works for this model, checked.

1. Double backward, exact to rounding. Its graph is kept between products, as far as memory goes (``sweep``).
2. After ``PROMOTE_AFTER`` products with a convolutional network, the linearised line instead, if it gives the same:
   tracing it costs some fifty gradients, and only for convolutions is each product much cheaper then.
3. Central differences of gradients, where an operation has no second derivative, or a wrong one.

Double backward can be wrong without a word: torch's own for ``weight_norm``, and any hand-written backward pass that
autograd does not see into. So the first product for each Objective is compared with central differences. Kinks (ReLU,
max pooling) make the two differ as well, but then two step sizes of the differences disagree as much. What is slower
everywhere we measured (``benchmarks/curvature.py``) is taken on request only: compiling, and on the CPU passing the
vectors of a block through one vectorised pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from diagnostics.curvature.products.check import REFUSALS, disagreement, length, reason_of, rounding_seen
from diagnostics.curvature.products.differences import CENTRAL_DIFFERENCES, CentralDifferences
from diagnostics.curvature.products.maps import DoubleBackward, Linearised
from diagnostics.curvature.products.sweep import Parts, Sweep
from diagnostics.errors import DiagnosticsError
from diagnostics.objective import Objective

T = TypeVar("T")

DOUBLE_BACKWARD, BATCHED, LINEARIZE, COMPILED = "double backward", "batched", "linearize", "compiled"

ROUTES = (DOUBLE_BACKWARD, BATCHED, LINEARIZE, COMPILED, CENTRAL_DIFFERENCES)

PROMOTE_AFTER = 128
"""Products after which tracing pays for a convolutional network: it costs 55 gradients and saves .45 a product."""


class Route(Protocol):
    """One way to multiply."""

    @property
    def name(self) -> str:
        """For the reader."""

    @property
    def error(self) -> float:
        """Relative, of one product."""

    def steadily(self, action: Callable[[], T]) -> T:
        """Run an action that takes many products."""

    def products(self, block: Tensor) -> Tensor:
        """(P, K) from (P, K)."""

    def of_batch(self, index: int, vector: Tensor) -> Parts:
        """One batch's share of the product with (P,), tensor by tensor; empty where it is not taken by batch."""

    def expect(self, products: int) -> None:
        """Be told that so many products are coming."""


def hessian_route(objective: Objective, values: Parts, groups: Sequence[slice], route: str | None) -> Route:
    """The route asked for; with None, the ladder."""
    if route is not None and route not in ROUTES:
        raise DiagnosticsError(
            "route is unknown", given=repr(route), expected="None or one of " + ", ".join(map(repr, ROUTES))
        )
    if route == CENTRAL_DIFFERENCES:
        return CentralDifferences(objective, values, groups)
    if route in (LINEARIZE, COMPILED) and len(groups) > 1:
        raise DiagnosticsError(
            f"route {route!r} has no blocks by layer", expected=f"{DOUBLE_BACKWARD!r} with by_layer=True"
        )
    return _Ladder(objective, values, groups, route)


class _Ladder:
    """Double backward, or what was asked for, until it is refused or found wrong; faster when that pays."""

    def __init__(self, objective: Objective, values: Parts, groups: Sequence[slice], asked: str | None) -> None:
        self._objective = objective
        self._values = values
        self._groups = groups
        self._asked = asked
        # Small kernels on a GPU are bound by their launches: one pass for the whole block saves most of them.
        on_gpu = objective.space.device.type == "cuda" and asked is None
        batched = (asked == BATCHED or on_gpu) and len(groups) == 1
        self._differences: CentralDifferences | None = None
        self._tail = ""
        self._proved = False
        self._taken = self._coming = 0
        self._promotable = asked is None and len(groups) == 1 and not on_gpu and _is_convolutional(objective.model)
        self._kind = asked if asked in (LINEARIZE, COMPILED) else DOUBLE_BACKWARD
        self.error: float = 8 * max(torch.finfo(value.dtype).eps for value in values)
        # Nothing that the sweep holds refers back to this object: graphs must die with the last reference to it.
        self._line = partial(Linearised, objective, compiled=asked == COMPILED)
        if asked in (LINEARIZE, COMPILED):
            self._sweep = Sweep(objective, values, self._line, keep_all=True)
        else:
            graph = partial(DoubleBackward, objective, groups=groups)
            self._sweep = Sweep(objective, values, graph, batched=batched)

    @property
    def name(self) -> str:
        if self._differences is not None:
            return self._differences.name
        if self._kind in (LINEARIZE, COMPILED):
            return self._kind + self._tail
        return f"{self._kind}{f', {BATCHED}' if self._sweep.batched else ''}, {self._sweep.keeping}{self._tail}"

    def steadily(self, action: Callable[[], T]) -> T:
        return action() if self._differences is not None else self._sweep.steadily(action)

    def products(self, block: Tensor) -> Tensor:
        if self._differences is not None:
            return self._differences.products(block)
        if self._proved:
            self._climb(block)
            return self._sweep.products(block)
        try:
            result = self._sweep.products(block)
        except REFUSALS as refusal:
            reason = reason_of(refusal, self._objective)
            if self._asked is not None:
                raise DiagnosticsError(
                    f"route {self._asked!r} does not work for this model",
                    given=reason,
                    expected="a route that works",
                    attempt="route=None, which finds one",
                ) from refusal
            return self._fall_back(f"{self._kind} refused: {reason}", block)
        off = self._check(block, result)
        if off and self._asked is None:
            result = self._fall_back(f"{self._kind} is off by {off:.0%} here", block)
            self._note_asymmetry(off)
            return result
        if off:
            self.error, self._tail = max(self.error, off), f" (off by {off:.0%} from central differences)"
        self._proved = True
        return result

    def of_batch(self, index: int, vector: Tensor) -> Parts:
        """One batch's share of a product; empty where gradients are differenced over all batches."""
        return () if self._differences is not None else self._sweep.of_batch(index, vector)

    def expect(self, products: int) -> None:
        """What pays after so many products pays at once when they are sure to come."""
        self._coming = products

    def _check(self, block: Tensor, products: Tensor) -> float:
        """How far the route is from central differences, relative; 0 when they agree or have agreed before."""
        space, verified = self._objective.space, self._objective.verified_routes
        if self._kind in verified:
            self.error = max(self.error, verified[self._kind])
            return 0.0
        if not bool(torch.isfinite(products).all()):
            return 0.0
        vector, product, whole = block[:, 0], products[:, 0], self._sweep
        everything = [slice(0, len(space.names))]
        if len(self._groups) > 1:
            # Blocks come from the graph of the whole: when the whole is right, so are they, and it costs one product.
            whole = Sweep(self._objective, self._values, partial(DoubleBackward, self._objective, groups=everything))
        usual = 1e-6 < length(vector) < 1e6 and int(torch.count_nonzero(vector)) >= 0.9 * len(vector)
        if whole is not self._sweep or not usual:
            # A vector that leaves out most parameters says nothing about their rows.
            vector = torch.randn(space.total, generator=torch.Generator().manual_seed(0), device="cpu").to(block)
            product = whole.products(vector[:, None])[:, 0]
        if not len(vector):
            return 0.0
        differences = CentralDifferences(self._objective, self._values, everything)
        step = differences.reach / length(vector)
        off = disagreement(self._objective, product, lambda share: differences.difference(vector, share * step))
        if off:
            return off
        seen = rounding_seen(lambda scaled: whole.products(scaled[:, None])[:, 0], vector, product)
        self.error = max(self.error, seen)
        if off is not None:
            verified[self._kind] = seen
        return 0.0

    def _fall_back(self, reason: str, block: Tensor) -> Tensor:
        route = CentralDifferences(self._objective, self._values, self._groups, reason)
        try:
            result = route.products(block)
        except REFUSALS as second:
            raise DiagnosticsError(
                "no route to a Hessian-vector product works for this model",
                given=f"{reason}; central differences: {reason_of(second, self._objective)}",
                expected="a loss that can be differentiated at least once",
            ) from second
        self._differences, self.error = route, route.error
        return result

    def _note_asymmetry(self, off: float) -> None:
        """Say so when not double backward is wrong, but the gradient: what is hidden from autograd is not in it."""
        assert self._differences is not None
        draws = torch.randn(2, self._objective.space.total, generator=torch.Generator().manual_seed(0), device="cpu")
        v, w = draws.to(self._objective.space.device, self._objective.space.dtype)
        Jv, Jw = self._differences.product(v), self._differences.product(w)
        # For a Gaussian w, w·(J − Jᵀ)v is about as large as (J − Jᵀ)v is long.
        asymmetry = abs(float(torch.dot(w, Jv)) - float(torch.dot(v, Jw))) / float(torch.linalg.vector_norm(Jv))
        if asymmetry > 10 * self._differences.error:
            # Double backward gave the transpose then, which is just as far from symmetric.
            self.error = off
            self._differences.name += "; not symmetric: part of the loss is hidden from autograd, see self_check"

    def _climb(self, block: Tensor) -> None:
        """Go over to the linearised line once it pays, if all batches are kept and it gives the same products."""
        self._taken += block.shape[1]
        if not self._promotable or max(self._taken, self._coming) < PROMOTE_AFTER or not self._sweep.keeps_all:
            return
        self._promotable = False
        vector = block[:, :1]
        lines = self._sweep.replaced(self._line)
        try:
            once, twice = lines.products(vector), lines.products(vector)
        except REFUSALS:
            # Forward-mode derivatives are missing for many operations: nothing is lost but the time.
            return
        known = self._sweep.products(vector)
        near = torch.finfo(known.dtype).eps ** 0.5 * torch.linalg.vector_norm(known)
        # Traced random operations would be drawn anew each time.
        if bool(torch.equal(once, twice)) and bool(torch.linalg.vector_norm(once - known) <= near):
            self._sweep, self._tail = lines, f"; {LINEARIZE} after {self._taken - block.shape[1]} products"


def _is_convolutional(model: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules())
