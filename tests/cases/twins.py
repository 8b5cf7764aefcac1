"""What an operator's products must be, from the dense twins: on a whole batch, or batch by batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diagnostics import EmpiricalFisher, GaussNewton, Hessian
from diagnostics.curvature.operators import Operator
from tests.cases.case import Batch, Case, cut
from tests.reference.dense_gauss_newton import dense_empirical_fisher, dense_gauss_newton
from tests.reference.dense_hessian import dense_hessian, differenced_hessian, hessian_times


def _seeded(action: Callable[[], Tensor], seed: int) -> Callable[[], Tensor]:
    """Dropout draws what it draws inside an Objective, which seeds each batch with its number."""

    def seeded() -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return action()

    return seeded


def _hessian_times(case: Case, model: nn.Module, batch: Batch, seed: int, V: Tensor) -> Tensor:
    loss = _seeded(lambda: case.plain_loss(model, batch), seed)
    if not case.smooth:
        return differenced_hessian(model, loss) @ V
    # Row by row while that is quick.
    return dense_hessian(model, loss) @ V if len(V) < 100 else hessian_times(model, loss, V)


def _gauss_newton_times(case: Case, model: nn.Module, batch: Batch, seed: int, V: Tensor) -> Tensor:
    outputs = _seeded(lambda: case.outputs(model, batch), seed)
    return dense_gauss_newton(model, outputs, lambda put_out: case.of_outputs(put_out, batch)) @ V


def _empirical_fisher_times(case: Case, model: nn.Module, batch: Batch, seed: int, V: Tensor) -> Tensor:
    return dense_empirical_fisher(model, _seeded(lambda: case.terms(case.outputs(model, batch), batch), seed)) @ V


TWINS = {Hessian: _hessian_times, GaussNewton: _gauss_newton_times, EmpiricalFisher: _empirical_fisher_times}


def expected_products(kind: type[Operator], case: Case, V: Tensor, *, ragged: bool) -> Tensor:
    """The twin's products: of the whole batch, also for ragged ones wherever the loss adds up over examples."""
    model, whole = case.build()
    batches = cut(whole) if ragged else [whole]
    if case.additive:
        return TWINS[kind](case, model, whole, 0, V) / (len(batches) if case.summed else 1)
    counts = [1 if case.summed else len(case.terms(case.outputs(model, batch), batch)[0]) for batch in batches]
    parts = [
        count / sum(counts) * TWINS[kind](case, model, batch, seed, V)
        for seed, (count, batch) in enumerate(zip(counts, batches, strict=True))
        if count
    ]
    return torch.stack(parts).sum(0)
