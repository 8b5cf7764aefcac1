"""The self-check passes what is fixed, linear and symmetric, and names the cause of what is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from diagnostics import DiagnosticsError, GaussNewton, Hessian, Objective, self_check


def _data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(9, 4, generator=generator).double(), torch.randint(3, (9,), generator=generator)


def _objective(*middle: nn.Module, mode: str = "eval") -> Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), *middle, nn.Linear(5, 3)).double()
    return Objective(model, nn.CrossEntropyLoss(), _data(), mode=mode)


class OwnNoise(nn.Module):
    """Draws from a generator that nobody resets."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.0 + torch.rand(x.shape, generator=self.generator, dtype=x.dtype))


class StopGradient(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.detach()


@pytest.mark.parametrize("operator", [Hessian, GaussNewton])
@pytest.mark.parametrize(
    ("middle", "mode"),
    [((nn.Tanh(),), "eval"), ((nn.Dropout(0.5), nn.Tanh()), "train"), ((nn.BatchNorm1d(5), nn.Tanh()), "train")],
    ids=["tanh", "dropout", "batch norm"],
)
def test_healthy_operators_pass(operator: type[Hessian], middle: tuple[nn.Module, ...], mode: str) -> None:
    check = self_check(operator(_objective(*middle, mode=mode)))
    assert check.passed
    assert max(check.repeat, check.linearity, check.symmetry) < 1e-12


@pytest.mark.parametrize("operator", [Hessian, GaussNewton])
def test_a_module_with_a_generator_of_its_own_is_named(operator: type[Hessian]) -> None:
    with pytest.raises(DiagnosticsError, match=r"another function on every call.*module '1' \(OwnNoise\)"):
        operator(_objective(OwnNoise(), nn.Tanh())) @ torch.ones(43).double()


def test_shuffling_and_augmentation_inside_the_loss_are_named() -> None:
    x, y = _data()
    generator = torch.Generator()

    def shuffled(model: nn.Module, _: Tensor) -> Tensor:
        chosen = torch.randperm(9, generator=generator)[:4]
        return nn.functional.cross_entropy(model(x[chosen]), y[chosen])

    objective = Objective.from_loss(_objective().model, shuffled, [x])
    with pytest.raises(DiagnosticsError, match="loss_fn shuffles, augments or fetches anew"):
        Hessian(objective) @ torch.ones(43).double()


def test_random_numbers_in_forward_and_in_the_loss_are_told_apart() -> None:
    generator = torch.Generator()

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x + torch.rand(x.shape, generator=generator, dtype=x.dtype))

    x, y = _data()
    with pytest.raises(DiagnosticsError, match=r"something changes in forward\(\) before module 'layer'"):
        Hessian(Objective(Noisy().double(), nn.CrossEntropyLoss(), (x, y))) @ torch.ones(15).double()

    def noisy_loss(model: nn.Module, batch: Tensor) -> Tensor:
        weight = torch.rand(9, generator=generator, dtype=torch.float64)
        return (weight * nn.functional.cross_entropy(model(batch), y, reduction="none")).mean()

    with pytest.raises(DiagnosticsError, match="the modules repeat themselves and the loss does not"):
        Hessian(Objective.from_loss(_objective().model, noisy_loss, [x])) @ torch.ones(43).double()


def test_what_is_hidden_from_autograd_shows_as_asymmetry() -> None:
    H = Hessian(_objective(StopGradient()))
    H @ torch.ones(43).double()
    assert "central differences (double backward is off by" in H.route
    assert "not symmetric" in H.route
    assert H.product_error > 0.01
    check = self_check(H)
    assert not check.passed
    assert "hidden from autograd: detach()" in check.cause


def test_the_padding_row_of_an_embedding_is_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.Flatten(), nn.Tanh(), nn.Linear(6, 3)).double()
    nn.init.normal_(model[0].weight)
    tokens, labels = torch.randint(0, 5, (8, 2)), torch.randint(3, (8,))
    tokens[:, 0] = 0
    check = self_check(Hessian(Objective(model, nn.CrossEntropyLoss(), (tokens, labels))))
    assert "'0' (an embedding whose padding row gets no gradient)" in check.cause


def test_matrices_are_checked_as_they_are() -> None:
    assert self_check(torch.eye(3)).passed
    assert self_check(torch.tensor([[1.0, 2.0], [0.0, 1.0]])).cause == "not symmetric"


def test_kinks_are_named_for_central_differences() -> None:
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    y = torch.randint(3, (200,), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
    check = self_check(Hessian(Objective(model, nn.CrossEntropyLoss(), (x, y)), route="central differences"))
    assert "kinks" in check.cause


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e20, 1e30])
def test_single_precision_at_any_scale(scale: float) -> None:
    symmetric = torch.ones(5, 5) + torch.eye(5)
    assert self_check(scale * symmetric).passed
    assert self_check(scale * torch.triu(symmetric)).cause == "not symmetric"


def test_a_default_device_and_autocast_change_nothing() -> None:
    matrix = torch.ones(5, 5) + torch.eye(5)
    expected, objective = self_check(matrix), _objective()
    with torch.device("meta"), torch.autocast("cpu"):
        assert self_check(matrix) == expected
        assert self_check(Hessian(objective)).passed


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_matrices_that_are_not_real_floating_point_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(DiagnosticsError, match="not real floating-point"):
        self_check(torch.eye(5).to(dtype))
