"""The gradients of single examples: their norms, and their inner products with a vector.

One forward and one backward pass of a batch hold all of it: for every operation that uses a parameter, its input and
the gradient at its output are put together for each example, and the gradient of an example is never built where its
norm can be had for less. g_i is scaled such that the mean over the N examples is ∇L, so a batch of ragged sentences
or one with ignored labels counts as it does in training. **An example is a row of a batch: a sequence, not a token.**

Sums over examples, tokens and parameters are in float64 but for at most a thousand squares at a time; products are in
the precision of the model.

Source: Goodfellow, arXiv 1510.01799; Gray et al., arXiv 2411.00999.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics.errors import DiagnosticsError
from diagnostics.estimate import Estimate, exact
from diagnostics.objective import Objective
from diagnostics.quiet import quiet
from diagnostics.recorded.contractions import dots, norms_and_sum, squared_norms
from diagnostics.recorded.contributions import LARGE, Contribution, Direct, squares_of
from diagnostics.recorded.elementwise import squares_in
from diagnostics.recorded.examples import square
from diagnostics.recorded.one_pass import OnePass


@dataclass(frozen=True, repr=False)
class PerExampleNorms:
    """How long the gradients of single examples are.

    Attributes:
        norms: ‖g_i‖, (N,), in float64, in the order of the examples in the batches.
        mean_square: ‖∇L‖², the squared norm of their mean.
        squares: ‖g_i‖² for each parameter alone, (N,), by name.
        routes: how each parameter was measured, by name.
        how: in one line.
    """

    norms: Tensor
    mean_square: Estimate
    squares: Mapping[str, Tensor]
    routes: Mapping[str, str]
    how: str

    def __str__(self) -> str:
        low, middle, high = (float(self.norms.quantile(share)) for share in (0.0, 0.5, 1.0))
        return (
            f"gradients of {len(self.norms)} examples: norm {middle:.4g} in the middle, {low:.4g} to {high:.4g}; "
            f"{float(self.mean_square) ** 0.5:.4g} for their mean"
        )

    def __repr__(self) -> str:
        return f"PerExampleNorms({self})"


def per_example_gradient_norms(objective: Objective, *, metric: Tensor | None = None) -> PerExampleNorms:
    """‖g_i‖ of every example, where the mean of the g_i is ∇L.

    Args:
        objective: the loss, a mean or a sum over examples.
        metric: d, (P,), not below zero: norms are √Σ_j d_j g_ij², as an optimizer sees them that scales coordinates;
            None for plain ones.

    Raises:
        DiagnosticsError: batch normalisation or the loss couples the examples; a loss or gradient is not finite;
            gradients so short that their squares are no numbers; a metric of another
            shape, or below zero.

    Source: arXiv 1510.01799.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> x, y = torch.eye(2), torch.tensor([[1.0], [-3.0]])
        >>> measured = per_example_gradient_norms(Objective(model, torch.nn.MSELoss(), (x, y)))  # g_i = -2 y_i x_i
        >>> measured.norms.tolist(), round(float(measured.mean_square), 9)
        ([2.0, 6.0], 10.0)
    """
    run = OnePass(objective, mean=True)
    count = run.examples
    weights = None if metric is None else _by_parameter(objective, "metric", metric)
    if weights is not None and not all(bool((part >= 0).all()) for part in weights.values()):
        raise DiagnosticsError("metric is below zero", expected="numbers (P,) from 0 up, such as P⁻¹ of an optimizer")
    with quiet(objective.model, objective.mode):
        names = objective.space.names
        table = torch.zeros(len(names), count, dtype=torch.float64, device=run.device)
        squares = dict(zip(names, table.unbind(), strict=True))

        def recorded(name: str, size: int, at: slice, found: list[Contribution], built: bool) -> None:
            if not built:
                squares[name][at] = (
                    squared_norms(found, size) if weights is None else squares_in(found, size, weights[name])
                )
                return
            squares[name][at], whole = norms_and_sum(found, size)
            if weights is not None:
                squares[name][at] = squares_in(found, size, weights[name])
            run.average({name: whole})

        def alone(places: list[int], parts: Mapping[str, Tensor]) -> None:
            for name, rows in parts.items():
                squares[name][places] = squares_of(rows) if weights is None else rows.double().square() @ weights[name]

        run.through(recorded, alone)
        total = table.sum(0)
        run.require_finite(total)
        if weights is None:
            _require_squares(run, total)
        mean_square = _square_of_all(
            part if weights is None else part * weights[name].sqrt() for name, part in run.total.items()
        )
        mean_square /= count**2
        if not math.isfinite(mean_square):
            raise DiagnosticsError(
                "the mean gradient is too long for its precision to hold its square",
                expected="parameters and data of ordinary size",
            )
    return PerExampleNorms(total.sqrt(), exact(mean_square, run.how), squares, run.routes, run.how)


def _require_squares(run: OnePass, squares: Tensor) -> None:
    """Refuse gradients all of which are too short to be squared: they would pass for zero."""
    precision = torch.promote_types(run.objective.space.dtype, torch.float32)
    longest = float(squares.max())
    if longest >= run.objective.num_parameters * torch.finfo(precision).tiny:
        return
    if longest or any(bool(part.count_nonzero()) for part in run.total.values()):
        raise DiagnosticsError(
            "the gradients of all examples are too short for their precision to hold their squares",
            given=f"{longest**0.5:.2g} at most, in {str(precision).removeprefix('torch.')}",
            expected="a loss of ordinary size",
            attempt="model.double(), or the loss times some power of ten",
        )


def per_example_gradient_dots(objective: Objective, vector: Tensor) -> Tensor:
    """⟨g_i, v⟩ of every example, (N,), in float64.

    Args:
        objective: the loss, a mean or a sum over examples.
        vector: v, (P,).

    Raises:
        DiagnosticsError: as for ``per_example_gradient_norms``; a vector of another shape.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> objective = Objective(model, torch.nn.MSELoss(), (torch.randn(5, 2), torch.randn(5, 1)))
        >>> gradient = objective.gradient()
        >>> bool(torch.isclose(per_example_gradient_dots(objective, gradient).mean(), gradient.double().square().sum()))
        True
    """
    return torch.stack(list(dots_by_parameter(objective, vector).values())).sum(0)


def dots_by_parameter(objective: Objective, vector: Tensor) -> dict[str, Tensor]:
    """What each parameter adds to ⟨g_i, v⟩, (N,), in float64, by name.

    Raises:
        DiagnosticsError: as ``per_example_gradient_dots``.
    """
    run = OnePass(objective)
    parts = _by_parameter(objective, "vector", vector)
    with quiet(objective.model, objective.mode):
        result = {name: torch.zeros(run.examples, dtype=torch.float64, device=run.device) for name in parts}

        def recorded(name: str, _: int, at: slice, found: list[Contribution], __: bool) -> None:
            result[name][at] = dots(found, parts[name])

        def alone(places: list[int], gradients: Mapping[str, Tensor]) -> None:
            for name, rows in gradients.items():
                result[name][places] = dots([Direct(rows)], parts[name])

        run.through(recorded, alone)
        for values in result.values():
            run.require_finite(values)
    return result


def _square_of_all(parts: Iterable[Tensor]) -> float:
    """Σ ‖part‖²: of small ones together, since each would take longer to ask for than to compute."""
    small, total = [], 0.0
    for part in parts:
        if part.numel() < LARGE:
            small.append(part)
        else:
            total += square(part)
    return total + (square(torch.cat(small)) if small else 0.0)


def _by_parameter(objective: Objective, name: str, vector: Tensor) -> dict[str, Tensor]:
    """A vector (P,) cut up by parameter, in float64."""
    given = tuple(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
    if given != (objective.num_parameters,):
        raise DiagnosticsError(
            f"{name} is not one of the parameters",
            given=f"shape {given}" if isinstance(vector, Tensor) else str(given),
            expected=f"a tensor (P,), here ({objective.num_parameters},)",
        )
    cut = vector.detach().to(objective.space.device, torch.float64).split(list(objective.space.sizes))
    return dict(zip(objective.space.names, cut, strict=True))
