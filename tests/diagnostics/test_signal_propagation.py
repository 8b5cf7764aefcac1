"""Signals through depth: as loops would measure, as theory says of wide random networks; sick ones told from shaped."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diagnostics import DiagnosticsError, Objective, signal_propagation
from tests.cases import CASES


def network(
    activation: Callable[[], nn.Module], sigma_w: float, sigma_b: float = 0.0, depth: int = 5, width: int = 500
) -> nn.Sequential:
    """Fully connected, 60 inputs, with these variances, and 10 outputs."""
    parts: list[nn.Module] = []
    for index in range(depth):
        layer = nn.Linear(60 if index == 0 else width, width)
        nn.init.normal_(layer.weight, 0.0, sigma_w / math.sqrt(layer.in_features))
        nn.init.normal_(layer.bias, 0.0, sigma_b)
        parts += [layer, activation()]
    return nn.Sequential(*parts, nn.Linear(width, 10))


@pytest.mark.parametrize(
    ("activation", "sigma_w", "sigma_b"),
    [
        (nn.ReLU, math.sqrt(2), 0.0),
        (nn.LeakyReLU, 1.3, 0.2),
        (nn.Tanh, 1.5, 0.3),
        (nn.Tanh, 4.0, 0.0),
        (nn.GELU, 1.5, 0.1),
        (nn.SiLU, 1.7, 0.0),
        (nn.Sigmoid, 2.0, 0.1),
        (nn.Hardtanh, 1.5, 0.1),
        (nn.Identity, 1.0, 0.1),
    ],
)
def test_wide_random_networks_do_what_theory_says(
    activation: Callable[[], nn.Module], sigma_w: float, sigma_b: float
) -> None:
    """Within what 500 units allow; these weights are one draw."""
    signals = signal_propagation(network(activation, sigma_w, sigma_b), torch.randn(30, 60) + 0.5)
    assert signals.kind == "pre-activation"
    assert signals.no_prediction == ""
    assert [row.layer for row in signals.rows] == [str(2 * index) for index in range(6)]
    for row in signals.rows[:-1]:
        assert row.length.value == pytest.approx(row.predicted_length.value, rel=0.25)
        assert row.cosine.value == pytest.approx(row.predicted_cosine.value, abs=0.06)
        assert row.gradient_factor.value == pytest.approx(row.predicted_factor.value, rel=0.2)
    assert signals.rows[-1].predicted_factor is None


def test_orthogonal_layers_keep_everything_to_the_last_digit() -> None:
    model = nn.Sequential(*[nn.Linear(40, 40, bias=False) for _ in range(6)]).double()
    for layer in model:
        nn.init.orthogonal_(layer.weight)
    signals = signal_propagation(model, torch.randn(9, 40, dtype=torch.float64))
    first = signals.rows[0]
    for row in signals.rows:
        for name in ("length", "cosine", "gradient"):
            assert getattr(row, name).value == pytest.approx(getattr(first, name).value, rel=1e-10)
        assert row.predicted_length.value == pytest.approx(row.length.value, rel=1e-10)
        assert row.predicted_cosine.value == pytest.approx(row.cosine.value, rel=1e-10)
    assert [row.gradient_factor.value for row in signals.rows[:-1]] == pytest.approx([1.0] * 5)
    assert [row.predicted_factor.value for row in signals.rows[:-1]] == pytest.approx([1.0] * 5)
    assert (signals.growth.value, signals.verdicts) == (pytest.approx(1.0), ("shaped",))


def test_lengths_cosines_and_gradients_against_loops() -> None:
    model = network(nn.Tanh, 1.2, 0.2, depth=3, width=7).double()
    x, y = torch.randn(6, 60, dtype=torch.float64), torch.randint(10, (6,))
    signals = signal_propagation(model, Objective(model, nn.CrossEntropyLoss(), (x, y)))
    for index, row in enumerate(signals.rows):
        lengths, gradients = [], []
        for example, label in zip(x, y, strict=True):
            z = model[: 2 * index + 1](example[None]).detach().requires_grad_()
            loss = F.cross_entropy(model[2 * index + 1 :](z), label[None])
            gradients.append(float(torch.autograd.grad(loss, z)[0].square().sum()))
            lengths.append(float(z.detach().square().mean()))
        z = model[: 2 * index + 1](x).detach()
        cosines = [float(F.cosine_similarity(z[i], z[j], dim=0)) for i in range(6) for j in range(i)]
        loss = F.cross_entropy(model(x), y)
        weight = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model[2 * index].parameters()))])
        assert row.length.value == pytest.approx(sum(lengths) / 6)
        assert row.cosine.value == pytest.approx(sum(cosines) / 15)
        assert row.gradient.value == pytest.approx(math.sqrt(sum(gradients) / 6))
        assert row.weight_gradient.value == pytest.approx(float(weight.norm()))


def test_the_error_of_the_cosine_is_that_of_a_statistic_of_pairs() -> None:
    """Over many draws of inputs the means scatter as the errors say; as if pairs were independent it would be half."""
    model = network(nn.Tanh, 1.5, depth=2, width=50)
    found = [signal_propagation(model, torch.randn(12, 60) + 0.4).rows[0].cosine for _ in range(40)]
    values = torch.tensor([one.value for one in found])
    typical = torch.tensor([one.error for one in found]).square().mean().sqrt()
    assert 0.75 < float(typical / values.std()) < 1.35


@pytest.mark.parametrize(
    ("build", "verdicts"),
    [
        (lambda: network(nn.ReLU, math.sqrt(2), depth=12, width=200), ("shaped",)),
        (lambda: network(nn.Tanh, 1.1, 0.1, depth=12, width=200), ("shaped",)),
        (lambda: network(nn.Sigmoid, 2.0, depth=8, width=200), ("degenerate", "vanishing")),
        (lambda: network(nn.Tanh, 0.4, 0.3, depth=12, width=200), ("degenerate", "vanishing")),
        (lambda: network(nn.Tanh, 4.0, depth=16, width=200), ("exploding",)),
        (lambda: network(nn.ReLU, math.sqrt(2), 3.0, depth=30, width=200), ("degenerate",)),
        (lambda: network(nn.LeakyReLU, 0.7, depth=16, width=200), ("vanishing",)),
    ],
    ids=["he relu", "tanh near the edge", "sigmoid", "ordered", "chaotic", "biased", "small weights"],
)
def test_sick_networks_are_told_from_shaped_ones(build: Callable[[], nn.Module], verdicts: tuple[str, ...]) -> None:
    signals = signal_propagation(build(), torch.randn(16, 60))
    assert signals.verdicts == verdicts
    assert str(signals).splitlines()[-1].startswith(" and ".join(verdicts))


def test_an_objective_over_ragged_batches_is_like_one_whole_batch_but_for_pairs_across_them() -> None:
    model = network(nn.ReLU, 1.4, depth=3, width=40).double()
    x, y = torch.randn(20, 60, dtype=torch.float64), torch.randint(10, (20,))
    whole = signal_propagation(model, Objective(model, nn.CrossEntropyLoss(), (x, y)))
    batches = [(x[:1], y[:1]), (x[1:9], y[1:9]), (x[9:], y[9:])]
    pieces = signal_propagation(model, Objective(model, nn.CrossEntropyLoss(), batches))
    for one, other in zip(whole.rows, pieces.rows, strict=True):
        for name in ("length", "gradient", "weight_gradient", "predicted_length"):
            assert getattr(one, name).value == pytest.approx(getattr(other, name).value, rel=1e-9)
    assert "83 pairs of 20 examples" in pieces.rows[0].cosine.how


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(60, 60), nn.Linear(60, 60)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x + torch.relu(self.first(x)))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(60, 60)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class PerUnit(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return F.prelu(z, torch.linspace(0.1, 0.5, z.shape[-1]))


@pytest.mark.parametrize(
    ("model", "shape", "reason"),
    [
        (Residual(), (8, 60), "between 'first' and 'second' there is more than one element-wise function"),
        (Twice(), (8, 60), "a layer is used twice"),
        (nn.Sequential(nn.Linear(60, 5), PerUnit(), nn.Linear(5, 2)), (8, 60), "not the same for every unit"),
        (nn.Sequential(nn.Linear(60, 5), nn.Tanh(), nn.Linear(5, 2)), (8, 3, 60), "not one vector for each example"),
        (nn.Sequential(nn.Linear(60, 5), nn.LayerNorm(5), nn.Linear(5, 2)), (8, 60), "depth is counted in layers"),
    ],
)
def test_where_theory_does_not_speak_the_reason_is_given(model: nn.Module, shape: tuple[int, ...], reason: str) -> None:
    signals = signal_propagation(model, torch.randn(shape))
    assert reason in signals.no_prediction
    assert reason in str(signals)
    assert all(row.predicted_length is None for row in signals.rows)
    assert all(row.length.determined and row.gradient.determined for row in signals.rows)


def test_dropout_flattening_and_functions_do_not_hide_a_fully_connected_network() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.out = nn.Linear(60, 30), nn.Linear(30, 30), nn.Linear(30, 3)
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            z = self.drop(F.gelu(self.first(x.flatten(1)), approximate="tanh"))
            return self.out(F.relu(self.second(z), inplace=True))

    signals = signal_propagation(Written(), torch.randn(8, 6, 10))
    assert signals.no_prediction == ""
    assert [row.layer for row in signals.rows] == ["first", "second", "out"]


def test_functions_in_place_change_nothing() -> None:
    plain = network(nn.ReLU, 1.4, depth=3, width=30)
    in_place = network(lambda: nn.ReLU(inplace=True), 1.4, depth=3, width=30)
    in_place.load_state_dict(plain.state_dict())
    x = torch.randn(8, 60)
    assert str(signal_propagation(plain, x)) == str(signal_propagation(in_place, x))


def encoder(**settings: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, **settings)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


def test_transformers_are_measured_block_by_block_examples_told_from_tokens() -> None:
    x = torch.randn(5, 7, 16)
    first = encoder(batch_first=True)
    second = encoder(batch_first=False)
    second.load_state_dict(first.state_dict())
    one, other = signal_propagation(first, x), signal_propagation(second, x.transpose(0, 1))
    assert (one.kind, [row.layer for row in one.rows]) == ("block", ["layers.0", "layers.1", "layers.2"])
    assert "theory speaks of fully-connected networks" in one.no_prediction
    for row, twin in zip(one.rows, other.rows, strict=True):
        assert row.cosine.value == pytest.approx(twin.cosine.value, abs=1e-5)
        assert row.length.value == pytest.approx(twin.length.value, rel=1e-5)
        assert "5 examples" in row.length.how
        assert "5 examples" in twin.length.how


def test_frozen_parameters_do_not_stop_the_gradient() -> None:
    model = network(nn.ReLU, 1.4, depth=2, width=20).requires_grad_(False)
    signals = signal_propagation(model, torch.randn(6, 60))
    assert all(row.gradient.value > 0 for row in signals.rows)
    assert not any(tensor.requires_grad for tensor in model.parameters())


def test_what_cannot_be_told_says_why() -> None:
    model = network(nn.ReLU, 1.4, depth=2, width=20)
    single = signal_propagation(model, torch.randn(1, 60))
    assert "no batch has two examples" in single.rows[0].cosine.how
    assert not single.remaining.determined
    assert single.verdicts == ()
    alone = signal_propagation(nn.Linear(60, 3), torch.randn(5, 60))
    assert (alone.verdicts, alone.growth.how) == ((), "one place has no depth")
    same = signal_propagation(model, torch.ones(4, 60))
    assert "the same at the first place" in same.remaining.how
    cut = nn.Sequential(nn.Linear(60, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.init.zeros_(cut[4].weight)
    blind = signal_propagation(cut, torch.randn(6, 60))
    assert "gradient is zero" in blind.growth.how
    assert str(blind).splitlines()[-1].startswith("no verdict")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_model_of_the_cases_can_be_watched_and_nothing_is_left_behind(case: object) -> None:
    objective = case.objective()
    model = objective.model.train()
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    buffers, state = [buffer.clone() for buffer in model.buffers()], torch.get_rng_state()
    wanted = [tensor.requires_grad for tensor in model.parameters()]
    signals = signal_propagation(model, objective)
    assert all(row.gradient.value > 0 for row in signals.rows)
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert all(module.training for module in model.modules())
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), buffers, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert [tensor.requires_grad for tensor in model.parameters()] == wanted
    assert all(tensor.grad is None for tensor in model.parameters())


def test_the_table_prints_and_turns_into_pandas() -> None:
    pytest.importorskip("pandas")
    signals = signal_propagation(network(nn.Tanh, 1.2, depth=2, width=20), torch.randn(5, 60))
    frame = signals.to_pandas()
    assert frame["layer"].tolist() == ["0", "2", "4"]
    assert frame.loc[0, "cosine"] == signals.rows[0].cosine.value
    assert str(signals).splitlines()[0].split() == [
        *("layer", "length", "(theory)", "cosine", "(theory)", "factor", "(theory)", "gradient"),
    ]
    assert repr(signals) == str(signals)
    measured = signal_propagation(encoder(batch_first=True), torch.randn(4, 3, 16))
    assert str(measured).splitlines()[0].split() == ["layer", "length", "cosine", "factor", "gradient"]


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_complex_layers_have_nothing_that_could_be_measured() -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4).to(torch.complex64)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.to(torch.complex64)).real

    model = Spectral()
    with pytest.raises(DiagnosticsError, match="no depth to look at"):
        signal_propagation(model, torch.randn(3, 4, requires_grad=True))


def test_refusals() -> None:
    model = network(nn.Tanh, 1.2, depth=2, width=20)
    with pytest.raises(DiagnosticsError, match="batch cannot be run; given: int"):
        signal_propagation(model, 3)
    with pytest.raises(DiagnosticsError, match="batch is empty"):
        signal_propagation(model, torch.zeros(0, 60))
    with pytest.raises(DiagnosticsError, match="no depth to look at; given: ReLU"):
        signal_propagation(nn.ReLU(), torch.randn(3, 2))
    with pytest.raises(DiagnosticsError, match="built on another model"):
        signal_propagation(nn.Linear(2, 2), Objective(model, nn.MSELoss(), (torch.randn(3, 60), torch.randn(3, 10))))
    with torch.no_grad():
        model[2].weight[0, 0] = math.nan
    with pytest.raises(DiagnosticsError, match="the values at '2' are not finite; given: 5 of 100 values"):
        signal_propagation(model, torch.randn(5, 60))
