"""Effective learning rates against loops over coordinates, and against what torch's optimizers really do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable

import numpy
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from diagnostics import DiagnosticsError, Objective, effective_learning_rates, moment_statistics
from tests.reference.optimizers import Lookahead
from tests.reference.rate_loops import coordinate_rates, cosine, middle


def _trained(kind: type[Optimizer], steps: int = 3, **settings: object) -> tuple[nn.Module, Optimizer, Objective]:
    """Odd numbers of coordinates per tensor, so that a median is one of them."""
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    data = torch.randn(12, 3, dtype=torch.float64), torch.randn(12, 1, dtype=torch.float64)
    optimizer = kind(model.parameters(), **{"lr": 0.01, **settings})
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(data[0]), data[1]).backward()
        optimizer.step()
    return model, optimizer, Objective(model, nn.MSELoss(), data)


KINDS = [
    (SGD, {}),
    (SGD, {"momentum": 0.9}),
    (SGD, {"momentum": 0.9, "dampening": 0.5}),
    (SGD, {"momentum": 0.9, "nesterov": True}),
    (Adam, {}),
    (Adam, {"amsgrad": True, "betas": (0.8, 0.9)}),
    (AdamW, {"eps": 1e-2, "weight_decay": 0.0}),
    (RMSprop, {"momentum": 0.5}),
]


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_every_column_against_a_loop(kind: type[Optimizer], settings: dict[str, object]) -> None:
    model, optimizer, objective = _trained(kind, **settings)
    gradients = dict(zip(objective.space.names, objective.space.unflatten(objective.gradient()), strict=True))
    table = effective_learning_rates(model, optimizer, objective)
    assert [row.tensor for row in table.rows] == list(objective.space.names)
    for row, (name, tensor) in zip(table.rows, model.named_parameters(), strict=True):
        rates = coordinate_rates(optimizer, tensor)
        assert row.coordinate_rate.value == pytest.approx(middle(rates), rel=1e-9)
        assert row.lr == 0.01
        assert row.weight_norm.value == pytest.approx(float(tensor.detach().norm()), rel=1e-12)
        assert row.gradient_norm.value == pytest.approx(float(gradients[name].norm()), rel=1e-12)
        assert row.alignment.value == pytest.approx(cosine(tensor.detach(), gradients[name]), rel=1e-9)
        assert not row.scale_invariant
        assert row.effective is None
        assert (row.epsilon_share is None) == (kind is SGD)


@pytest.mark.parametrize(("kind", "settings"), KINDS)
@pytest.mark.parametrize("steps", [1, 60])
def test_the_coordinate_rate_is_the_step_torch_takes_under_a_steady_gradient(
    kind: type[Optimizer], settings: dict[str, object], steps: int
) -> None:
    """From the first step on for Adam, whose bias correction is there for that; once settled for momentum."""
    weight = nn.Linear(1, 1, bias=False).double()
    gradient = torch.full((1, 1), 0.3, dtype=torch.float64)
    optimizer = kind(weight.parameters(), **{"lr": 0.01, **settings})
    for _ in range(steps):
        before = weight.weight.detach().clone()
        weight.weight.grad = gradient.clone()
        optimizer.step()
    objective = Objective.from_loss(weight, lambda m, x: m(x).sum(), [torch.ones(1, 1, dtype=torch.float64)])
    rate = effective_learning_rates(weight, optimizer, objective).rows[0].coordinate_rate.value
    if steps == 60 or "momentum" not in settings:
        assert rate == pytest.approx(float((before - weight.weight.detach()) / gradient), rel=1e-2)


def test_the_share_of_coordinates_below_epsilon_is_a_count() -> None:
    model, optimizer, objective = _trained(Adam, eps=1e-3)
    state = optimizer.state[model[0].weight]
    state["exp_avg_sq"].fill_(1.0)
    state["exp_avg_sq"].view(-1)[:6] = 1e-12
    rows = {row.tensor: row for row in effective_learning_rates(model, optimizer, objective).rows}
    assert rows["0.weight"].epsilon_share.value == pytest.approx(6 / 15)
    assert rows["0.weight"].coordinate_rate.error > 0


def test_each_tensor_has_the_rate_of_its_group_and_only_shared_ones_have_a_row() -> None:
    model, _, objective = _trained(SGD)
    optimizer = SGD([{"params": [model[0].weight], "lr": 0.5}, {"params": [model[2].weight], "lr": 0.1}], lr=1.0)
    table = effective_learning_rates(model, optimizer, objective)
    assert {row.tensor: row.lr for row in table.rows} == {"0.weight": 0.5, "2.weight": 0.1}


def test_the_table_prints_and_turns_into_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    table = effective_learning_rates(*_trained(AdamW))
    frame = table.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["tensor"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert {"lr", "coordinate_rate", "coordinate_rate_error", "weight_norm", "alignment"} <= set(frame.columns)
    assert len(str(table).splitlines()) == 5
    assert "not scale-invariant" in str(table)
    assert repr(table) == str(table), "a notebook shows the table"


def test_importing_the_measure_does_not_import_pandas() -> None:
    code = "import sys, diagnostics; sys.exit(bool({'pandas', 'matplotlib', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class SignDescent(Optimizer):
    """A step of its own length, for which there is no rule."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for tensor in group["params"]:
                tensor.sub_(tensor.grad.sign(), alpha=group["lr"])


def test_an_optimizer_without_a_rule_still_has_all_that_needs_none() -> None:
    """Norms, gradients, alignment and scale invariance; no rates, and the reason once for the table."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1))
    objective = Objective(model, nn.MSELoss(), (torch.randn(32, 3), torch.randn(32, 1)), mode="train")
    table = effective_learning_rates(model, SignDescent(model.parameters(), lr=0.1), objective)
    known = effective_learning_rates(model, SGD(model.parameters(), lr=0.1), objective)
    assert table.note.startswith("no stability rule is known for this optimizer; given: SignDescent")
    assert table.note in str(table)
    assert known.note == ""
    for row, other in zip(table.rows, known.rows, strict=True):
        assert (row.coordinate_rate, row.effective, row.row_effective, row.row_rates) == (None,) * 4
        assert (row.epsilon_share, row.gradient_over_moment, row.sign_agreement) == (None,) * 3
        for name in ("tensor", "lr", "weight_norm", "gradient_norm", "alignment", "scale_invariant", "invariant_rows"):
            assert getattr(row, name) == getattr(other, name)
    assert table.rows[0].scale_invariant
    assert "scale-invariant" in str(table).splitlines()[1]


@pytest.mark.parametrize("kind", [torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax, torch.optim.Adagrad])
def test_the_rate_of_every_adaptive_optimizer_is_its_step_under_a_steady_gradient(kind: type[Optimizer]) -> None:
    weight = nn.Linear(1, 1, bias=False).double()
    optimizer = kind(weight.parameters(), lr=0.01)
    gradient = torch.full((1, 1), 0.3, dtype=torch.float64)
    for _ in range(400):
        before = weight.weight.detach().clone()
        weight.weight.grad = gradient.clone()
        optimizer.step()
    objective = Objective.from_loss(weight, lambda m, x: m(x).sum(), [torch.ones(1, 1, dtype=torch.float64)])
    rate = effective_learning_rates(weight, optimizer, objective).rows[0].coordinate_rate
    assert rate is not None
    assert rate.value == pytest.approx(float((before - weight.weight.detach()) / gradient), rel=1e-2)


def test_moments_in_the_table_are_those_of_the_objectives_gradient() -> None:
    model, optimizer, objective = _trained(AdamW)
    gradients = dict(zip(objective.space.names, objective.space.unflatten(objective.gradient()), strict=True))
    for row, (name, tensor) in zip(
        effective_learning_rates(model, optimizer, objective).rows, model.named_parameters(), strict=True
    ):
        own = moment_statistics(optimizer, tensor, gradients[name])
        for column in ("gradient_over_moment", "sign_agreement", "moment_alignment"):
            assert getattr(row, column).value == getattr(own, column).value
            assert getattr(row, column).how.endswith(f"gradient of {objective.description}")


def test_refusals() -> None:
    model, optimizer, objective = _trained(SGD)
    other = nn.Linear(3, 1)
    with pytest.raises(DiagnosticsError, match=r"model is not the one the objective.*given: Linear.*same Sequential"):
        effective_learning_rates(other, optimizer, objective)
    with pytest.raises(DiagnosticsError, match="objective is not an Objective; given: Adam"):
        effective_learning_rates(model, optimizer, Adam(model.parameters()))
    with pytest.raises(DiagnosticsError, match=r"holds none of the objective's parameters; given: SGD"):
        effective_learning_rates(model, SGD(other.parameters(), lr=0.1), objective)
    with pytest.raises(DiagnosticsError, match=r"no preconditioner yet; given: Adam without state for '0.weight'"):
        effective_learning_rates(model, Adam(model.parameters()), objective)


def test_a_loss_or_gradient_that_is_not_finite_is_refused_and_not_called_scale_dependent() -> None:
    model, optimizer, objective = _trained(SGD)
    assert len(effective_learning_rates(model, optimizer, objective).rows) == 4

    def steep(module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        loss = module(batch[0]).mean()
        loss.register_hook(lambda gradient: gradient * torch.inf)
        return loss

    infinite = Objective.from_loss(model, steep, [objective.batches[0]])
    with pytest.raises(DiagnosticsError, match=r"the gradient is not finite; .* 4 of 4 tensors, first '0.weight'"):
        effective_learning_rates(model, optimizer, infinite)
    with torch.no_grad():
        model[2].bias.fill_(torch.nan)
    with pytest.raises(DiagnosticsError, match="the loss is not finite; given: nan"):
        effective_learning_rates(model, optimizer, objective)


def test_a_tensor_adam_has_not_moved_yet_has_rate_zero() -> None:
    model, optimizer, _ = _trained(Adam)
    model.append(nn.Linear(1, 1).double())
    optimizer.add_param_group({"params": model[3].parameters()})
    objective = Objective(model, nn.MSELoss(), (torch.ones(2, 3).double(), torch.ones(2, 1).double()))
    rows = {row.tensor: row for row in effective_learning_rates(model, optimizer, objective).rows}
    assert rows["3.weight"].coordinate_rate.value == 0.0
    assert rows["3.weight"].epsilon_share is None


def test_a_parameter_without_entries_has_a_row_and_no_rate() -> None:
    model, optimizer, _ = _trained(Adam)
    model[0].register_parameter("empty", nn.Parameter(torch.empty(0, 3, dtype=torch.float64)))
    model[0].empty.grad = torch.zeros(0, 3, dtype=torch.float64)
    optimizer.add_param_group({"params": [model[0].empty]})
    optimizer.step()
    objective = Objective(model, nn.MSELoss(), (torch.ones(2, 3).double(), torch.ones(2, 1).double()))
    rows = {row.tensor: row for row in effective_learning_rates(model, optimizer, objective).rows}
    assert not rows["0.empty"].coordinate_rate.determined
    assert rows["0.weight"].coordinate_rate.determined


def test_rates_inside_a_wrapper_say_so() -> None:
    """Lookahead goes back by half of them."""
    model, optimizer, objective = _trained(SGD)
    wrapped = effective_learning_rates(model, Lookahead(optimizer), objective).rows[0].coordinate_rate
    plain = effective_learning_rates(model, optimizer, objective).rows[0].coordinate_rate
    assert (wrapped.how, plain.how) == ("η F(1); the step inside Lookahead", "η F(1)")


def test_the_rates_of_a_tensor_are_sorted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorting is most of what the table costs for Adam."""
    model, optimizer, objective = _trained(Adam)
    sizes = []
    sort = numpy.sort
    monkeypatch.setattr(numpy, "sort", lambda values: (sizes.append(len(values)), sort(values))[1])
    effective_learning_rates(model, optimizer, objective)
    assert sizes == [tensor.numel() for tensor in model.parameters()]
