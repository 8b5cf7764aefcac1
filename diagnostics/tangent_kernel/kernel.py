"""A tangent kernel: its entries, its spectrum, and how it was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact
from diagnostics.tangent_kernel.alignment import alignment, distance

Outputs = Literal["full", "trace", "sum"]

LOST = 4.0
"""Rounding errors of an eigenvalue, relative to the norm of the kernel and in units of ε: we saw up to 0.1."""

NORMALISATIONS: Mapping[Outputs, str] = {
    "full": "⟨∂f_a(x), ∂f_b(x')⟩ for every pair of outputs, divided by nothing",
    "trace": "Σ_c ⟨∂f_c(x), ∂f_c(x')⟩, a sum over outputs and not their mean",
    "sum": "⟨∂f̄(x), ∂f̄(x')⟩ with f̄ = Σ_c f_c / √C",
}


@dataclass(frozen=True, repr=False)
class TangentKernel:
    """Inner products between the gradients of a model's outputs.

    Attributes:
        matrix: float64. For ``"full"`` (N·C, M·C), example-major: row n·C + c is output c of example n; (N, M) for the
            others. M is N unless other examples were given.
        outputs: ``"full"``, ``"trace"`` or ``"sum"``.
        examples: N, rows.
        columns: M.
        classes: C, outputs of each example.
        normalisation: what an entry is, in words.
        samples: combinations of outputs that were drawn; None for a kernel that is exact.
        errors: (N, M) standard errors of the entries, from the spread over samples; None for a kernel that is exact.
        rounding: ε of the parameters' dtype, which gradients and their products are in; sums are in float64.
        routes: how each parameter was measured, by name.
        how: in one line.
    """

    matrix: Tensor
    outputs: Outputs
    examples: int
    columns: int
    classes: int
    normalisation: str
    samples: int | None
    errors: Tensor | None
    rounding: float
    routes: Mapping[str, str]
    how: str
    _parts: Mapping[str, Tensor] | None = field(default=None, compare=False)
    _between: bool = field(default=False, compare=False)
    _trace_error: float = field(default=0.0, compare=False)

    @property
    def by_layer(self) -> Mapping[str, Tensor]:
        """What each parameter adds to the matrix, by name; they sum to it.

        Raises:
            DiagnosticsError: they were not kept.
        """
        if self._parts is None:
            raise DiagnosticsError(
                "the parts of the kernel were not kept",
                given=f"{len(self.routes)} parameters",
                expected="a kernel that was made with by_layer=True",
                attempt="ntk(objective, by_layer=True)",
            )
        return self._parts

    @property
    def eigenvalues(self) -> Tensor:
        """All of them, float64, largest first.

        Raises:
            DiagnosticsError: the kernel is between two sets of examples.
        """
        self._require_square()
        found: Tensor = torch.linalg.eigvalsh(self.matrix)
        return found.flip(0)

    @property
    def threshold(self) -> float:
        """What is no larger cannot be told from an eigenvalue of zero, given the rounding of gradients and products."""
        return LOST * self.rounding * float(torch.linalg.matrix_norm(self.matrix))

    @property
    def condition_number(self) -> Estimate:
        """Largest over smallest eigenvalue; undetermined where the smallest cannot be told from zero."""
        values = self.eigenvalues
        if self.samples is not None:
            return Estimate(math.nan, math.nan, "exact", f"not from a sampled kernel; {self.how}")
        if float(values[-1]) <= self.threshold:
            how = f"the smallest eigenvalue is zero to rounding, which is {self.threshold:.1e}; {self.how}"
            return Estimate(math.nan, math.nan, "exact", how)
        return exact(float(values[0] / values[-1]), self.how)

    @property
    def effective_rank(self) -> Estimate:
        """How many eigenvalues share the trace: exp H(λ/Σλ), H the entropy (Roy and Vetterli, EUSIPCO 2007)."""
        shares = self.eigenvalues.clamp_min(0.0)
        total = float(shares.sum())
        if not total > 0:
            return Estimate(math.nan, math.nan, "exact", f"the kernel is zero; {self.how}")
        return exact(math.exp(float(torch.special.entr(shares / total).sum())), self.how)

    @property
    def trace(self) -> Estimate:
        """The sum of all eigenvalues."""
        self._require_square()
        value = float(self.matrix.diagonal().sum())
        if self.samples is None:
            return exact(value, self.how)
        return Estimate(value, self._trace_error, "standard error", self.how)

    def alignment(self, targets: Any, *, centred: bool = False, unbiased: bool = False) -> Estimate:
        """The cosine of the kernel and that of the targets: yᵀKy/(‖K‖‖y‖²), or ⟨K, YYᵀ⟩/(‖K‖‖YYᵀ‖) unless full.

        Args:
            targets: class indices (N,), or values (N,) or (N, C). Classes are one-hot; ±1 for a single output.
            centred: take out the means over examples (CKA). Without it a kernel of positive numbers is aligned with
                one-hot targets because neither has a mean of zero.
            unbiased: leave out pairs of an example with itself: about 0 for a kernel without structure.

        Raises:
            DiagnosticsError: targets of other examples or outputs; a kernel between two sets of examples; unbiased and
                centred with fewer than four examples.

        Source: arXiv 1203.0550 (centred), 2008.00938.
        """
        return alignment(self, targets, centred=centred, unbiased=unbiased)

    def distance(self, other: TangentKernel) -> Estimate:
        """1 − ⟨K, K'⟩/(‖K‖‖K'‖), of kernels on the same examples: 0 where one is a multiple of the other.

        Raises:
            DiagnosticsError: kernels of other examples or outputs.

        Source: Fort et al., arXiv 2010.15110.
        """
        return distance(self, other)

    def _require_square(self) -> None:
        if self._between:
            raise DiagnosticsError(
                "a kernel between two sets of examples has no eigenvalues",
                given=f"shape {tuple(self.matrix.shape)}",
                expected="the kernel of one set",
                attempt="ntk(objective), or torch.linalg.svdvals(kernel.matrix)",
            )

    def __str__(self) -> str:
        shape = "×".join(f"{length:,}" for length in self.matrix.shape)
        text = f"tangent kernel {shape} of {self.examples} examples with {self.classes} outputs, {self.normalisation}"
        if self._between:
            return f"{text}; between these and {self.columns} others ({self.how})"
        values = self.eigenvalues
        return (
            f"{text}; eigenvalues {float(values[0]):.4g} to {float(values[-1]):.4g}, condition number "
            f"{self.condition_number}, effective rank {self.effective_rank} ({self.how})"
        )

    def __repr__(self) -> str:
        return f"TangentKernel({self})"
