"""Duplicates, outliers, gates, gradients and signs: against loops, closed forms, planted units and healthy controls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from diagnostics import Objective, unit_activity
from diagnostics.units.duplicates import duplicates
from tests.reference.unit_loops import outlying, rms, sign_entropy, with_duplicate

UNITS = 16
PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class Plain(nn.Module):
    """One hidden layer; the non-linearity as a function or as a module."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.activation = nn.Linear(6, UNITS), nn.Linear(UNITS, 3), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.activation(self.first(x)))


class Gated(nn.Module):
    """act(gate(x)) · up(x), as in SwiGLU and GeGLU."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.up, self.second = nn.Linear(6, UNITS), nn.Linear(6, UNITS), nn.Linear(UNITS, 3)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.activation(self.first(x)) * self.up(x))


def _data(count: int = 200) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 6), torch.randint(3, (count,))


def _plant(model: Plain | Gated) -> None:
    """Two units off, one on, one that duplicates another, and two without influence."""
    with torch.no_grad():
        model.first.weight[:3] = 0.0
        model.first.bias[:2] = -200.0
        model.first.bias[2] = 20.0
        model.first.weight[4], model.first.bias[4] = model.first.weight[3], model.first.bias[3]
        model.second.weight[:, 8:10] = 0.0


MODULES = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
FORMS = [
    pytest.param(build, form, id=f"{build.__name__}-{name}-{kind}")
    for name, function in PLAIN.items()
    for build in (Plain, Gated)
    for kind, form in (("function", function), ("module", MODULES[name]))
]


@pytest.mark.parametrize(("build", "form"), FORMS)
@pytest.mark.parametrize("compiled", [False, True])
def test_planted_units_are_found_exactly(build: Any, form: Any, compiled: bool) -> None:
    model = build(form() if isinstance(form, type) else form)
    _plant(model)
    x, y = _data()
    seen: nn.Module = torch.compile(model, backend="eager") if compiled else model
    if compiled:
        seen(x)
    (row,) = unit_activity(seen, Objective(model, nn.CrossEntropyLoss(), [(x[:60], y[:60]), (x[60:], y[60:])])).rows
    bounded = row.nonlinearity == "tanh"
    assert (row.dead, row.saturated, row.linearised) == ((0, 3, 0) if bounded else (2, 0, 1))
    assert (row.duplicate, row.gradient_dormant) == (2, 2)
    # Where φ' is zero no gradient reaches the weights of the gate; the other branch of a gated unit still moves while
    # the gate lets something through.
    assert (
        row.frozen
        == {("Plain", False): 4, ("Gated", False): 4, ("Plain", True): 5, ("Gated", True): 2}[build.__name__, bounded]
    )
    assert row.gated_dormant == (None if build is Plain else 0 if bounded else 2)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("seed", range(3))
def test_healthy_networks_raise_nothing(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    x, y = torch.randn(300, 32), torch.randint(5, (300,))
    for gate in (False, True):
        first = Gated(PLAIN[name]) if gate else Plain(PLAIN[name])
        first.first, first.up = nn.Linear(32, 64), nn.Linear(32, 64)
        first.second = nn.Linear(64, 5)
        (row,) = unit_activity(first, Objective(first, nn.CrossEntropyLoss(), (x, y))).rows
        assert (row.duplicate, row.outliers, row.gradient_dormant, row.frozen) == (0, 0, 0, 0)
        assert row.gated_dormant == (0 if gate else None)
        assert row.sign_entropy > 0.9


def test_numbers_against_loops() -> None:
    model = Plain(torch.tanh).double()
    with torch.no_grad():
        model.first.weight[4], model.first.bias[4] = model.first.weight[3] + 0.01, model.first.bias[3]
        model.first.weight[:12] *= 0.02
        model.first.bias[:12] *= 0.02
    x = torch.randn(80, 6, dtype=torch.float64)
    with torch.no_grad():
        z = model.first(x)
        h = z.tanh()
    (row,) = unit_activity(model, x).rows
    assert row.sign_entropy == pytest.approx(sign_entropy(z), rel=1e-12)
    assert row.rms == pytest.approx(rms(h.flatten().tolist()), rel=1e-12)
    assert row.outliers == outlying(h) > 0
    assert row.duplicate == with_duplicate(h) > 0


@pytest.mark.parametrize("gated", [False, True])
def test_gradient_scores_against_autograd_by_hand(gated: bool) -> None:
    """Ragged batches weigh as the whole; the batch cut in two gives the gradients of the whole."""
    model = (Gated(F.silu) if gated else Plain(F.gelu)).double()
    x, y = _data(50)
    x = x.double()
    act = model.activation(model.first(x)).detach().requires_grad_()
    F.cross_entropy(model.second(act * model.up(x) if isinstance(model, Gated) else act), y).backward()
    assert act.grad is not None
    expected = act.grad.abs().mean(0)
    expected /= expected.mean()
    model.zero_grad()
    (row,) = unit_activity(model, Objective(model, nn.CrossEntropyLoss(), [(x[:7], y[:7]), (x[7:], y[7:])])).rows
    torch.testing.assert_close(row.gradient_scores, expected, rtol=1e-10, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("bias", "bits"),
    [(0.0, 1.0), (50.0, 0.0), (-50.0, 0.0)],
)
def test_closed_forms_of_sign_entropy(bias: float, bits: float) -> None:
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh())
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.fill_(bias)
    x = torch.linspace(-1, 1, 100)[:, None]
    assert unit_activity(model, x).rows[0].sign_entropy == pytest.approx(bits, abs=1e-12)


def test_zero_outgoing_weights_leave_a_unit_alive_and_without_influence() -> None:
    model = Plain(F.relu)
    nn.init.zeros_(model.second.weight[:, :5].data)
    (row,) = unit_activity(model, Objective(model, nn.CrossEntropyLoss(), _data())).rows
    assert (row.dormant, row.dead, row.gradient_dormant, row.frozen) == (0, 0, 5, 5)
    assert row.gradient_scores is not None
    assert row.gradient_scores[:5].tolist() == [0.0] * 5


def test_layers_that_do_not_train_are_frozen_and_their_gradients_unknown() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    for selection in (None, "4.*"):
        objective = Objective(model, nn.CrossEntropyLoss(), _data(), params=selection)
        first, second = unit_activity(model, objective).rows
        assert (first.frozen, first.gradient_dormant) == (8, None)
        assert (second.frozen, second.gradient_dormant) == (0, 0)
    model.requires_grad_(False)
    table = unit_activity(model, Objective(model, nn.CrossEntropyLoss(), _data(), params=lambda name, _: True))
    assert "params selects no parameter" in table.without_gradients
    assert [row.frozen for row in table.rows] == [None, None]


def test_incoming_weights_are_followed_through_norms_reshapes_and_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.GELU(),
        nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, 2),
    )  # fmt: skip
    with torch.no_grad():
        model[1].weight[0] = 0.0
        model[9].weight[:, :3] = 0.0
    x, y = torch.randn(60, 1, 6, 6), torch.randint(2, (60,))
    rows = unit_activity(model, Objective(model, nn.CrossEntropyLoss(), (x, y))).rows
    assert [row.frozen for row in rows] == [1, 0, 3]


def test_a_loss_that_cannot_be_differentiated_still_gives_the_counts() -> None:
    model = Plain(F.relu)

    class Stops(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *_: Tensor) -> Tensor:
            raise NotImplementedError("no derivative here")

    objective = Objective.from_loss(
        model, lambda m, batch: F.cross_entropy(Stops.apply(m(batch[0])), batch[1]), [_data()]
    )
    table = unit_activity(model, objective)
    assert table.without_gradients == "no derivative here"
    assert (table.rows[0].gradient_dormant, table.rows[0].frozen, table.rows[0].duplicate) == (None, None, 0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_are_counted_once(reentrant: bool) -> None:
    class Checkpointed(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return self.second(checkpoint(lambda z: self.activation(self.first(z)), x, use_reentrant=reentrant))

    model = Checkpointed(F.relu)
    table = unit_activity(model, Objective(model, nn.CrossEntropyLoss(), _data(40)))
    assert [(row.layer, row.samples) for row in table.rows] == [("relu", 40)]
    assert ("reentrant" in table.without_gradients) == reentrant
    assert table.rows[0].gradient_dormant == (None if reentrant else 0)


class Squeeze(nn.Module):
    """Squeeze and excitation: a sigmoid for each channel scales the whole map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(2, 5, 3), nn.Conv2d(5, 5, 1)
        with torch.no_grad():
            self.gate.weight[:2] = 0.0
            self.gate.bias[:2] = -80.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))


def test_products_are_found_however_they_are_written() -> None:
    x = torch.randn(30, 6)
    for act in (F.silu, torch.sigmoid):
        for product in (
            lambda a, b: a * b,
            lambda a, b: b * a,
            torch.mul,
            lambda a, b: a.mul_(b),
            lambda a, b: F.dropout(a, 0.5, training=False) * b,
        ):
            model = Gated(act)
            with torch.no_grad():
                model.first.weight[:3], model.up.weight[3:5] = 0.0, 0.0
                model.first.bias[:3], model.up.bias[3:5] = -200.0, 0.0
            model.forward = lambda x, m=model, p=product: m.second(p(m.activation(m.first(x)), m.up(x)))
            (row,) = unit_activity(model, x).rows
            assert row.gated_dormant == 5
    assert unit_activity(Squeeze(), torch.randn(6, 2, 7, 7)).rows[0].gated_dormant == 2


def test_a_gate_on_a_state_that_starts_at_zero_is_not_judged() -> None:
    """Of a recurrent cell written out, in its first step: product and gradient are zero, and no unit is at fault."""

    class Cell(Plain):
        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros(len(x), UNITS)
            for _ in range(2):
                state = torch.sigmoid(self.first(x)) * state + torch.tanh(self.first(x))
            return self.second(state)

    model = Cell(torch.sigmoid)
    rows = unit_activity(model, Objective(model, nn.CrossEntropyLoss(), _data())).rows
    assert [row.layer for row in rows] == ["sigmoid", "tanh", "sigmoid#2", "tanh#2"]
    assert (rows[0].gated_dormant, rows[0].gradient_dormant) == (None, None)
    assert (rows[2].gated_dormant, rows[2].gradient_dormant) == (0, 0)


def test_scales_masks_and_squares_are_no_gates() -> None:
    x = torch.randn(30, 6)
    scale = torch.randn(UNITS)
    for function in (
        lambda z: F.relu(z) * 2.0,
        lambda z: F.relu(z) * scale,
        lambda z: F.relu(z) * torch.ones(30, 1),
        lambda z: F.relu(z).square(),
    ):
        assert unit_activity(Plain(function), x).rows[0].gated_dormant is None
    h = F.relu
    assert unit_activity(Plain(lambda z: (lambda a: a * a)(h(z))), x).rows[0].gated_dormant is None


@pytest.mark.parametrize("spelling", ["module", "function", "channels"])
def test_glu_is_one_row_with_its_gate_and_its_product(spelling: str) -> None:
    """Units whose gate is shut are saturated as gates, and dormant as products."""
    if spelling == "channels":
        layer: nn.Module = nn.Sequential(nn.Conv1d(6, 2 * UNITS, 1), nn.GLU(dim=1))
        weight, bias, x = layer[0].weight, layer[0].bias, torch.randn(30, 6, 7)
    else:
        layer = nn.Sequential(nn.Linear(6, 2 * UNITS), nn.GLU())
        weight, bias, x = layer[0].weight, layer[0].bias, torch.randn(200, 6)
        if spelling == "function":
            linear = layer[0]
            layer = Plain(lambda z: F.glu(z, dim=-1))
            layer.first, layer.second = linear, nn.Linear(UNITS, 3)
    with torch.no_grad():
        weight[UNITS : UNITS + 4], bias[UNITS : UNITS + 4] = 0.0, -80.0
        weight[4:6], bias[4:6] = 0.0, 0.0
    (row,) = unit_activity(layer, x).rows
    assert (row.nonlinearity, row.units, row.samples) == ("glu", UNITS, x.numel() // 6)
    assert row.layer == ("glu" if spelling == "function" else "1")
    assert (row.saturated, row.dormant, row.gated_dormant) == (4, 4, 6)


def test_duplicates_need_samples_enough_and_outputs_that_vary() -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(400, 1500, generator=generator).relu()
    assert duplicates(h) == 0
    # In different blocks, and of any scale.
    h[:, 1400] = 1e-20 * h[:, 3]
    assert duplicates(h) == 2
    # Near one half every sigmoid has a plain cosine near 1 with any other.
    assert duplicates(torch.sigmoid(0.3 * torch.randn(400, 50, generator=generator))) == 0
    assert duplicates(torch.ones(400, 5)) is None
    assert duplicates(torch.randn(5, 9, generator=generator)) is None
    once = torch.zeros(400, 6)
    once[7] = 1.0
    assert duplicates(once) is None, "units that fire on one sample meet by chance"


def test_an_outlier_channel_is_counted_and_a_layer_that_is_mostly_dead_has_no_median() -> None:
    model = Plain(F.relu)
    with torch.no_grad():
        model.first.weight[0] *= 100.0
    (row,) = unit_activity(model, _data()[0]).rows
    assert row.outliers == 1
    assert row.outlier_ratio is not None
    assert row.outlier_ratio > 50
    with torch.no_grad():
        model.first.weight[1:12] = 0.0
        model.first.bias[1:12] = -1.0
    (row,) = unit_activity(model, _data()[0]).rows
    assert (row.outliers, row.outlier_ratio) == (None, None)


def test_rms_of_normal_outputs_is_one() -> None:
    model = nn.Sequential(nn.LeakyReLU(1.0))
    assert unit_activity(model, torch.randn(20_000, 4)).rows[0].rms == pytest.approx(1.0, rel=0.02)
