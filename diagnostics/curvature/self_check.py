"""Whether an operator is what its users take it for: one fixed, linear, symmetric map; and if not, the likely cause."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diagnostics.curvature.draws import drawn_type, random_stream
from diagnostics.curvature.quadrature import inner, lengths, plain_arithmetic
from diagnostics.curvature.symmetric import SymmetricMap, dimension, multiply, refuse, rounding_of
from diagnostics.determinism import what_varies

MOST_ALLOWED = 0.02
"""Relative errors above this are found, whatever the route says of itself."""


@dataclass(frozen=True)
class SelfCheck:
    """Three relative errors on random vectors, and what they point to.

    Attributes:
        repeat: between two products with one vector, each from a graph built for it.
        linearity: of A(2v + w) − 2Av − Aw.
        symmetry: of w·Av − v·Aw, to the length of Av.
        allowed: what rounding and the route's own error explain.
        cause: the likely cause of the first that is larger, with what to try; empty when none is.
    """

    repeat: float
    linearity: float
    symmetry: float
    allowed: float
    cause: str

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.cause

    def __str__(self) -> str:
        errors = f"repeat {self.repeat:.1e}, linearity {self.linearity:.1e}, symmetry {self.symmetry:.1e}"
        return f"{errors} (allowed {self.allowed:.1e}): {self.cause or 'a fixed, linear, symmetric map'}"


def self_check(operator: SymmetricMap, *, seed: int = 0) -> SelfCheck:
    """Test an operator on random vectors: the same product twice, linearity, symmetry. Five products.

    Args:
        operator: any symmetric map; for one made from an Objective, graphs are built anew for the repetition, which a
            kept graph would hide.
        seed: of the vectors.

    Raises:
        DiagnosticsError: a product that is not finite.

    Example:
        >>> print(self_check(torch.tensor([[2.0, 1.0], [0.0, 2.0]])).cause)
        not symmetric
    """
    size = dimension(operator)
    drawn = torch.randn(2, size, generator=random_stream(seed), dtype=drawn_type(operator), device="cpu")
    objective, rebuilt = getattr(operator, "objective", None), getattr(operator, "rebuilt", None)
    with plain_arithmetic(operator):
        v, w = drawn.to(operator.device, operator.dtype)
        Av, Aw, both = multiply(operator, v), multiply(operator, w), multiply(operator, 2 * v + w)
        if not bool(torch.isfinite(Av).all() & torch.isfinite(Aw).all()):
            refuse(operator, v)
        again = multiply(operator if rebuilt is None else rebuilt(), v)
        scale = _length(Av) or 1.0
        repeat = _length(again - Av) / scale
        linearity = _length(both - 2 * Av - Aw) / scale
        # For a Gaussian w, w·(A − Aᵀ)v is about as large as (A − Aᵀ)v is long.
        symmetry = abs(float(inner(w, Av)) - float(inner(v, Aw))) / scale
    # A route that knows itself to be poor does not excuse everything.
    allowed = min(20 * rounding_of(operator), MOST_ALLOWED)
    cause = ""
    if not repeat <= allowed:
        varies = None if objective is None else what_varies(objective)
        cause = "two products with one vector differ" if varies is None else str(varies)
    elif not linearity <= allowed:
        cause = "not linear: central differences across kinks (ReLU, max pooling), or steps lost in rounding"
    elif not symmetry <= allowed:
        cause = "not symmetric" + ("" if objective is None else _hidden(objective.model))
    return SelfCheck(repeat, linearity, symmetry, allowed, cause)


def _length(vector: Tensor) -> float:
    return float(lengths(vector.unsqueeze(0)))


def _hidden(model: nn.Module) -> str:
    """Where a model may keep part of its loss from autograd."""
    suspects = [
        f"{name!r} (an embedding whose padding row gets no gradient)"
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.padding_idx is not None
    ]
    where = ", ".join(suspects[:3]) or "detach(), no_grad, a straight-through estimator, or a hand-written backward"
    return f": the gradient is not that of the loss, for part of it is hidden from autograd: {where}"
