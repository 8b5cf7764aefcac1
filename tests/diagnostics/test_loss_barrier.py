"""The loss between two networks against weights really put into the model; renamed copies have no barrier."""

import copy

import pytest
import torch
from torch import nn

from diagnostics import DiagnosticsError, Objective, loss_barrier, match_units
from tests.reference import trajectory_loops as slow


def _mlp(*norms):
    between = [nn.BatchNorm1d(9)] if norms else []
    return nn.Sequential(nn.Linear(3, 9), *between, nn.ReLU(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 2)).double()


def _cnn():
    parts = (
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    return nn.Sequential(*parts, nn.Linear(20, 3)).double()


class _Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        hidden = self.one(x).relu()
        return self.three(hidden + self.two(hidden).relu())


class _Named(nn.Module):
    """A chain with a forward pass of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.second(torch.sigmoid(self.first(x)))


def _objective(model, mode="eval"):
    generator = torch.Generator().manual_seed(1)
    first = next(model.parameters())
    shape = (12, 1, 8, 8) if first.ndim == 4 else (12, first.shape[1])
    x = torch.randn(shape, generator=generator, dtype=first.dtype)
    with torch.no_grad():
        y = torch.randn(model(x).shape, generator=generator, dtype=first.dtype)
    return Objective(model, nn.MSELoss(), (x, y), mode=mode)


def _parameters(make, seed):
    torch.manual_seed(seed)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _renamed_copy(parameters, layers):
    """Units of each hidden layer in another order, by hand: weight, what belongs to its outputs, the next weight."""
    renamed = dict(parameters)
    for weight, vectors, following in layers:
        width = len(parameters[weight])
        order = torch.randperm(width, generator=torch.Generator().manual_seed(width))
        for name in (weight, *vectors):
            renamed[name] = renamed[name][order]
        old = renamed[following]
        renamed[following] = old.reshape(len(old), width, -1)[:, order].reshape(old.shape)
    return renamed


CHAINS = {
    "mlp": (_mlp, [("0.weight", ["0.bias"], "2.weight"), ("2.weight", ["2.bias"], "4.weight")]),
    "mlp with norm": (
        lambda: _mlp(True),
        [("0.weight", ["0.bias", "1.weight", "1.bias"], "3.weight"), ("3.weight", ["3.bias"], "5.weight")],
    ),
    "cnn": (
        _cnn,
        [("0.weight", ["0.bias", "1.weight", "1.bias"], "3.weight"), ("3.weight", ["3.bias"], "7.weight")],
    ),
    "a forward pass of its own": (lambda: _Named().double(), [("first.weight", ["first.bias"], "second.weight")]),
}


@pytest.mark.parametrize("name", CHAINS)
def test_the_line_equals_weights_put_into_the_model(name):
    make, _ = CHAINS[name]
    first, last = _parameters(make, 0), _parameters(make, 1)
    objective = _objective(make())
    line = loss_barrier(objective, first, last, points=7)
    expected = slow.line_losses(
        copy.deepcopy(objective.model), nn.MSELoss(), objective.batches[0], first, last, line.alphas
    )
    assert line.losses.tolist() == pytest.approx(expected, rel=1e-9)
    rise = [
        loss - (1 - a) * expected[0] - a * expected[-1] for a, loss in zip(line.alphas.tolist(), expected, strict=True)
    ]
    assert float(line.barrier) == pytest.approx(max(0.0, *rise), abs=1e-9)


@pytest.mark.parametrize("name", CHAINS)
def test_a_renamed_copy_has_a_barrier_and_none_after_matching(name):
    make, layers = CHAINS[name]
    first = _parameters(make, 0)
    last, objective = _renamed_copy(first, layers), _objective(make())
    before = loss_barrier(objective, first, last)
    assert float(before.losses[0]) == pytest.approx(float(before.losses[-1]))
    found = match_units(objective, first, last)
    assert found.note == ""
    assert 0 < found.moved <= found.units
    for key, tensor in first.items():
        assert torch.equal(found.parameters[key], tensor)
    assert float(loss_barrier(objective, first, found.parameters).barrier) == pytest.approx(0.0, abs=1e-9)


def test_renaming_never_changes_the_function_of_another_network():
    make, _ = CHAINS["mlp"]
    first, last, objective = _parameters(make, 0), _parameters(make, 1), _objective(_mlp())
    found = match_units(objective, first, last)
    assert found.moved > 0
    lines = [loss_barrier(objective, first, other) for other in (last, found.parameters)]
    assert float(lines[0].losses[-1]) == pytest.approx(float(lines[1].losses[-1]))

    def distance(other):
        return sum(float((first[name] - other[name]).square().sum()) for name in first)

    assert distance(found.parameters) < distance(last)


def test_one_hidden_layer_is_matched_as_well_as_by_trying_every_order():
    def make():
        return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double()

    first, last = _parameters(make, 0), _parameters(make, 1)
    order = list(slow.best_order(first, last))
    found = match_units(_objective(make()), first, last).parameters
    assert torch.equal(found["0.weight"], last["0.weight"][order])
    assert torch.equal(found["2.weight"], last["2.weight"][:, order])


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: _Residual().double(), "no plain chain of layers"),
        (lambda: nn.Sequential(nn.Linear(3, 2)).double(), "no hidden units"),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double(), "LayerNorm"),
    ],
)
def test_what_is_no_chain_is_left_as_it_is_and_says_why(make, why):
    first, last = _parameters(make, 0), _parameters(make, 1)
    found = match_units(_objective(make()), first, last)
    assert why in found.note
    assert all(torch.equal(found.parameters[name], tensor) for name, tensor in last.items())


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_nothing_of_the_model_is_changed(mode):
    objective = _objective(_mlp(True), mode)
    objective.model.train()
    first, last = _parameters(lambda: _mlp(True), 0), _parameters(lambda: _mlp(True), 1)
    before, random = copy.deepcopy(objective.model.state_dict()), torch.get_rng_state()
    line = loss_barrier(objective, first, last)
    match_units(objective, first, last)
    assert ("statistics taken anew" in line.barrier.how) == (mode == "eval")
    assert all(torch.equal(before[name], tensor) for name, tensor in objective.model.state_dict().items())
    assert all(module.training for module in objective.model.modules())
    assert objective.model[1].momentum == 0.1
    assert torch.equal(torch.get_rng_state(), random)


def test_a_convex_loss_has_no_barrier_and_a_missing_parameter_is_one_error():
    objective = _objective(nn.Linear(3, 2).double())
    first, last = (_parameters(lambda: nn.Linear(3, 2).double(), seed) for seed in (0, 1))
    assert float(loss_barrier(objective, first, last).barrier) == 0.0
    with pytest.raises(DiagnosticsError, match="last does not fit"):
        loss_barrier(objective, first, {"weight": last["weight"]})
    with pytest.raises(DiagnosticsError, match="points"):
        loss_barrier(objective, first, last, points=2)
