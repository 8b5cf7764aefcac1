"""Curvature in the parameters against curvature in the inputs: dense Jacobians, closed forms and the bound between."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian

from diagnostics import DiagnosticsError, FisherJacobian, Objective, fisher_jacobian, kernel_curvature, ntk
from tests.cases.models import convolutional
from tests.reference.dense_gauss_newton import dense_gauss_newton
from tests.reference.kernel_loops import differences


def halves(f: Tensor, y: Tensor) -> Tensor:
    """½ ‖f − y‖² of each example, with the identity for its curvature."""
    return 0.5 * (f - y).square().sum(1).mean()


def stack(depth: int, width: int = 6, gain: float = 1.0, orthogonal: bool = True, seed: int = 3) -> nn.Sequential:
    """Linear layers without bias."""
    torch.manual_seed(seed)
    layers = [nn.Linear(width, width, bias=False).double() for _ in range(depth)]
    for layer in layers:
        if orthogonal:
            nn.init.orthogonal_(layer.weight, gain=gain)
        else:
            nn.init.normal_(layer.weight, std=gain * width**-0.5)
    return nn.Sequential(*layers)


def of(model: nn.Module, width: int = 6, count: int = 8) -> FisherJacobian:
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(4)).double()
    return fisher_jacobian(Objective(model, halves, (nn.functional.normalize(x), torch.zeros(count, width).double())))


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss()], ids=["cross-entropy", "squares"])
def test_both_sides_are_those_of_dense_matrices(loss: nn.Module) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double(), torch.randn(7, 3).double()
    y = torch.arange(7) % 4 if isinstance(loss, nn.CrossEntropyLoss) else torch.randn(7, 4).double()
    objective = Objective(model, loss, [(x[:4], y[:4]), (x[4:], y[4:])])
    found = fisher_jacobian(objective)
    for place in range(7):
        one = slice(place, place + 1)
        dense = dense_gauss_newton(model, lambda one=one: model(x[one]), lambda f, one=one: loss(f, y[one]))
        assert float(found.parameters[place]) == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-10)
        jacobian = differences(lambda at: model(at).detach(), x[place])
        middle = hessian(lambda f, one=one: loss(f, y[one]), model(x[one]).detach()).reshape(4, 4)
        wanted = float(torch.linalg.eigvalsh(jacobian.T @ middle @ jacobian)[-1])
        assert float(found.inputs[place]) == pytest.approx(wanted, rel=1e-6)
        # What the first layer alone adds, bias and all.
        first = float(torch.linalg.matrix_norm(model[0].weight.detach(), 2)) ** 2
        bound = float(found.inputs[place]) * (float(x[place].square().sum()) + 1) / first
        assert float(found.parameters[place]) >= bound * (1 - 1e-9)
    assert float(found.largest) == pytest.approx(float(kernel_curvature(objective).largest))
    again = fisher_jacobian(objective, kernel=ntk(objective))
    assert str(again) == str(found)


@pytest.mark.parametrize("gain", [1.0, 0.8, 1.3])
def test_layers_of_rotations_add_up_and_isometry_leaves_only_their_number(gain: float) -> None:
    for depth in (1, 3, 8):
        found = of(stack(depth, gain=gain))
        assert found.inputs.tolist() == pytest.approx([gain ** (2 * depth)] * 8)
        assert float(found.ratio) == pytest.approx(depth / gain**2)
        assert not found.correlation.determined
        assert "the same for every example" in found.correlation.how


def test_gaussian_networks_are_sharp_where_they_are_sensitive_and_rotations_all_alike() -> None:
    drawn = [of(stack(10, orthogonal=False, seed=seed)) for seed in range(20)]
    sensitive = torch.tensor([float(found.inputs[0]) for found in drawn])
    sharp = torch.tensor([float(found.largest) for found in drawn])
    assert float(torch.corrcoef(torch.stack([sensitive.log(), sharp.log()]))[0, 1]) > 0.8
    assert float(sharp.max() / sharp.min()) > 5
    for seed in range(3):
        found = of(stack(10, seed=seed))
        assert found.parameters.tolist() == pytest.approx([10.0] * 8)


def test_correlation_over_examples_and_its_control() -> None:
    """Where the first layer alone is trained, and turns inputs, both are the gradient at its outputs."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 1)).double()
    nn.init.orthogonal_(model[0].weight, gain=2.0)
    x = nn.functional.normalize(torch.randn(40, 4).double())
    y = torch.zeros(40, 1).double()
    seen = fisher_jacobian(Objective(model, halves, (x, y), params="0.*"))
    torch.testing.assert_close(seen.inputs, 4 * seen.parameters)
    assert float(seen.correlation) == pytest.approx(1.0)
    # Of a sum of products the gradient in x is w, for every example; that in w is x.
    flat, lengths = nn.Linear(4, 1, bias=False).double(), torch.linspace(1, 2, 40).double()[:, None]
    control = fisher_jacobian(Objective(flat, halves, (lengths * x, y)))
    assert not control.correlation.determined
    assert "the same for every example" in control.correlation.how
    torch.testing.assert_close(control.parameters, lengths[:, 0].square())
    few = fisher_jacobian(Objective(model, halves, (x[:4], y[:4])))
    assert "4 examples, of 6" in few.correlation.how


def test_convolutions_and_bad_input() -> None:
    images = Objective(convolutional(), nn.CrossEntropyLoss(), (torch.randn(7, 1, 5, 5), torch.arange(7) % 3))
    found = fisher_jacobian(images)
    assert found.ratio.error > 0
    assert bool((found.inputs > 0).all())
    table = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2))
    words = Objective(table, nn.CrossEntropyLoss(), (torch.zeros(4, 2).long(), torch.zeros(4).long()))
    with pytest.raises(DiagnosticsError, match="cannot be differentiated"):
        fisher_jacobian(words)
    dead = fisher_jacobian(Objective(stack(2, gain=0.0), halves, (torch.eye(6).double(), torch.zeros(6, 6).double())))
    assert not dead.ratio.determined
    assert "the inputs change nothing" in str(dead)
