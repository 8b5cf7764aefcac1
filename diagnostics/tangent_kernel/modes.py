"""Targets and residuals along the eigenvectors of a kernel: what is learned first, and what is left for the end.

While the kernel stays as it is, gradient descent on ½ mean ‖f − y‖² takes the residual along eigenvector u_i down by
the factor 1 − ηλ_i/N in every step: f_t − y = (I − ηΘ/N)ᵗ(f₀ − y). Large modes are learned in a few steps, small ones
hardly ever. Where targets have little energy in the large modes, or the residual has ended up in the small ones, what
is left to learn is starved of gradient.

Source: Ortiz-Jiménez et al., arXiv 2106.06770 (label energy); Pezeshki et al., arXiv 2011.09468 (gradient starvation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diagnostics.arguments import real_number, require_objective, whole_number
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact
from diagnostics.objective import Objective
from diagnostics.quiet import quiet
from diagnostics.recorded.examples import lengths
from diagnostics.recorded.outputs import flattened
from diagnostics.tangent_kernel.alignment import require_within
from diagnostics.tangent_kernel.kernel import TangentKernel
from diagnostics.tangent_kernel.targets import target_values


@dataclass(frozen=True, repr=False)
class KernelModes:
    """A function on the examples, split along the eigenvectors of a kernel.

    Attributes:
        values: (n,) eigenvalues, largest first, float64.
        energies: (n,) share of the squared norm along each; they sum to 1. Along eigenvectors of one eigenvalue only
            their sum has a meaning.
        norm: of the function.
        examples: N.
        threshold: what is no larger cannot be told from an eigenvalue of zero.
        how: in one line.
    """

    values: Tensor
    energies: Tensor
    norm: float
    examples: int
    threshold: float
    how: str

    def top(self, k: int) -> Estimate:
        """Share of the energy in the k largest modes.

        Raises:
            DiagnosticsError: there are not so many.
        """
        k = whole_number("k is out of range", k, "a number of modes from 1", 1)
        if k > len(self.values):
            raise DiagnosticsError("k is out of range", given=str(k), expected=f"at most {len(self.values)} modes")
        return self._share(float(self.energies[:k].sum()))

    def below(self, share: float) -> Estimate:
        """Share of the energy in modes whose eigenvalue is below a share of the largest.

        Raises:
            DiagnosticsError: it is not a share.
        """
        share = real_number("share is out of range", share, "above 0, at most 1", lambda value: 0 < value <= 1)
        return self._share(float(self.energies[self.values < share * self.values[0]].sum()))

    def _share(self, value: float) -> Estimate:
        if not self.norm > 0:
            return Estimate(math.nan, math.nan, "exact", f"there is nothing left to split; {self.how}")
        return exact(value, self.how)

    def __str__(self) -> str:
        tops = ", ".join(f"{self.top(k)} in {k}" for k in (1, 10, 100) if k <= len(self.values))
        return f"{len(self.values)} modes of a kernel; energy {tops}; {self.below(0.01)} below 1% of the largest"

    def __repr__(self) -> str:
        return f"KernelModes({self})"


def kernel_modes(kernel: TangentKernel, targets: Any) -> KernelModes:
    """Energies ⟨u_i, y⟩²/‖y‖² of targets, or of residuals, along the eigenvectors of a kernel.

    For a trace or sum kernel ⟨u_i, y⟩² is summed over the outputs.

    Args:
        kernel: of one set of examples.
        targets: as for ``TangentKernel.alignment``; or residuals (N, C).

    Raises:
        DiagnosticsError: a kernel between two sets of examples, or of samples; targets of other examples or outputs.

    Source: arXiv 2106.06770, 2011.09468.

    Example:
        >>> from diagnostics import ntk
        >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> modes = kernel_modes(ntk(Objective(model, torch.nn.MSELoss(), (x, x[:, :1]))), torch.tensor([3.0, 4.0]))
        >>> modes.values.tolist(), [round(share, 9) for share in modes.energies.tolist()]
        ([4.0, 1.0], [0.36, 0.64])
    """
    require_within(kernel, "a mode")
    if kernel.samples is not None:
        raise DiagnosticsError(
            "modes are not those of a sampled kernel", given=f"{kernel.samples} samples", expected="samples=None"
        )
    wanted = target_values(kernel, targets)
    values, vectors = torch.linalg.eigh(kernel.matrix)
    along = vectors.T @ wanted.reshape(len(kernel.matrix), -1)
    energies = along.square().sum(1).flip(0)
    total = energies.sum()
    norm = float(total.sqrt())
    return KernelModes(
        values=values.flip(0),
        energies=energies / total if norm > 0 else energies,
        norm=norm,
        examples=kernel.examples,
        threshold=kernel.threshold,
        how=f"all eigenvectors; {kernel.how}",
    )


def residuals(objective: Objective) -> Tensor:
    """N ∂L/∂f, (N, C) in float64: what each output pulls at. f − y for ½ ‖f − y‖², p − y for cross-entropy.

    Outputs move with −Θ N⁻¹ of it under gradient flow, whatever the loss.

    Raises:
        DiagnosticsError: outputs that cannot be seen, or differ in number; a loss that does not depend on them.

    Example:
        >>> model, x = torch.nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [3.0]])
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> residuals(Objective(model, torch.nn.MSELoss(), (x, torch.zeros(2, 1)))).tolist()  # 2 (f − y)
        [[2.0], [6.0]]
    """
    require_objective(objective)
    found, weights = [], []
    with quiet(objective.model, objective.mode):
        for index, (weight, count) in enumerate(zip(objective.weights, lengths(objective), strict=True)):
            at = objective.batch_outputs(index, [value.requires_grad_() for value in objective.space.values()])
            if not at.outputs.requires_grad:
                objective.unreached(index)
            (gradient,) = torch.autograd.grad(at.loss, at.outputs, materialize_grads=True)
            rows = flattened(gradient.detach(), count)
            found.append(rows.double())
            weights.append(weight)
    if len({rows.shape[1] for rows in found}) > 1:
        raise DiagnosticsError("examples differ in the number of their outputs", expected="the same for every example")
    total = sum(map(len, found))
    return torch.cat([total * weight * rows for weight, rows in zip(weights, found, strict=True)])
