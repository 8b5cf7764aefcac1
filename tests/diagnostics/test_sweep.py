"""Sums over batches: what is kept between products changes their cost and never their value."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diagnostics import EmpiricalFisher, GaussNewton, Hessian, Objective
from diagnostics.curvature.products import sweep
from diagnostics.curvature.products.saved import measured_graph


def _objective(**settings: object) -> Objective:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(11, 3, dtype=torch.float64), torch.randint(3, (11,))
    batches = [(x[:5], y[:5]), (x[5:6], y[5:6]), (x[6:], y[6:])]
    return Objective(model, nn.CrossEntropyLoss(), batches, **settings)


def _vectors(count: int, columns: int = 3) -> Tensor:
    return torch.randn(count, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("operator", [Hessian, GaussNewton, EmpiricalFisher])
@pytest.mark.parametrize(
    ("room", "words"), [(10**9, "3 kept graphs"), (1, "fresh graphs"), (0.6, "1 of 3 graphs kept")]
)
def test_graphs_are_kept_while_they_fit_and_the_products_are_the_same(
    operator: type[Hessian], room: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = operator(_objective()) @ _vectors(31)
    if room < 1:
        one = _objective()
        with measured_graph() as graph:
            leaves = [value.requires_grad_() for value in one.space.values()]
            if operator is Hessian:
                _held = one.batch_gradient(0, leaves, create_graph=True)
            else:
                at = one.batch_outputs(0, leaves)
                cotangent = torch.zeros_like(at.outputs, requires_grad=True)
                _held = at, torch.autograd.grad(at.outputs, leaves, cotangent, create_graph=True)
        room = 1.5 * graph.bytes
    monkeypatch.setattr(sweep, "KEPT_BYTES", int(room))
    A = operator(_objective())
    torch.testing.assert_close(A @ _vectors(31), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(A @ _vectors(31), expected, rtol=1e-12, atol=1e-14)
    assert A.route.endswith(words)


def test_measuring_a_graph_leaves_no_cycle_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs hold most of the memory of a measurement: they must go with the operator, not with the collector."""
    for operator in (Hessian, GaussNewton):
        A = operator(_objective())
        A @ _vectors(31)
        kept = A._route._sweep._kept[0]
        watched = weakref.ref(kept._gradients[0] if operator is Hessian else kept._pulled[0])
        gc.disable()
        try:
            del A, kept
            assert watched() is None
        finally:
            gc.enable()


def test_memory_does_not_grow_over_two_hundred_products_and_operators() -> None:
    objective = _objective()

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    vector = _vectors(31, 1)[:, 0]
    for operator in (Hessian, GaussNewton):
        operator(objective) @ vector
        before = tensors()
        A = operator(objective)
        for _ in range(100):
            A @ vector
        for _ in range(100):
            operator(objective) @ vector
        del A
        assert tensors() <= before


def test_products_within_a_steady_action_are_those_outside_it() -> None:
    A = Hessian(_objective())
    outside = A @ _vectors(31)
    inside = A.steadily(lambda: [A.multiply(_vectors(31)), A.multiply(_vectors(31)[:, 0])])
    assert torch.equal(inside[0], outside)
    assert torch.equal(inside[1], outside[:, 0])


def test_checkpointed_models_recompute_at_the_kept_parameters_within_a_steady_action() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(lambda z: torch.tanh(self.inner(z)), x, use_reentrant=False))

    torch.manual_seed(0)
    model = Checkpointed().double()
    data = torch.randn(6, 3, dtype=torch.float64), torch.randint(3, (6,))
    for operator in (Hessian, GaussNewton):
        A = operator(Objective(model, nn.CrossEntropyLoss(), data))
        before = A @ _vectors(31)
        kept = [parameter.detach().clone() for parameter in model.parameters()]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2.0)
        after = A.steadily(lambda A=A: A.multiply(_vectors(31)))
        torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-14)
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), kept, strict=True):
                parameter.copy_(value)


def test_convolutional_networks_climb_to_the_linearised_line_and_keep_their_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from diagnostics.curvature.products import ladder

    monkeypatch.setattr(ladder, "PROMOTE_AFTER", 4)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3)).double()
    data = torch.randn(4, 1, 5, 5, dtype=torch.float64), torch.randint(3, (4,))
    A = Hessian(Objective(model, nn.CrossEntropyLoss(), data))
    V = _vectors(A.shape[0])
    first = A @ V
    torch.testing.assert_close(A @ V, first, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(A @ V, first, rtol=1e-10, atol=1e-12)
    assert A.route == "double backward, kept graph; linearize after 3 products"


def test_where_forward_derivatives_are_missing_the_climb_is_given_up_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    from diagnostics.curvature.products import ladder

    monkeypatch.setattr(ladder, "PROMOTE_AFTER", 2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 2, 2), nn.Flatten(), nn.Linear(6, 3)).double()
    data = torch.randn(4, 1, 4, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    A = Hessian(Objective(model, nn.HuberLoss(delta=0.3), data))
    V = _vectors(A.shape[0])
    first = A @ V
    torch.testing.assert_close(A @ V, first, rtol=1e-12, atol=1e-14)
    assert A.route == "double backward, kept graph"


def test_random_layers_are_never_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A traced dropout would draw anew at every product."""
    from diagnostics.curvature.products import ladder

    monkeypatch.setattr(ladder, "PROMOTE_AFTER", 2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 2, 2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(6, 3)).double()
    data = torch.randn(4, 1, 4, dtype=torch.float64), torch.randint(3, (4,))
    A = Hessian(Objective(model, nn.CrossEntropyLoss(), data, mode="train"))
    V = _vectors(A.shape[0])
    first = A @ V
    for _ in range(3):
        torch.testing.assert_close(A @ V, first, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("fault", [None, "refused", "wrong"])
def test_one_pass_for_a_block_is_given_up_when_it_is_refused_or_wrong(
    fault: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diagnostics.curvature.products.maps import DoubleBackward

    right = DoubleBackward.many

    def many(self: DoubleBackward, vectors: list[Tensor]) -> list[Tensor]:
        if fault == "refused":
            raise RuntimeError("no batching rule")
        return [part * (1.01 if fault == "wrong" else 1.0) for part in right(self, vectors)]

    expected = Hessian(_objective()) @ _vectors(31)
    monkeypatch.setattr(DoubleBackward, "many", many)
    A = Hessian(_objective(), route="batched")
    torch.testing.assert_close(A @ _vectors(31), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(A @ _vectors(31), expected, rtol=1e-10, atol=1e-12)
    assert ("batched" in A.route) == (fault is None)
