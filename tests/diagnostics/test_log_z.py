"""log Z of the output softmax: closed forms, a loop over labels, and losses that have none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError, Objective, output_log_z
from tests.cases import CASES


class Given(nn.Module):
    """The inputs as logits, shifted by a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


def test_equal_logits_have_the_logarithm_of_the_number_of_classes() -> None:
    model = Given()
    objective = Objective(model, nn.CrossEntropyLoss(), (torch.zeros(6, 10), torch.randint(10, (6,))))
    found = output_log_z(objective)
    for value in (found.mean, found.rms, found.highest, found.lowest):
        assert value.value == pytest.approx(math.log(10))
    assert (found.classes, found.mean.error) == (10, pytest.approx(0.0, abs=1e-12))
    with torch.no_grad():
        model.shift.fill_(-100.0)
    assert output_log_z(objective).mean.value == pytest.approx(math.log(10) - 100.0)


@pytest.mark.parametrize("axis_second", [False, True])
def test_labels_one_by_one(axis_second: bool) -> None:
    """Ragged batches, ignored labels, classes on axis 1 as torch wants them."""
    x = 3 * torch.randn(7, 5, 4, dtype=torch.float64) if axis_second else 3 * torch.randn(7, 5, dtype=torch.float64)
    y = torch.randint(5, (7, 4) if axis_second else (7,))
    y[2], y[5] = -100, -100
    rows = x.movedim(1, -1).reshape(-1, 5)[(y != -100).reshape(-1)]
    values = [math.log(sum(math.exp(value) for value in row)) for row in rows.tolist()]
    found = output_log_z(Objective(Given(), nn.CrossEntropyLoss(), [(x[:3], y[:3]), (x[3:], y[3:])]))
    mean = sum(values) / len(values)
    spread = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    assert found.mean.value == pytest.approx(mean)
    assert found.mean.error == pytest.approx(math.sqrt(spread / len(values)))
    assert found.rms.value == pytest.approx(math.sqrt(sum(value**2 for value in values) / len(values)))
    assert (found.highest.value, found.lowest.value) == (pytest.approx(max(values)), pytest.approx(min(values)))
    assert f"over {len(values)} labels" in found.mean.how
    assert str(found).splitlines()[0] == "log Z of the output softmax over 5 classes"


def test_language_models_count_the_labels_that_they_predict() -> None:
    (case,) = (case for case in CASES if case.name == "gpt2")
    objective = case.objective()
    found = output_log_z(objective)
    assert f"over {sum(objective.terms):,.0f} labels" in found.mean.how


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (lambda m, x, y: Objective(m, nn.MSELoss(), (x, x)), "the loss has no output softmax"),
        (
            lambda m, x, y: Objective.from_loss(m, lambda n, b: n(b).mean(), [x]),
            "the model's outputs cannot be seen inside loss_fn",
        ),
        (lambda m, x, y: m, "objective is not an Objective"),
    ],
)
def test_refusals(objective: object, words: str) -> None:
    with pytest.raises(DiagnosticsError, match=words):
        output_log_z(objective(Given(), torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3).long()))


def test_outputs_that_are_not_finite_are_refused() -> None:
    x = torch.zeros(3, 4, dtype=torch.float64)
    x[1, 2] = float("nan")
    with pytest.raises(DiagnosticsError, match="log Z is NaN or infinite at 1 of 3 labels"):
        output_log_z(Objective(Given(), nn.CrossEntropyLoss(), (x, torch.zeros(3).long())))
