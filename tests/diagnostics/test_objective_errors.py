"""Every refusal names what was given and what would have been right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from diagnostics import DiagnosticsError, Hessian, Objective
from tests.cases import mlp

X, Y = torch.randn(4, 3), torch.randn(4, 2)


def _frozen() -> nn.Module:
    return mlp().requires_grad_(False)


def _with_terms(count: object) -> Objective:
    return Objective.from_loss(mlp(), lambda m, b: m(b).sum(), [X], terms=lambda batch: count)


class ComplexParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Objective(mlp(), "mse", (X, Y)), ["loss cannot be called", "str", "loss(outputs, targets)"]),
        (lambda: Objective("model.pt", nn.MSELoss(), (X, Y)), ["model is not a module", "given: str", "nn.Module"]),
        (lambda: Hessian(mlp()), ["objective is not an Objective", "Sequential", "Hessian(Objective(model"]),
        (lambda: Objective(mlp(), nn.MSELoss(), []), ["batches is empty", "at least one batch"]),
        (lambda: Objective(mlp(), nn.MSELoss(), X), ["batches is not an iterable", "shape (4, 3)", "DataLoader"]),
        (lambda: Objective(mlp(), nn.MSELoss(), 3), ["batches is not an iterable", "int"]),
        (lambda: Objective(mlp(), nn.MSELoss(), [X, X, X]), ["batches[0] is not an (inputs, targets) pair"]),
        (lambda: Objective(mlp(), nn.MSELoss(), [(X, Y), {"x": X}]), ["batches[1]", "keys x", "from_loss"]),
        (lambda: Objective(mlp(), nn.MSELoss(), [(X, Y, Y)]), ["batches[0]", "a tuple of 3"]),
        (lambda: Objective(mlp(), nn.MSELoss(), (X, Y), limit=0), ["limit is too small", "given: 0"]),
        (lambda: Objective(mlp(), nn.MSELoss(), (X, Y), limit="a"), ["limit is not a number of batches", "given: 'a'"]),
        (lambda: Objective(mlp(), nn.MSELoss(), (X, Y), limit=1.5), ["limit is not a number of batches", "1.5"]),
        (lambda: Objective(mlp(), nn.MSELoss(), (X, Y), params=5), ["params is not a selection", "int", "a glob"]),
        (
            lambda: Objective(mlp(), nn.MSELoss(), (X, Y), params=[1, 2]),
            ["params is not a selection", "a tuple of 2 (int, int)"],
        ),
        (lambda: Objective(mlp(), nn.MSELoss(), (X, Y), params=mlp().parameters()), ["params is not a selection"]),
        (lambda: Objective(mlp(), nn.MSELoss(), (X, Y), params=mlp()), ["params is not a selection", "Sequential"]),
        (lambda: Objective(mlp(), nn.MSELoss(), (X, Y), params=lambda name: True), ["does not take two arguments"]),
        (lambda: _with_terms(-1), ["terms does not give a number of loss terms", "given: -1", "zero or more"]),
        (lambda: _with_terms(None), ["terms does not give a number of loss terms", "None"]),
        (lambda: _with_terms("3"), ["terms does not give a number of loss terms", "'3'"]),
        (lambda: _with_terms(float("nan")), ["terms does not give a number of loss terms", "nan"]),
        (lambda: _with_terms(torch.ones(3)), ["terms does not give a number of loss terms", "shape (3,)"]),
        (lambda: Objective(mlp(), nn.MSELoss(), (X, Y), mode="test"), ["mode is unknown", "'test'", "'eval'"]),
        (
            lambda: Objective(mlp(), nn.MSELoss(), (X, Y), params="head.*"),
            ["selects no parameter", "head.*", "0.weight"],
        ),
        (lambda: Objective(_frozen(), nn.MSELoss(), (X, Y)), ["selects no parameter", "every parameter is frozen"]),
        (lambda: Objective(nn.Tanh(), nn.MSELoss(), (X, Y)), ["0 parameters", "a model that has parameters"]),
        (lambda: Objective(nn.LazyLinear(2), nn.MSELoss(), (X, Y)), ["'weight' is not initialised", "forward pass"]),
        (lambda: Objective(nn.Linear(3, 2, device="meta"), nn.MSELoss(), (X, Y)), ["'weight' is on the meta device"]),
        (lambda: Objective(ComplexParameter(), nn.MSELoss(), (X, Y)), ["'phase' is complex"]),
        (
            lambda: Objective(mlp(), nn.CrossEntropyLoss(), (X, torch.full((4,), -100))),
            ["hold no loss terms", "1 batches with 0 terms"],
        ),
        (lambda: Objective(mlp(), nn.MSELoss(reduction="none"), (X, Y)).loss(), ["not a scalar", "shape (4, 2)"]),
        (lambda: Objective.from_loss(mlp(), lambda m, b: 1.0, [X]).loss(), ["not a scalar", "float"]),
        (
            lambda: Objective.from_loss(mlp(), lambda m, b: m(b).detach().sum(), [X]).gradient(),
            ["does not depend on any selected parameter", "4 parameters", "'0.weight'"],
        ),
        (lambda: Objective.from_loss(mlp(), lambda m, b: m(b).sum(), ["text"]), ["loss terms", "str", "terms=lambda"]),
        (lambda: Objective.huggingface(mlp(), [(X, Y)]), ["batches[0] is not a mapping", "model(**batch)"]),
    ],
)
def test_refusals(make: Callable[[], object], words: list[str]) -> None:
    with pytest.raises(DiagnosticsError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)


def test_a_hugging_face_model_without_labels_says_so() -> None:
    class Output:
        loss = None

    class Silent(nn.Linear):
        def forward(self, x: torch.Tensor) -> Output:
            return Output()

    with pytest.raises(DiagnosticsError, match=r"returned no loss.*keys x.*labels"):
        Objective.huggingface(Silent(3, 2), {"x": X}).loss()


def test_the_error_is_a_value_error() -> None:
    assert issubclass(DiagnosticsError, ValueError)
