"""How strongly outputs answer to inputs: ‖∂f/∂x‖ for each example."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics.arguments import require_objective
from diagnostics.averages import mean
from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate
from diagnostics.forms import PairForm
from diagnostics.objective import Objective
from diagnostics.quiet import quiet
from diagnostics.recorded.examples import lengths, require_uncoupled
from diagnostics.recorded.outputs import flattened


@dataclass(frozen=True, repr=False)
class InputJacobian:
    """Norms of the Jacobian of the outputs in the inputs.

    Attributes:
        norms: (N,) ‖∂f/∂x‖ over all outputs and inputs of each example (Frobenius), float64.
        mean: of them, with its standard error over examples.
    """

    norms: Tensor
    mean: Estimate

    def __str__(self) -> str:
        return f"‖∂f/∂x‖ {self.mean} on average, {float(self.norms.min()):.3g} to {float(self.norms.max()):.3g}"

    def __repr__(self) -> str:
        return f"InputJacobian({self})"


def input_jacobian(objective: Objective) -> InputJacobian:
    """‖∂f/∂x‖ for each example, by one backward pass for each output.

    Args:
        objective: of pairs with floating-point inputs.

    Raises:
        DiagnosticsError: inputs that are no floating-point tensor; outputs that cannot be seen; batch normalisation in
            train mode, which couples the examples.

    Source: Novak et al., arXiv 1802.08760.

    Example:
        >>> model, x = torch.nn.Linear(2, 1), torch.randn(3, 2)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> found = input_jacobian(Objective(model, torch.nn.MSELoss(), (x, x[:, :1])))
        >>> [round(norm, 6) for norm in found.norms.tolist()]
        [1.414214, 1.414214, 1.414214]
    """
    require_objective(objective)
    norms: list[Tensor] = []
    with quiet(objective.model, objective.mode):
        require_uncoupled(objective)
        for index, count in enumerate(lengths(objective)):
            norms.append(_norms(objective, index, count))
    found = torch.cat(norms)
    return InputJacobian(found, mean(found.tolist(), f"{len(found)} examples; {objective.description}"))


def jacobian_products(objective: Objective) -> Tensor:
    """J_x J_xᵀ of each example, (N, C, C) in float64, for the outputs in the order of a full kernel.

    Raises:
        DiagnosticsError: as ``input_jacobian``.
    """
    found: list[Tensor] = []
    with quiet(objective.model, objective.mode):
        require_uncoupled(objective)
        for index, count in enumerate(lengths(objective)):

            def products(index: int = index, count: int = count) -> Tensor:
                rows = torch.stack(list(_rows(objective, index, count)), 1)
                return torch.stack([row.double() @ row.double().T for row in rows])

            found.append(objective.placed(objective.space.values(), products))
    return torch.cat(found)


def _norms(objective: Objective, index: int, count: int) -> Tensor:
    def squares() -> Tensor:
        total = torch.zeros(count, dtype=torch.float64, device=objective.space.device)
        for row in _rows(objective, index, count):
            total += row.double().square().sum(1)
        return total

    return objective.placed(objective.space.values(), squares).sqrt().cpu()


def _rows(objective: Objective, index: int, count: int) -> Iterator[Tensor]:
    """∂f_c/∂x for all examples of a batch, (n, D), output by output."""
    batch = objective.fresh(index)
    form = objective.form
    inputs = batch[0] if isinstance(form, PairForm) else None
    if not (isinstance(inputs, Tensor) and inputs.is_floating_point()):
        raise DiagnosticsError(
            "inputs cannot be differentiated in",
            given=type(batch).__name__ if inputs is None else str(getattr(inputs, "dtype", type(inputs).__name__)),
            expected="Objective(model, loss, batches) with floating-point inputs",
        )
    # A view of the leaf: models may begin with an operation in place.
    leaf = inputs.detach().requires_grad_()
    outputs = flattened(form.outputs(objective.model, (leaf.clone(), batch[1])), count)
    for place in range(outputs.shape[1]):
        if outputs.requires_grad:
            (row,) = torch.autograd.grad(outputs[:, place].sum(), leaf, retain_graph=True, materialize_grads=True)
        else:
            row = torch.zeros_like(leaf)
        yield row.reshape(count, -1)
